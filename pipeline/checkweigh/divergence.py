"""What the divergence of two arms comes to: a summary of a set for people, and the comparison of a check. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from checkweigh.records.comparison import Comparison, Inestimable
from checkweigh.records.decision import DivergenceSummary, DivergingToken
from checkweigh.records.evalset import EvalSet
from checkweigh.records.measurement import MeasurementSet, Observation, Scored
from checkweigh.records.policy import Check
from checkweigh.stats.divergence import typical_divergence

WORST = 12  # tokens shown of a set


def summary(evalset: EvalSet, record: MeasurementSet) -> DivergenceSummary | None:
    """A set's divergence in numbers, with the tokens where it is largest; None when every document failed."""
    scored = [o for o in record.observations if isinstance(o.outcome, Scored) and o.kl]
    if not scored:
        return None
    tokens = np.array([value for o in scored for value in o.kl])
    agreement = np.array([_value(o, "agreement") for o in scored])
    sizes = np.array([len(o.kl) for o in scored], dtype=np.float64)
    p50, p90, p99 = (float(q) for q in np.quantile(tokens, (0.5, 0.9, 0.99)))
    worst = sorted(((o.item, token) for o in scored for token in o.worst), key=lambda pair: -pair[1].kl)
    return DivergenceSummary(
        set_name=evalset.card.name, documents=len(scored), failed=len(evalset.items) - len(scored), tokens=len(tokens),
        typical=float(typical_divergence([_value(o, "kl") for o in scored])), mean=float(tokens.mean()),
        p50=p50, p90=p90, p99=p99, largest=float(tokens.max()),
        agreement=float((agreement * sizes).sum() / sizes.sum()),
        worst=tuple(DivergingToken(item=item, token=token) for item, token in worst[:WORST]),
    )  # fmt: skip


def compare_divergence(
    check: Check, sets: Sequence[EvalSet], records: Mapping[str, MeasurementSet], why_absent: str
) -> Comparison:
    """What the divergence says about the check. Without a noise floor (the divergence of the baseline from itself) a
    number is all there is: whether it is much or little cannot be told."""
    missing = [s.card.name for s in sets if s.card.name not in records]
    if missing:
        return Inestimable(reason=f"no divergence on {', '.join(missing)}: {why_absent or 'not measured'}")
    documents = [o for s in sets for o in records[s.card.name].observations]
    scored = [o for o in documents if isinstance(o.outcome, Scored)]
    if not scored:
        return Inestimable(reason="no document has a divergence")
    theta = float(typical_divergence([_value(o, "kl") for o in scored]))
    found = f"{theta:.4g} nats/token over {len(scored)} of {len(documents)} documents"
    floor = "no noise floor has been measured, so that it cannot be told whether this is much"
    return Inestimable(reason=f"{found}; {floor}", candidate=theta)


def _value(observation: Observation, name: str) -> float:
    assert isinstance(observation.outcome, Scored)
    return observation.outcome.values.get(name, np.nan)
