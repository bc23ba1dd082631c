"""A block's outcomes -> its numbers. Pure.

Quantiles are those of requests that were answered. Where requests failed, a bound for the pass test stands beside each
quantile: a candidate's failure counts as the longest wait there is (the load's timeout), a baseline's as no wait at all
("Failed items are evidence" in docs/statistics.md). A request given up when its block was stopped counts with the time
that it had taken by then.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Literal

import numpy as np

from checkweigh.measure.open_loop import OfferedBlock, OfferedOutcome
from checkweigh.records.load_spec import Load, Objective

QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}
BOUND_SUFFIX = "bound"


def kept_slo(outcome: OfferedOutcome, slo: Objective) -> bool:
    """Whether the request was answered, and as fast as was promised."""
    if outcome.failure or outcome.first is None or outcome.ended is None:
        return False
    limited = ((outcome.first, slo.ttft), (outcome.tpot, slo.tpot), (outcome.ended, slo.e2e))
    return all(limit is None or value is None or value <= limit for value, limit in limited)


def block_values(
    offered: OfferedBlock, load: Load, role: Literal["baseline", "candidate"]
) -> dict[str, float]:
    """'ttft.p50', ..., 'e2e.p99' in seconds, 'goodput' and 'error_rate' as shares of the requests offered.

    A quantile that no request tells is absent. '....bound' only stands where a request failed.
    """
    outcomes = offered.outcomes
    given_up = [o.ended for o in outcomes if o.failure == "given up" and o.ended is not None]
    answered = [o for o in outcomes if not o.failure]
    failed = len(outcomes) - len(answered)
    worst = load.timeout if role == "candidate" else 0.0
    rows = {
        "ttft": [o.first for o in answered if o.first is not None],
        "tpot": [o.tpot for o in answered if o.tpot is not None],
        "e2e": [o.ended for o in answered if o.ended is not None],
    }
    values = {
        "goodput": sum(kept_slo(o, load.slo) for o in outcomes) / len(outcomes),
        "error_rate": sum(map(is_error, outcomes)) / len(outcomes),
        "late_p99": _quantile(offered.lateness, 0.99) if offered.lateness else 0.0,
        "saturated": float(bool(offered.saturated)),
        "cached_tokens": float(sum(o.cached for o in outcomes)),
    }
    for metric, seen in rows.items():
        for name, q in QUANTILES.items():
            if measured := seen + (given_up if metric == "e2e" else []):
                values[f"{metric}.{name}"] = _quantile(measured, q)
            if failed and len(seen):
                values[f"{metric}.{name}.{BOUND_SUFFIX}"] = _quantile(seen + [worst] * failed, q)
    return values


def is_error(outcome: OfferedOutcome) -> bool:
    """Whether the request got no whole answer in its time. One that was never sent was not answered either."""
    return bool(outcome.failure)


def discordant_counts(
    baseline: OfferedBlock, candidate: OfferedBlock, load: Load
) -> dict[str, tuple[int, int]]:
    """Requests that are goodput, or errors, in one arm only: (baseline, candidate)."""
    pairs = list(zip(baseline.outcomes, candidate.outcomes, strict=True))
    good = [(kept_slo(b, load.slo), kept_slo(c, load.slo)) for b, c in pairs]
    bad = [(is_error(b), is_error(c)) for b, c in pairs]
    return {
        name: (sum(b and not c for b, c in outcomes), sum(c and not b for b, c in outcomes))
        for name, outcomes in (("goodput", good), ("error_rate", bad))
    }


def describe_failures(outcomes: Sequence[OfferedOutcome]) -> str:
    """The failures in words, commonest first; empty when there were none."""
    counts = Counter(o.failure.partition(":")[0] for o in outcomes if o.failure)
    return ", ".join(f"{count} {what}" for what, count in counts.most_common())


def _quantile(values: Sequence[float], q: float) -> float:
    return float(np.quantile(values, q))
