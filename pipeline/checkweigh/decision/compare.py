"""A check of quality and its paired sample -> a Comparison. Pure; chooses the estimator, nothing else.

1. A sample with problems, too few items or clusters, or constant graded scores is ``Inestimable``; so are lengths that
   are constant in both arms. In one arm alone constant lengths may block, and never pass.
2. Two executions with equal raw outputs on every item are ``Identical`` (event indicators are not: all-zero
   events in both arms have a score interval of their own).
3. Otherwise the metric's estimator runs twice. Estimate and block test use the complete pairs. The pass test counts a
   candidate's failure as the worst value and a baseline's as the best. Metrics without a worst value cannot pass above
   0.5% failures ("Failed items are evidence" in docs/statistics.md).
4. At one of several looks the same tests are inverted at that look's levels. Bounds are repeated confidence bounds: the
   lower one at the pass level, the upper one at the block level. Where a look cannot pass there is no lower bound.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from checkweigh.decision.looks import Level, single_look_level
from checkweigh.decision.pairing import PairedSample
from checkweigh.records.comparison import Comparison, Estimate, Identical, Inestimable
from checkweigh.records.metrics import METRICS
from checkweigh.records.policy import Check
from checkweigh.stats import (
    MIN_EFFECTIVE_CLUSTERS,
    Evidence,
    Partition,
    clustered_mean,
    clustered_proportion,
    clustered_tango,
    differing_share_upper,
    effective_binary_n,
    least_n_without_flips,
    ratio_difference,
)
from checkweigh.stats.arrays import Bools, Floats

MAX_UNBOUNDED_FAILURES = 0.005
EVENTS = frozenset({"bad_ending", "truncated", "empty", "looping", "failed"})


def margin_of(check: Check) -> float:
    """The margin on the scale of the comparison: a relative rise or fall becomes the log ratio of that size.

    It is applied in the pass test of each estimator, in the block rule (``verdict``) and in the text (``wording``).
    """
    if check.scale != "relative":
        return check.margin
    falls = check.direction == "higher" and check.kind != "equivalence"
    return float(-np.log1p(-check.margin)) if falls else float(np.log1p(check.margin))


def compare(check: Check, sample: PairedSample, *, alpha: float | Level) -> Comparison:
    """The comparison of one check, from paired values of its metric.

    ``alpha``: the one-sided level of the only look, or the levels of one of several looks. Degenerate samples come back
    as ``Inestimable`` with the reason, never as an interval.
    """
    level = alpha if isinstance(alpha, Level) else single_look_level(alpha)
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
    opposite = mirrored_check(check)
    block = _estimate(opposite, _take(sample, complete), level.high)
    return equivalence_of(record, _record(opposite, sample, complete, block, level))


def compare_many(check: Check, sample: PairedSample, *, alpha: float | Level) -> tuple[Comparison, ...]:
    """``compare`` of many samples of the same items at once, as simulations need it; both arms are (runs, n).

    The samples must be complete and have no raw outputs. Raises ValueError where an item failed or all are identical.
    """
    level = alpha if isinstance(alpha, Level) else single_look_level(alpha)
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
    comparisons: list[Comparison] = []
    for i, (baseline, candidate) in enumerate(zip(sample.baseline, sample.candidate, strict=True)):
        both = float(means[0][i]), float(means[1][i])
        row = replace(sample, baseline=baseline, candidate=candidate)
        reason = _unusable(check, row, whole, level)
        reason = reason or (shared if block.estimable[i] else _degenerate(check, first, block, level, i))
        if reason:
            comparisons.append(Inestimable(reason=reason, baseline=both[0], candidate=both[1]))
        else:
            constant = _one_length(check, row, whole)
            side = None if constant else passing
            record = to_estimate(check, block, side, level, pairs=block.n, means=both, at=i)
            comparisons.append(record.model_copy(update={"exclusions": constant}))
    return tuple(comparisons)


def _means(sample: PairedSample, values: Floats) -> Floats:
    """``_mean`` of every sample at once."""
    if METRICS[sample.metric].estimator == "ratio":
        return np.asarray(values.sum(axis=-1) / sample.size.sum())
    return np.asarray(values @ (sample.weights / sample.weights.sum()))


def _paired_binary(sample: PairedSample) -> bool:
    """Whether every value is 0 or 1: then flips are counted, and items weigh the same."""
    values = np.concatenate([sample.baseline, sample.candidate])
    bounded = METRICS[sample.metric].estimator in ("graded", "binary")
    return bounded and bool(np.isin(values[~np.isnan(values)], (0.0, 1.0)).all())


def mirrored_check(check: Check) -> Check:
    """The same check looking the other way."""
    return check.model_copy(update={"direction": "lower" if check.direction == "higher" else "higher"})


def equivalence_of(record: Estimate, mirrored: Estimate) -> Estimate:
    """Two one-sided tests (Schuirmann 1987): equivalence needs both; either side may block."""
    return record.model_copy(
        update={"p_pass": max(record.p_pass, mirrored.p_pass), "p_better": mirrored.p_worse}
    )


def orientation(check: Check) -> float:
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
    reasons = []
    for arm, values in (("baseline", sample.baseline), ("candidate", sample.candidate)):
        scores = values[complete] / sample.size[complete]
        if np.ptp(scores) == 0:
            length = f"every reply of the {arm} has exactly {np.exp(scores[0]):.0f} tokens"
            score = f"the {arm}'s scores are all {scores[0]:g}; a constant says nothing"
            reasons.append(length if METRICS[check.metric].estimator == "log_length" else score)
    return tuple(reasons)


def _one_length(check: Check, sample: PairedSample, complete: Bools) -> tuple[str, ...]:
    """Why lengths that do not vary in one arm cannot pass: an exclusion, or none."""
    if METRICS[check.metric].estimator != "log_length":
        return ()
    return tuple(f"{reason}: no pass" for reason in _constant(check, sample, complete))


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
    margin, sign = margin_of(check), orientation(check)
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
    sign, limit = orientation(check), check.margin
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
    record = to_estimate(check, block, passing, level, pairs=block.n, means=(means[0], means[1]))
    return record.model_copy(
        update={
            "failed_baseline": int(failed_b.sum()),
            "failed_candidate": int(failed_c.sum()),
            "exclusions": exclusions,
        }
    )


def to_estimate(
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
