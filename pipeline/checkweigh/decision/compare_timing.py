"""A check of timing, memory or a rate and its pairs of blocks -> a Comparison. Pure.

1. Too few pairs, an over-saturated baseline or a missing value make the comparison ``Inestimable``.
2. Every pair of blocks is one datum: a log ratio for times and memory, counts of unlike requests for rates.
3. The block test takes the measured values. The pass test takes their bounds, which count an unanswered request against
   the arm that left it; fewer pairs or requests than the check asks for cannot pass.
4. p-values and bounds are those of repeated looks at a growing run.
"""

from __future__ import annotations

import numpy as np

from checkweigh.decision.compare import equivalence_of, margin_of, mirrored_check, orientation, to_estimate
from checkweigh.decision.looks import Level, single_look_level
from checkweigh.records.comparison import Comparison, Estimate, Inestimable
from checkweigh.records.measurement import PairedRun
from checkweigh.records.metrics import METRICS
from checkweigh.records.policy import Check
from checkweigh.stats import MIN_BLOCKS, Evidence, block_log_ratio, block_rates, nominal_level
from checkweigh.stats.arrays import Floats


def block_key(check: Check) -> str:
    """Name of the value in a block that a check on timing, memory or a rate looks at."""
    return check.metric if check.statistic == "mean" else f"{check.metric}.{check.statistic}"


def compare_blocks(check: Check, run: PairedRun | None, *, alpha: float | Level) -> Comparison:
    """The comparison of a check on timing, memory or a rate, from pairs of blocks; ``run`` None: not measured.

    ``alpha``: the one-sided level of the only look, or the levels of one of several looks.
    """
    if run is None:
        return Inestimable(reason="timing was not measured")
    level = alpha if isinstance(alpha, Level) else single_look_level(alpha)
    key = block_key(check)
    rows = [(b.baseline.get(key, np.nan), b.candidate.get(key, np.nan)) for b in run.blocks]
    values = np.array(rows, dtype=np.float64).reshape(-1, 2)
    if reason := _unusable_blocks(check, run, values):
        return Inestimable(reason=reason)
    nominal = nominal_level(run.looks, level.passing)
    middle = np.mean if METRICS[check.metric].unit == "share" else np.median
    means = float(middle(values[:, 0])), float(middle(values[:, 1]))
    sides = (check, mirrored_check(check))[: 2 if check.kind == "equivalence" else 1]
    records = []
    for side in sides:
        block, passing, exclusions = _blocks_evidence(side, run, values, nominal)
        if not block.estimable.all():
            return Inestimable(reason="the blocks do not vary, so that no interval can be stated")
        record = to_estimate(side, block, passing, level, pairs=len(values), means=means)
        records.append(
            _repeated(record, run, level.passing / nominal).model_copy(update={"exclusions": exclusions})
        )
    return records[0] if len(records) == 1 else equivalence_of(*records)


def _unusable_blocks(check: Check, run: PairedRun, values: Floats) -> str:
    """Why the blocks cannot say anything about the check; empty when they can."""
    shares = METRICS[check.metric].unit == "share"
    swamped = sum(b.baseline.get("saturated", 0.0) > 0 for b in run.blocks)
    if len(values) < MIN_BLOCKS:
        return f"{len(values)} pairs of blocks, {max(MIN_BLOCKS, check.min_clusters)} needed"
    if swamped and check.metric != "peak_memory":
        return f"the baseline was over-saturated in {swamped} blocks: a load that it cannot carry compares nothing"
    if not np.isfinite(values).all() or (values < 0).any() or (not shares and (values == 0).any()):
        return f"'{block_key(check)}' is missing or not positive in some blocks"
    if shares and any(check.metric not in b.unlike for b in run.blocks):
        return f"it was not counted on which requests the arms differ in {check.metric}"
    if check.metric == "error_rate" and (values[:, 0] == 1).all():
        return "the baseline answered no request at all"
    return ""


def _too_few(check: Check, run: PairedRun) -> str:
    """What the check asks for and the blocks do not have, in words; empty when they have it."""
    requests = sum(b.requests for b in run.blocks)
    if len(run.blocks) < check.min_clusters:
        return f"{len(run.blocks)} pairs of blocks, {check.min_clusters} needed"
    return f"{requests} requests, {check.min_items} needed" if requests < check.min_items else ""


def _blocks_evidence(
    check: Check, run: PairedRun, values: Floats, alpha: float
) -> tuple[Evidence, Evidence | None, tuple[str, ...]]:
    """Evidence of the block test, evidence of the pass test (None: it cannot pass), and why the two differ.

    Fewer pairs than the policy asks for cannot pass. They may block, because a slow candidate is what makes a run too
    long. Where the arms are equal, how many pairs fit into the time says nothing about either arm.
    """
    block, passing, notes = _both_tests(check, run, values, alpha)
    short = _too_few(check, run)
    return (block, None, (*notes, f"{short}: no pass")) if short else (block, passing, notes)


def _both_tests(
    check: Check, run: PairedRun, values: Floats, alpha: float
) -> tuple[Evidence, Evidence | None, tuple[str, ...]]:
    margin = margin_of(check)
    if METRICS[check.metric].unit == "share":
        counts = np.array([b.unlike[check.metric] for b in run.blocks], dtype=np.float64)
        worse, better = counts.T if check.direction == "higher" else counts.T[::-1]
        evidence = block_rates(better, worse, [b.requests for b in run.blocks], margin=margin, alpha=alpha)
        return evidence, evidence, ()
    block = block_log_ratio(_log_ratios(check, values), margin=margin, alpha=alpha)
    stopped = sum(b.candidate.get("saturated", 0.0) > 0 for b in run.blocks)
    if stopped and check.metric != "peak_memory":
        return block, None, (f"the candidate was over-saturated in {stopped} blocks: no pass",)
    key = f"{block_key(check)}.bound"
    arms = [(b.baseline, b.candidate) for b in run.blocks]
    bounds = np.array(
        [
            [v.get(key, value) for v, value in zip(a, o, strict=True)]
            for a, o in zip(arms, values, strict=True)
        ]
    )
    if (bounds == values).all():
        return block, block, ()
    note = "requests without an answer count against the arm that left them so"
    if (bounds <= 0).any():
        return block, None, (note, "the baseline left too many: no pass")
    return block, block_log_ratio(_log_ratios(check, bounds), margin=margin, alpha=alpha), (note,)


def _log_ratios(check: Check, values: Floats) -> Floats:
    return np.asarray(orientation(check) * np.log(values[:, 1] / values[:, 0]))


def _repeated(record: Estimate, run: PairedRun, ratio: float) -> Estimate:
    """Repeated p-values (Jennison and Turnbull 2000, ch. 9): small as often as the policy says, over all looks.

    Pass: the p at this look, in units of what the look may spend. Block: Bonferroni over the planned looks.
    """
    if run.looks == (1.0,) and run.planned_looks == 1:
        return record
    method = f"{record.method}, look {len(run.looks)} of at most {run.planned_looks}"
    return record.model_copy(
        update={
            "p_pass": min(1.0, record.p_pass * ratio),
            "p_worse": min(1.0, record.p_worse * run.planned_looks),
            "method": method,
        }
    )
