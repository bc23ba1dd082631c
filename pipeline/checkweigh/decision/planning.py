"""What a policy's sets can settle, from how paired differences scatter. Pure.

1. ``Noise`` of each metric on each set: measured between two stored executions, or assumed and said to be.
2. A check's standard error follows from the noise, the clusters and the weights of its items, by design.
3. An equal candidate passes a check with probability Phi(m / se - t), a paired 0/1 check by Tango's null variance;
   all critical ones together with the product, which is cautious where they are positively correlated.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from checkweigh.decision.compare import margin_of
from checkweigh.decision.looks import Look, looks_for_sets
from checkweigh.decision.pairing import PairedSample
from checkweigh.decision.verdict import all_checks, gating_checks, hypothesis_count
from checkweigh.records.evalset import EvalSet, Item, Text
from checkweigh.records.metrics import METRICS
from checkweigh.records.policy import Check, Policy
from checkweigh.records.sample_plan import PlannedCheck
from checkweigh.stats import (
    MIN_EFFECTIVE_CLUSTERS,
    Partition,
    clustered_mean,
    effective_binary_n,
    least_n_without_flips,
)
from checkweigh.stats.estimators.binary import PRIOR_CORRELATION, PRIOR_FLIPS
from checkweigh.stats.estimators.mean_kl import MIN_DOCUMENTS
from checkweigh.stats.power import (
    detectable_binary,
    pass_probability_binary,
    required_n,
    required_n_binary,
    standard_errors_needed,
)

JOINT = (0.8, 0.9)
BYTES_A_TOKEN = 4.2  # of English text, where no tokens have been counted
ASSUMED = "assumed: a little more than int8 weights make the shipped model scatter"


@dataclass(frozen=True, slots=True, kw_only=True)
class Noise:
    """How one metric's paired differences scatter on one set, between arms that are equal on average.

    ``sd``: of an item's difference: points, log tokens, nats a token (bits a byte) of a document, log ratio of a pair
    of blocks. ``flips``: share of items that change, where values are 0 or 1, else None; ``rate``: share of good ones.
    ``correlation``: of the differences within a cluster.
    """

    sd: float
    flips: float | None = None
    rate: float = 0.6
    correlation: float = 0.2
    source: str = ASSUMED


Noises = Callable[[EvalSet, Check], Noise]


def assumed_noise(kind: str, metric: str) -> Noise:
    """What is assumed of a metric on a set of one kind, for want of a measurement."""
    match METRICS[metric].estimator:
        case "ratio":
            return Noise(sd=0.03 if metric == "log_perplexity" else 0.01)
        case "log_length":
            return Noise(sd=0.3)
        case "binary":
            flips = {"failed": 0.0, "accuracy": 0.05}.get(metric, 0.01)
            return Noise(sd=math.sqrt(flips), flips=flips, rate=0.7 if metric == "accuracy" else 0.98)
    return Noise(sd=0.1) if kind == "choice" else Noise(sd=math.sqrt(0.1), flips=0.1)


def assumed_block_noise(check: Check, requests: int) -> Noise:
    """What is assumed of a pair of timing blocks on a host that does nothing else.

    For rates, the share of requests on which the arms differ.
    """
    if METRICS[check.metric].unit == "share":
        return Noise(
            sd=0.1, flips=0.01, correlation=0.0, source="assumed: one request in a hundred ends differently"
        )
    long = {"p50": 0.13, "p90": 0.2, "p99": 0.38}.get(check.statistic, 0.02)
    sd = long if requests > 1 or check.metric == "peak_memory" else 0.25
    return Noise(sd=sd, correlation=0.0, source="assumed: two noisy cores")


def measured_noise(sample: PairedSample, source: str) -> Noise | None:
    """The noise between two executions; None when they are equal everywhere, or nothing is left to look at."""
    kept = np.isfinite(sample.baseline) & np.isfinite(sample.candidate) & np.isfinite(sample.size)
    delta = ((sample.candidate - sample.baseline) / sample.size)[kept]
    partition = Partition.from_labels([c for c, k in zip(sample.clusters, kept, strict=True) if k])
    if partition.clusters < 2 or not np.ptp(delta) > 0:
        return None
    evidence = clustered_mean(delta, partition, margin=1.0)
    correlation = (float(evidence.design_effect) - 1.0) / (partition.k - 1.0) if partition.k > 1 else 0.0
    values = np.concatenate([sample.baseline[kept], sample.candidate[kept]])
    bounded = METRICS[sample.metric].estimator in ("graded", "binary")
    binary = bounded and bool(np.isin(values, (0.0, 1.0)).all())
    ones = float(sample.baseline[kept].mean())
    return Noise(
        sd=float(delta.std(ddof=1)), flips=float(np.mean(delta != 0)) if binary else None,
        rate=float(np.clip(ones if METRICS[sample.metric].better == "higher" else 1.0 - ones, 0.02, 0.98)),
        correlation=float(np.clip(correlation, 0.0, 0.9)), source=source,
    )  # fmt: skip


def items_of_check(check: Check, evalset: EvalSet) -> list[Item]:
    """The items of a set that the check looks at."""
    wanted = check.where.get("stratum")
    return [item for item in evalset.items if wanted in (None, item.stratum)]


def item_size(check: Check, item: Item) -> float:
    """Tokens or bytes of a document, guessed from its text; 1 for what is no ratio."""
    if METRICS[check.metric].estimator != "ratio" or not isinstance(item, Text):
        return 1.0
    length = len(item.text.encode())
    return max(1.0, length / BYTES_A_TOKEN) if check.metric == "log_perplexity" else float(length)


@dataclass(frozen=True, slots=True)
class _Spread:
    """A check's expected precision. ``flips`` None where it is no paired 0/1 check."""

    items: int
    partition: Partition
    se: float
    design_effect: float
    flips: float | None
    source: str


def _spread(check: Check, sets: Sequence[EvalSet], noises: Noises) -> _Spread:
    weights: list[float] = []
    sds: list[float] = []
    rhos: list[float] = []
    labels: list[str] = []
    noise_by_set = [
        (evalset, noises(evalset, check)) for evalset in sets if evalset.card.name in check.evalset
    ]
    binary = METRICS[check.metric].estimator != "log_length" and all(
        n.flips is not None for _, n in noise_by_set
    )
    for evalset, noise in noise_by_set:
        items = items_of_check(check, evalset)
        strata = Counter(item.stratum for item in items)
        for item in items:
            ratio = METRICS[check.metric].estimator == "ratio"
            weights.append(item_size(check, item) if ratio else 1.0 if binary else 1.0 / strata[item.stratum])
            sds.append(noise.sd)
            rhos.append(noise.correlation)
            labels.append(f"{evalset.card.name}/{item.id if check.metric == 'failed' else item.cluster}")
    w, sd, rho = np.array(weights), np.array(sds), np.array(rhos)
    partition = Partition.from_labels(labels)
    alone = float(np.sum((w * sd) ** 2))
    together = float(np.sum((1 - rho) * (w * sd) ** 2) + np.sum(partition.sums(np.sqrt(rho) * w * sd) ** 2))
    flips = (
        float(np.average([n.flips or 0.0 for _, n in noise_by_set], weights=_counts(check, noise_by_set)))
        if binary
        else None
    )
    design = together / alone if alone > 0 else 1.0
    if flips is not None:
        design = _shrunk(design, flips, partition)
    se = math.sqrt(design * alone) / float(w.sum())
    return _Spread(
        partition.n, partition, se, design, flips, "; ".join(dict.fromkeys(n.source for _, n in noise_by_set))
    )


def _blocks(check: Check, policy: Policy) -> _Spread:
    """Pairs of timing blocks, as many as may be measured; for rates the requests in them."""
    pairs, requests = policy.timing.looks[-1], policy.timing.requests
    noise = assumed_block_noise(check, requests)
    if noise.flips is None:
        return _Spread(
            pairs, Partition.singletons(pairs), noise.sd / math.sqrt(pairs), 1.0, None, noise.source
        )
    partition = Partition(np.arange(pairs * requests) // requests, np.full(pairs, requests))
    design = _shrunk(1.0, noise.flips, partition)
    se = noise.sd * math.sqrt(design / partition.n)
    return _Spread(partition.n, partition, se, design, noise.flips, noise.source)


def _counts(check: Check, noise_by_set: Sequence[tuple[EvalSet, Noise]]) -> list[int]:
    return [len(items_of_check(check, evalset)) for evalset, _ in noise_by_set]


def _shrunk(design: float, flips: float, partition: Partition) -> float:
    """The design effect that Tango's score will be divided by, at the flips to be expected."""
    if partition.clusters == partition.n:
        return 1.0
    seen, guess = flips * partition.n, 1.0 + (partition.k - 1.0) * PRIOR_CORRELATION
    return max(1.0, design, (seen * design + PRIOR_FLIPS * guess) / (seen + PRIOR_FLIPS))


def plan_checks(
    policy: Policy, sets: Sequence[EvalSet], noises: Noises, floors: Sequence[str]
) -> tuple[PlannedCheck, ...]:
    """Every gating check, at the levels of the policy's last look. ``floors``: divergence checks with a noise floor."""
    checks = [
        c for c in gating_checks(policy) if METRICS[c.metric].estimator != "divergence" or c.id in floors
    ]
    last = looks_for_sets(policy, all_checks(policy), sets, hypothesis_count(policy))[-1]
    powered = sum(c.tier == "critical" and _by_being_equal(c) for c in checks)
    return tuple(_planned(check, policy, sets, noises, last, max(1, powered)) for check in checks)


def joint_pass_probability(rows: Sequence[PlannedCheck]) -> float | None:
    """Chance that an equal candidate passes all critical checks; None when none of them can be told."""
    chances = [row.passes for row in rows if row.tier == "critical" and row.passes is not None]
    return math.prod(chances) if chances else None


def plan_problems(rows: Sequence[PlannedCheck], least: float = JOINT[0]) -> tuple[str, ...]:
    """Why a plan cannot settle, in sentences; none when it can."""
    sentences = [f"{row.check}: nothing can pass: {row.impossible}" for row in rows if row.impossible]
    chance = joint_pass_probability(rows)
    if (
        chance is not None
        and chance < least
        and not any(row.impossible for row in rows if row.tier == "critical")
    ):
        weakest = min(
            (r for r in rows if r.tier == "critical" and r.passes is not None), key=lambda r: r.passes or 0.0
        )
        more = (
            f", which needs {weakest.needed_80:,} items and has {weakest.items:,}"
            if weakest.needed_80
            else ""
        )
        sentences.append(
            f"an equal candidate passes all critical checks only {chance:.0%} of the time; weakest is "
            f"{weakest.check}{more} ({weakest.source})"
        )
    return tuple(sentences)


def _by_being_equal(check: Check) -> bool:
    """Whether an equal candidate is meant to pass."""
    return (
        check.kind in ("non_inferiority", "equivalence") and METRICS[check.metric].estimator != "divergence"
    )


def _planned(
    check: Check, policy: Policy, sets: Sequence[EvalSet], noises: Noises, last: Look, powered: int
) -> PlannedCheck:
    margin, alpha = margin_of(check), last.levels[check.id].passing
    timed = METRICS[check.metric].estimator == "blocks"
    spread = _blocks(check, policy) if timed else _spread(check, sets, noises)
    row = PlannedCheck(
        check=check.id, tier="critical" if check.tier == "critical" else "supporting", metric=check.metric,
        margin=margin, items=spread.items, clusters=spread.partition.clusters,
        effective_clusters=spread.partition.g_eff, design_effect=spread.design_effect, flips=spread.flips,
        se=spread.se, passes=None, needed_80=None, needed_90=None, detectable=None,
        impossible=_impossible(check, spread, alpha), source=spread.source,
    )  # fmt: skip
    if not _by_being_equal(check):
        return row.model_copy(update={"passes": 0.0 if row.impossible else None, "note": _note(check)})
    passes = 0.0 if row.impossible else _passes(check, spread, margin, alpha)
    needed = [max(_least(check, spread), _needed(spread, margin, powered, q, alpha)) for q in JOINT]
    return row.model_copy(
        update={
            "passes": passes, "needed_80": needed[0], "needed_90": needed[1],
            "detectable": _detectable(spread, powered, alpha),
        }
    )  # fmt: skip


def _note(check: Check) -> str:
    if METRICS[check.metric].estimator == "divergence":
        return "its noise floor is known, and far below the margin"
    return (
        "superiority: asks for a better candidate"
        if check.kind == "superiority"
        else "depends on the candidate's own level"
    )


def _passes(check: Check, spread: _Spread, margin: float, alpha: float) -> float:
    if spread.flips is not None:
        chance = pass_probability_binary(
            spread.flips, margin, spread.items, design_effect=spread.design_effect, alpha=alpha
        )
    else:
        reach = -special.stdtrit(spread.partition.g_eff - 1.0, alpha)
        chance = float(special.ndtr(margin / spread.se - reach))
    return max(0.0, 2.0 * chance - 1.0) if check.kind == "equivalence" else chance


def _least(check: Check, spread: _Spread) -> int:
    """Items below which the comparison says nothing, however little the differences scatter."""
    if METRICS[check.metric].estimator == "blocks":
        return check.min_clusters * spread.items // spread.partition.clusters
    return max(check.min_items, math.ceil(MIN_EFFECTIVE_CLUSTERS * spread.items / spread.partition.g_eff))


def _needed(spread: _Spread, margin: float, powered: int, joint_pass: float, alpha: float) -> int:
    if spread.flips is not None:
        return required_n_binary(
            spread.flips,
            margin,
            checks=powered,
            joint_pass=joint_pass,
            design_effect=spread.design_effect,
            alpha=alpha,
        )
    sd = spread.se * math.sqrt(spread.items)
    return required_n(sd, margin, checks=powered, joint_pass=joint_pass, alpha=alpha)


def _detectable(spread: _Spread, powered: int, alpha: float) -> float | None:
    if spread.flips is not None:
        return detectable_binary(
            spread.flips, spread.items, checks=powered, design_effect=spread.design_effect, alpha=alpha
        )
    return spread.se * standard_errors_needed(powered, JOINT[0], alpha)


def _impossible(check: Check, spread: _Spread, alpha: float) -> str:
    """What the comparison will refuse whatever the data are."""
    partition, timed = spread.partition, METRICS[check.metric].estimator == "blocks"
    if not timed and spread.items < check.min_items:
        return f"{spread.items} items, {check.min_items} needed"
    if partition.clusters < check.min_clusters:
        return f"{partition.clusters} clusters, {check.min_clusters} needed"
    if METRICS[check.metric].estimator == "divergence" and spread.items < MIN_DOCUMENTS:
        return f"{spread.items} documents, {MIN_DOCUMENTS} needed"
    if not timed and partition.g_eff < MIN_EFFECTIVE_CLUSTERS:
        return f"{partition.g_eff:.0f} effective clusters, {MIN_EFFECTIVE_CLUSTERS} needed"
    if not timed and spread.flips is not None and check.kind in ("non_inferiority", "equivalence"):
        have, need = effective_binary_n(partition), least_n_without_flips(margin_of(check), alpha)
        if have < need:
            return f"{have:.0f} effective items, {need} needed at this margin even without a single flip"
    return ""
