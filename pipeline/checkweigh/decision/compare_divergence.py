"""What the divergence of two arms comes to: a summary of a set for people, and the comparison of a check. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from checkweigh.decision.compare import MAX_UNBOUNDED_FAILURES
from checkweigh.decision.looks import Level, single_look_level
from checkweigh.records.calibration import Floor
from checkweigh.records.comparison import Comparison, Estimate, Identical, Inestimable
from checkweigh.records.decision import DivergenceSummary, DivergingToken
from checkweigh.records.evalset import EvalSet
from checkweigh.records.measurement import MeasurementSet, Observation, Scored
from checkweigh.records.policy import Check
from checkweigh.stats import MIN_EFFECTIVE_CLUSTERS, Partition, differing_share_upper
from checkweigh.stats.estimators.mean_kl import MIN_DOCUMENTS, divergence_evidence, typical_divergence

WORST = 12  # tokens shown of a set
SERVED = ("vllm", "openai")  # engines that say only their likeliest tokens
BOUND = "a lower bound, from the 20 likeliest tokens of each arm: it can show a difference and never that there is none"


def divergence_summary(evalset: EvalSet, record: MeasurementSet) -> DivergenceSummary | None:
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
    check: Check,
    sets: Sequence[EvalSet],
    records: Mapping[str, MeasurementSet],
    why_absent: str,
    *,
    floor: Floor | None,
    alpha: float | Level,
) -> Comparison:
    """What the divergence says about the check. Without a noise floor (the divergence of the baseline from itself) a
    number is all there is: whether it is much or little cannot be told. A server's is a lower bound, from its likeliest
    tokens: it may block and never passes."""
    missing = [s.card.name for s in sets if s.card.name not in records]
    if missing:
        return Inestimable(reason=f"no divergence on {', '.join(missing)}: {why_absent or 'not measured'}")
    clusters = {(s.card.name, item.id): f"{s.card.name}/{item.cluster}" for s in sets for item in s.items}
    pairs = [(s.card.name, o) for s in sets for o in records[s.card.name].observations]
    scored = [(clusters[name, o.item], _value(o, "kl")) for name, o in pairs if isinstance(o.outcome, Scored)]
    if not scored:
        return Inestimable(reason="no document has a divergence")
    values = np.array([value for _, value in scored])
    if floor is None:
        theta = float(typical_divergence(values))
        measured = f"{theta:.4g} nats/token over {len(scored)} of {len(pairs)} documents"
        why = "no noise floor has been measured (checkweigh calibrate), so that it cannot be told whether this is much"
        return Inestimable(reason=f"{measured}; {why}", candidate=theta)
    level, failed = alpha if isinstance(alpha, Level) else single_look_level(alpha), len(pairs) - len(scored)
    partition = Partition.from_labels([label for label, _ in scored])
    few = _few(check, level, len(scored), failed, partition.clusters)
    if few:
        return Inestimable(reason=few)
    bound = any(records[s.card.name].identity.kind in SERVED for s in sets)
    if bound and not values.any():
        return Inestimable(reason=f"the divergence is at least 0: {BOUND}", candidate=0.0)
    if failed and not values.any():
        return Inestimable(
            reason=f"{failed} documents failed, and the other {len(scored)} do not diverge: no interval can be stated"
        )
    if not values.any():
        share = differing_share_upper(partition.clusters, level.passing) if level.passing else 1.0
        return Identical(
            pairs=len(scored), clusters=partition.clusters, differing_share_upper=share, baseline=0, candidate=0,
            confidence=1 - level.passing,
        )  # fmt: skip
    evidence, passing = (
        divergence_evidence(
            values,
            partition,
            margin=check.margin,
            floor=floor.upper,
            kappa=floor.kappa,
            alpha=alpha_of_test or level.high,
        )
        for alpha_of_test in (level.high, level.passing)
    )
    if not evidence.estimable or evidence.g_eff < MIN_EFFECTIVE_CLUSTERS:
        return Inestimable(
            reason="the divergences do not vary, or too few works are left; no interval can be stated"
        )
    sound = failed <= MAX_UNBOUNDED_FAILURES * len(pairs)
    note = f"{failed} documents failed{'' if sound else f', more than {MAX_UNBOUNDED_FAILURES:.1%}: no pass'}"
    usable = sound and level.passing > 0 and not bound
    return Estimate(
        effect=float(evidence.effect), low=float(passing.lower) if usable else None, high=float(evidence.upper),
        confidence=1 - level.passing, confidence_high=None if level.high == level.passing else 1 - level.high,
        method=evidence.method, pairs=len(scored), clusters=evidence.clusters,
        effective_clusters=evidence.g_eff, design_effect=float(evidence.design_effect), se=float(evidence.se),
        p_pass=float(passing.p_noninferior) if usable else 1.0, p_worse=float(evidence.p_worse),
        baseline=floor.floor, candidate=-float(evidence.effect), failed_candidate=failed,
        exclusions=((note,) if failed else ()) + ((BOUND,) if bound else ()),
    )  # fmt: skip


def _few(check: Check, level: Level, scored: int, failed: int, clusters: int) -> str:
    """What there is too little of: documents at this look, or documents and works of the whole plan."""
    if scored < MIN_DOCUMENTS:
        return f"{scored} documents, {MIN_DOCUMENTS} needed"
    documents = scored if level.items is None else level.items - failed
    if documents < check.min_items:
        return f"{documents} documents, {check.min_items} needed"
    works = clusters if level.clusters is None else level.clusters
    return f"{works} clusters, {check.min_clusters} needed" if works < check.min_clusters else ""


def _value(observation: Observation, name: str) -> float:
    assert isinstance(observation.outcome, Scored)
    return observation.outcome.values.get(name, np.nan)
