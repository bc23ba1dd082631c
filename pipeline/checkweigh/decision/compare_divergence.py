"""What the divergence of two arms comes to: a summary of a set for people, and the comparison of a check. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from checkweigh.decision.compare import MAX_UNBOUNDED_FAILURES
from checkweigh.decision.looks import Level, single_look_level
from checkweigh.records.calibration import Floor
from checkweigh.records.comparison import Comparison, Estimate, Identical, Inestimable
from checkweigh.records.decision import DivergenceSummary, DivergingToken
from checkweigh.records.evalset import EvalSet
from checkweigh.records.manifest import SERVER_KINDS
from checkweigh.records.measurement import MeasurementSet, Observation, Scored
from checkweigh.records.policy import Check
from checkweigh.stats import MIN_EFFECTIVE_CLUSTERS, Partition, differing_share_upper
from checkweigh.stats.arrays import Floats
from checkweigh.stats.estimators.mean_kl import MIN_DOCUMENTS, divergence_evidence, typical_divergence

WORST = 12  # tokens shown of a set
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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Documents:
    """Divergence and cluster of each document that has one. ``bound``: a server gave them, so they are lower bounds."""

    values: Floats
    clusters: tuple[str, ...]
    failed: int
    bound: bool

    @property
    def total(self) -> int:
        """Documents, failed ones included."""
        return len(self.clusters) + self.failed


def compare_divergence(
    check: Check,
    sets: Sequence[EvalSet],
    records: Mapping[str, MeasurementSet],
    why_absent: str,
    *,
    floor: Floor | None,
    alpha: float | Level,
) -> Comparison:
    """The comparison of a check on divergence, from ``records``: set -> divergence of each document.

    ``floor``: the divergence of the baseline from itself. Without it nothing says whether a divergence is large, so the
    check informs only. A server's divergence is a lower bound, from its likeliest tokens: it may block, never pass.
    ``alpha``: the one-sided level of the only look, or the levels of one of several looks.
    """
    missing = [s.card.name for s in sets if s.card.name not in records]
    if missing:
        return Inestimable(reason=f"no divergence on {', '.join(missing)}: {why_absent or 'not measured'}")
    documents = _documents(sets, records)
    if not documents.clusters:
        return Inestimable(reason="no document has a divergence")
    if floor is None:
        theta = float(typical_divergence(documents.values))
        measured = f"{theta:.4g} nats/token over {len(documents.clusters)} of {documents.total} documents"
        why = "no noise floor has been measured (checkweigh calibrate), so that it cannot be told whether this is much"
        return Inestimable(reason=f"{measured}; {why}", candidate=theta)
    level = alpha if isinstance(alpha, Level) else single_look_level(alpha)
    partition = Partition.from_labels(documents.clusters)
    if few := _few(check, level, documents, partition.clusters):
        return Inestimable(reason=few)
    if not documents.values.any():
        return _no_divergence(documents, partition, level)
    return _estimate(check, documents, partition, floor, level)


def _documents(sets: Sequence[EvalSet], records: Mapping[str, MeasurementSet]) -> _Documents:
    clusters = {(s.card.name, item.id): f"{s.card.name}/{item.cluster}" for s in sets for item in s.items}
    pairs = [(s.card.name, o) for s in sets for o in records[s.card.name].observations]
    scored = [(name, o) for name, o in pairs if isinstance(o.outcome, Scored)]
    return _Documents(
        values=np.array([_value(o, "kl") for _, o in scored]),
        clusters=tuple(clusters[name, o.item] for name, o in scored),
        failed=len(pairs) - len(scored),
        bound=any(records[s.card.name].identity.kind in SERVER_KINDS for s in sets),
    )


def _few(check: Check, level: Level, documents: _Documents, clusters: int) -> str:
    """What there is too little of: documents at this look, or documents and works of the whole plan."""
    scored = len(documents.clusters)
    if scored < MIN_DOCUMENTS:
        return f"{scored} documents, {MIN_DOCUMENTS} needed"
    planned = scored if level.items is None else level.items - documents.failed
    if planned < check.min_items:
        return f"{planned} documents, {check.min_items} needed"
    works = clusters if level.clusters is None else level.clusters
    return f"{works} clusters, {check.min_clusters} needed" if works < check.min_clusters else ""


def _no_divergence(documents: _Documents, partition: Partition, level: Level) -> Comparison:
    """No document diverges: identical, unless failures or a server's short lists leave it open."""
    scored = len(documents.clusters)
    if documents.bound:
        return Inestimable(reason=f"the divergence is at least 0: {BOUND}", candidate=0.0)
    if documents.failed:
        return Inestimable(
            reason=f"{documents.failed} documents failed, and the other {scored} do not diverge: "
            "no interval can be stated"
        )
    share = differing_share_upper(partition.clusters, level.passing) if level.passing else 1.0
    return Identical(
        pairs=scored, clusters=partition.clusters, differing_share_upper=share, baseline=0, candidate=0,
        confidence=1 - level.passing,
    )  # fmt: skip


def _estimate(
    check: Check, documents: _Documents, partition: Partition, floor: Floor, level: Level
) -> Comparison:
    """The estimate against margin and floor. The lower bound is left out where nothing can pass."""
    evidence, passing = (
        divergence_evidence(
            documents.values, partition, margin=check.margin, floor=floor.upper, kappa=floor.kappa,
            alpha=alpha_of_test or level.high,
        )
        for alpha_of_test in (level.high, level.passing)
    )  # fmt: skip
    if not evidence.estimable or evidence.g_eff < MIN_EFFECTIVE_CLUSTERS:
        return Inestimable(
            reason="the divergences do not vary, or too few works are left; no interval can be stated"
        )
    few_failed = documents.failed <= MAX_UNBOUNDED_FAILURES * documents.total
    more = "" if few_failed else f", more than {MAX_UNBOUNDED_FAILURES:.1%}: no pass"
    note = f"{documents.failed} documents failed{more}"
    usable = few_failed and level.passing > 0 and not documents.bound
    return Estimate(
        effect=float(evidence.effect), low=float(passing.lower) if usable else None, high=float(evidence.upper),
        confidence=1 - level.passing, confidence_high=None if level.high == level.passing else 1 - level.high,
        method=evidence.method, pairs=len(documents.clusters), clusters=evidence.clusters,
        effective_clusters=evidence.g_eff, design_effect=float(evidence.design_effect), se=float(evidence.se),
        p_pass=float(passing.p_noninferior) if usable else 1.0, p_worse=float(evidence.p_worse),
        baseline=floor.floor, candidate=-float(evidence.effect), failed_candidate=documents.failed,
        exclusions=((note,) if documents.failed else ()) + ((BOUND,) if documents.bound else ()),
    )  # fmt: skip


def _value(observation: Observation, name: str) -> float:
    assert isinstance(observation.outcome, Scored)
    return observation.outcome.values.get(name, np.nan)
