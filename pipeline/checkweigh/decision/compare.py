"""A check and its paired sample -> a Comparison. Pure; chooses the estimator, nothing else.

1. A sample with problems, too few items or clusters, or constant graded scores is ``Inestimable``; so are lengths that
   are constant in both arms. In one arm alone constant lengths may block, and never pass.
2. Two executions with equal raw outputs on every item are ``Identical`` (event indicators are not: all-zero
   events in both arms have a score interval of their own).
3. Otherwise the metric's estimator runs twice: on complete pairs (estimate, block test) and, where an item
   failed, with a candidate's failure as the worst value and a baseline's as the best (pass test). Metrics
   without a worst value cannot pass above 0.5% failures. (STATISTICS.md, "Failed items".)
4. At one of several looks the same tests are inverted at that look's levels: bounds are repeated confidence bounds, the
   lower one at the pass level and the upper one at the block level. Where a look cannot pass there is no lower bound.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from checkweigh.decision.looks import Level, alone
from checkweigh.decision.pairing import Bools, Floats, PairedSample
from checkweigh.records.comparison import Comparison, Estimate, Identical, Inestimable
from checkweigh.records.measurement import PairedRun
from checkweigh.records.metrics import METRICS
from checkweigh.records.policy import Check
from checkweigh.stats import (
    MIN_BLOCKS,
    MIN_EFFECTIVE_CLUSTERS,
    Evidence,
    Partition,
    block_log_ratio,
    block_rates,
    clustered_mean,
    clustered_proportion,
    clustered_tango,
    differing_share_upper,
    effective_binary_n,
    least_n_without_flips,
    nominal_level,
    ratio_difference,
)

MAX_UNBOUNDED_FAILURES = 0.005
EVENTS = frozenset({"bad_ending", "truncated", "empty", "looping", "failed"})


def margin_of(check: Check) -> float:
    """The margin on the scale of the comparison: a relative rise or fall becomes the log ratio of that size."""
    if check.scale != "relative":
        return check.margin
    falls = check.direction == "higher" and check.kind != "equivalence"
    return float(-np.log1p(-check.margin)) if falls else float(np.log1p(check.margin))


def compare(check: Check, sample: PairedSample, *, alpha: float | Level) -> Comparison:
    """What the sample says about the check: one look at all of it at a one-sided level, or a look at its levels."""
    level = alpha if isinstance(alpha, Level) else alone(alpha)
    failed_b, failed_c = sample.failed
    complete = ~(failed_b | failed_c)
    if _paired_binary(sample):
        sample = replace(sample, weights=np.ones_like(sample.weights))
    means = _mean(sample, sample.baseline), _mean(sample, sample.candidate)
    reason = _unusable(check, sample, complete, level)
    if reason is None and sample.identical and check.metric not in EVENTS and check.kind != "absolute":
        return _identical(sample, level)
    if reason is not None:
        return Inestimable(reason=reason, baseline=means[0], candidate=means[1])
    block = _estimate(check, _take(sample, complete), level.high)
    reason = _degenerate(check, sample, block, level)
    if reason is not None:
        return Inestimable(reason=reason, baseline=means[0], candidate=means[1])
    record = _record(check, sample, complete, block, level)
    if check.kind != "equivalence":
        return record
    opposite = _mirror(check)
    block = _estimate(opposite, _take(sample, complete), level.high)
    return _both_sides(record, _record(opposite, sample, complete, block, level))


def compare_many(check: Check, sample: PairedSample, *, alpha: float | Level) -> tuple[Comparison, ...]:
    """``compare`` of many samples of the same items at once, as simulations need it: both arms are (runs, n).

    For complete samples without raw outputs: nothing has failed and nothing is identical. Both raise ValueError.
    """
    level = alpha if isinstance(alpha, Level) else alone(alpha)
    if sample.identical or not (np.isfinite(sample.baseline).all() and np.isfinite(sample.candidate).all()):
        raise ValueError("expected complete samples, and none that is identical")
    first = replace(sample, baseline=sample.baseline[0], candidate=sample.candidate[0])
    if check.kind == "equivalence" or _paired_binary(first) != _paired_binary(sample):
        rows = zip(sample.baseline, sample.candidate, strict=True)
        return tuple(compare(check, replace(sample, baseline=b, candidate=c), alpha=level) for b, c in rows)
    if _paired_binary(sample):
        sample = replace(sample, weights=np.ones_like(sample.weights))
    block = _estimate(check, sample, level.high)
    passing = block if level.passing == level.high else None
    if passing is None and level.passing:
        passing = _estimate(check, sample, level.passing)
    means = [_means(sample, values) for values in (sample.baseline, sample.candidate)]
    sure = np.flatnonzero(block.estimable)
    whole = np.ones(first.baseline.shape, dtype=np.bool_)
    shared = _degenerate(check, first, block, level, int(sure[0])) if len(sure) else None
    found: list[Comparison] = []
    for i, (baseline, candidate) in enumerate(zip(sample.baseline, sample.candidate, strict=True)):
        both = float(means[0][i]), float(means[1][i])
        row = replace(sample, baseline=baseline, candidate=candidate)
        reason = _unusable(check, row, whole, level)
        reason = reason or (shared if block.estimable[i] else _degenerate(check, first, block, level, i))
        if reason:
            found.append(Inestimable(reason=reason, baseline=both[0], candidate=both[1]))
        else:
            constant = _one_length(check, row, whole)
            side = None if constant else passing
            record = _to_record(check, block, side, level, pairs=block.n, means=both, at=i)
            found.append(record.model_copy(update={"exclusions": constant}))
    return tuple(found)


def _means(sample: PairedSample, values: Floats) -> Floats:
    """``_mean`` of every sample at once."""
    if METRICS[sample.metric].estimator == "ratio":
        return np.asarray(values.sum(axis=-1) / sample.size.sum())
    return np.asarray(values @ (sample.weights / sample.weights.sum()))


def block_key(check: Check) -> str:
    """Name of the value in a block that a check on timing, memory or a rate looks at."""
    return check.metric if check.statistic == "mean" else f"{check.metric}.{check.statistic}"


def compare_blocks(check: Check, run: PairedRun | None, *, alpha: float | Level) -> Comparison:
    """Timing, memory and rates: one datum for each pair of blocks; p and bounds are those of repeated looks."""
    if run is None:
        return Inestimable(reason="timing was not measured")
    level = alpha if isinstance(alpha, Level) else alone(alpha)
    key = block_key(check)
    rows = [(b.baseline.get(key, np.nan), b.candidate.get(key, np.nan)) for b in run.blocks]
    values = np.array(rows, dtype=np.float64).reshape(-1, 2)
    if reason := _unusable_blocks(check, run, values):
        return Inestimable(reason=reason)
    nominal = nominal_level(run.looks, level.passing)
    middle = np.mean if METRICS[check.metric].unit == "share" else np.median
    means = float(middle(values[:, 0])), float(middle(values[:, 1]))
    sides = (check, _mirror(check))[: 2 if check.kind == "equivalence" else 1]
    records = []
    for side in sides:
        block, passing, exclusions = _blocks_evidence(side, run, values, nominal)
        if not block.estimable.all():
            return Inestimable(reason="the blocks do not vary, so that no interval can be stated")
        record = _to_record(side, block, passing, level, pairs=len(values), means=means)
        records.append(
            _repeated(record, run, level.passing / nominal).model_copy(update={"exclusions": exclusions})
        )
    return records[0] if len(records) == 1 else _both_sides(*records)


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
    """Evidence of the block test, of the pass test, and what kept the two apart (STATISTICS, "Failed items").

    Fewer pairs than the policy asks for cannot pass. They may block: a slow candidate is what makes a run too long, and
    where the arms are equal how many pairs fit into the time does not know which arm is which.
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
        [[v.get(key, own) for v, own in zip(a, o, strict=True)] for a, o in zip(arms, values, strict=True)]
    )
    if (bounds == values).all():
        return block, block, ()
    note = "requests without an answer count against the arm that left them so"
    if (bounds <= 0).any():
        return block, None, (note, "the baseline left too many: no pass")
    return block, block_log_ratio(_log_ratios(check, bounds), margin=margin, alpha=alpha), (note,)


def _log_ratios(check: Check, values: Floats) -> Floats:
    return np.asarray(_sign(check) * np.log(values[:, 1] / values[:, 0]))


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


def _paired_binary(sample: PairedSample) -> bool:
    """Whether every value is 0 or 1: then flips are counted, and items weigh the same."""
    values = np.concatenate([sample.baseline, sample.candidate])
    bounded = METRICS[sample.metric].estimator in ("graded", "binary")
    return bounded and bool(np.isin(values[~np.isnan(values)], (0.0, 1.0)).all())


def _mirror(check: Check) -> Check:
    """The same check looking the other way."""
    return check.model_copy(update={"direction": "lower" if check.direction == "higher" else "higher"})


def _both_sides(record: Estimate, mirrored: Estimate) -> Estimate:
    """Two one-sided tests (Schuirmann 1987): equivalence needs both; either side may block."""
    return record.model_copy(
        update={"p_pass": max(record.p_pass, mirrored.p_pass), "p_better": mirrored.p_worse}
    )


def _sign(check: Check) -> float:
    return 1.0 if check.direction == "higher" else -1.0


def _mean(sample: PairedSample, values: Floats) -> float | None:
    """The arm's own level, for people: weighted mean, or total over total size."""
    usable = np.isfinite(values) & np.isfinite(sample.size)
    if not usable.any():
        return None
    if METRICS[sample.metric].estimator == "ratio":
        total = float(sample.size[usable].sum())
        return float(values[usable].sum()) / total if total > 0 else None
    return float(np.average(values[usable], weights=sample.weights[usable]))


def _unusable(check: Check, sample: PairedSample, complete: Bools, level: Level) -> str | None:
    if sample.problems:
        return "; ".join(sample.problems)
    n = len(sample.clusters) if level.items is None else level.items
    labels = len(set(sample.clusters)) if level.clusters is None else level.clusters
    if n < check.min_items:
        return f"{n} items, {check.min_items} needed"
    if labels < check.min_clusters:
        return f"{labels} clusters, {check.min_clusters} needed"
    if not complete.any():
        return "every item failed in one arm or the other"
    if check.metric == "failed" and sample.baseline.all():
        return "the baseline has no result for any item"
    if check.metric in EVENTS:
        return None
    constant = _constant(check, sample, complete)
    if METRICS[check.metric].estimator == "log_length":
        return " and ".join(constant) if len(constant) == 2 else None
    return constant[0] if constant else None


def _constant(check: Check, sample: PairedSample, complete: Bools) -> tuple[str, ...]:
    """The arms that have one value throughout, in words."""
    found = []
    for arm, values in (("baseline", sample.baseline), ("candidate", sample.candidate)):
        scores = values[complete] / sample.size[complete]
        if np.ptp(scores) == 0:
            length = f"every reply of the {arm} has exactly {np.exp(scores[0]):.0f} tokens"
            score = f"the {arm}'s scores are all {scores[0]:g}; a constant says nothing"
            found.append(length if METRICS[check.metric].estimator == "log_length" else score)
    return tuple(found)


def _one_length(check: Check, sample: PairedSample, complete: Bools) -> tuple[str, ...]:
    """Why lengths that do not vary in one arm cannot pass: an exclusion, or none."""
    if METRICS[check.metric].estimator != "log_length":
        return ()
    return tuple(f"{one}: no pass" for one in _constant(check, sample, complete))


def _take(sample: PairedSample, keep: Bools) -> PairedSample:
    return replace(
        sample,
        baseline=sample.baseline[keep], candidate=sample.candidate[keep],
        size=sample.size[keep], weights=sample.weights[keep],
        clusters=tuple(label for label, k in zip(sample.clusters, keep, strict=True) if k),
    )  # fmt: skip


def _identical(sample: PairedSample, level: Level) -> Comparison:
    clusters = len(set(sample.clusters))
    mean = _mean(sample, sample.baseline)
    assert mean is not None
    return Identical(
        pairs=len(sample.clusters), clusters=clusters, baseline=mean, candidate=mean, confidence=1 - level.passing,
        differing_share_upper=differing_share_upper(clusters, level.passing) if level.passing else 1.0,
    )  # fmt: skip


def _estimate(check: Check, sample: PairedSample, alpha: float) -> Evidence:
    """The metric's estimator on a sample without failures."""
    partition = Partition.from_labels(sample.clusters)
    margin, sign = margin_of(check), _sign(check)
    if check.kind == "absolute":
        return _absolute(check, sample, partition, alpha)
    if _paired_binary(sample):
        pair = (sample.baseline, sample.candidate)
        first, second = pair if sign > 0 else pair[::-1]
        return clustered_tango(first, second, partition, margin=margin, alpha=alpha)
    delta = sign * (sample.candidate - sample.baseline)
    if METRICS[check.metric].estimator == "ratio":
        return ratio_difference(delta, sample.size, partition, margin=margin, alpha=alpha)
    return clustered_mean(delta, partition, margin=margin, alpha=alpha, weights=_weights(sample))


def _absolute(check: Check, sample: PairedSample, partition: Partition, alpha: float) -> Evidence:
    """The candidate alone against the limit ``check.margin``; effect = how far it is on the good side."""
    sign, limit = _sign(check), check.margin
    if _paired_binary(sample):
        return clustered_proportion(sample.candidate, partition, limit=limit, sign=sign, alpha=alpha)
    if METRICS[check.metric].estimator == "ratio":
        over = sign * (sample.candidate - limit * sample.size)
        return ratio_difference(over, sample.size, partition, margin=0.0, alpha=alpha)
    return clustered_mean(
        sign * (sample.candidate - limit), partition, margin=0.0, alpha=alpha, weights=_weights(sample)
    )


def _weights(sample: PairedSample) -> Floats | None:
    return None if np.ptp(sample.weights) == 0 else sample.weights


def _pass_side(
    check: Check, sample: PairedSample, complete: Bools, block: Evidence, level: Level
) -> tuple[Evidence | None, tuple[str, ...]]:
    """Evidence for the pass test, None when failures or the look forbid a pass, and what was excluded."""
    failed_b, failed_c = sample.failed
    note: tuple[str, ...] = ()
    if not complete.all():
        note = (
            f"{int(failed_b.sum())} items failed in the baseline, {int(failed_c.sum())} in the candidate",
        )
        if METRICS[check.metric].estimator in ("graded", "binary"):
            best = 1.0 if check.direction == "higher" else 0.0
            sample = replace(
                sample,
                baseline=np.where(failed_b, best, sample.baseline),
                candidate=np.where(failed_c, 1.0 - best, sample.candidate),
            )
            return (_estimate(check, sample, level.passing) if level.passing else None), note
        if (~complete).sum() > MAX_UNBOUNDED_FAILURES * len(complete):
            return None, (*note, f"more than {MAX_UNBOUNDED_FAILURES:.1%} failures: no pass")
    if constant := _one_length(check, sample, complete):
        return None, (*note, *constant)
    if not level.passing or level.passing == level.high:
        return (block if level.passing else None), note
    return _estimate(check, _take(sample, complete), level.passing), note


def _degenerate(
    check: Check, sample: PairedSample, evidence: Evidence, level: Level, at: int | tuple[()] = ()
) -> str | None:
    if not evidence.estimable[at]:
        return "the differences do not vary, or too few clusters are left; no interval can be stated"
    partition = Partition.from_labels(sample.clusters)
    if evidence.g_eff < MIN_EFFECTIVE_CLUSTERS:
        return f"{evidence.g_eff:.0f} effective clusters, {MIN_EFFECTIVE_CLUSTERS} needed"
    growing = level.items is not None and len(sample.clusters) < level.items
    if _paired_binary(sample) and check.kind != "absolute" and not growing:
        have, need = effective_binary_n(partition), least_n_without_flips(margin_of(check))
        if have < need:
            return f"{have:.0f} effective items, {need} needed before any data could pass at this margin"
    return None


def _record(check: Check, sample: PairedSample, complete: Bools, block: Evidence, level: Level) -> Estimate:
    failed_b, failed_c = sample.failed
    passing, exclusions = _pass_side(check, sample, complete, block, level)
    means = _mean(sample, sample.baseline), _mean(sample, sample.candidate)
    assert means[0] is not None
    assert means[1] is not None
    record = _to_record(check, block, passing, level, pairs=block.n, means=(means[0], means[1]))
    return record.model_copy(
        update={
            "failed_baseline": int(failed_b.sum()),
            "failed_candidate": int(failed_c.sum()),
            "exclusions": exclusions,
        }
    )


def _to_record(
    check: Check,
    block: Evidence,
    passing: Evidence | None,
    level: Level,
    *,
    pairs: int,
    means: tuple[float, float],
    at: int | tuple[()] = (),
) -> Estimate:
    """The record of one comparison, ``at`` its place on the simulation axis; () where there is no such axis."""
    usable = passing is not None and bool(passing.estimable[at])
    return Estimate(
        effect=float(block.effect[at]), low=float(passing.lower[at]) if passing and usable else None,
        high=float(block.upper[at]), confidence=1 - level.passing, method=block.method, pairs=pairs,
        clusters=block.clusters, effective_clusters=float(block.g_eff),
        design_effect=float(block.design_effect[at]), se=float(block.se[at]),
        flips=None if block.flips is None else int(block.flips[at]),
        p_pass=float((passing.p_superior if check.kind == "superiority" else passing.p_noninferior)[at])
        if passing and usable else 1.0,
        p_worse=float(block.p_worse[at]), baseline=means[0], candidate=means[1],
        confidence_high=None if level.high == level.passing else 1 - level.high,
    )  # fmt: skip
