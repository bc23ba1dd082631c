"""Contrasts between executions of one manifest -> noise floors; and what a floor says of a policy. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

from checkweigh.decision.compare import margin_of
from checkweigh.records.calibration import HONEST, LEAST_KL, Calibration, Floor
from checkweigh.records.comparison import Comparison, Estimate, Identical
from checkweigh.records.evalset import EvalSet
from checkweigh.records.metrics import METRICS
from checkweigh.records.policy import Check
from checkweigh.stats.estimators.mean_kl import KAPPA, typical_divergence


def difference_floor(
    check: Check, evalsets: Mapping[str, str], contrasts: Sequence[Comparison]
) -> Floor | str:
    """The floor of a difference, or why there is none. Equal outputs are a contrast of zero."""
    sizes = [
        0.0 if isinstance(c, Identical) else abs(c.effect) if isinstance(c, Estimate) else None
        for c in contrasts
    ]
    if not sizes or any(size is None for size in sizes):
        reasons = {c.reason for c in contrasts if not isinstance(c, Estimate | Identical)}
        return "; ".join(sorted(reasons)) or "no contrast was measured"
    values = np.array(sizes, dtype=np.float64)
    floor = float(np.quantile(values, 0.95))
    return Floor(
        metric=check.metric, statistic=check.statistic, evalsets=dict(evalsets), where=check.where,
        contrasts=tuple(values.tolist()), floor=floor, honest=HONEST * floor,
    )  # fmt: skip


def divergence_floor(
    check: Check, evalsets: Mapping[str, str], contrasts: Sequence[ArrayLike]
) -> Floor | str:
    """The floor of a divergence from (documents,) values of each contrast, nats a token."""
    documents = [np.asarray(kl, dtype=np.float64) for kl in contrasts]
    if len(documents) < 2 or not all(
        len(kl) and np.isfinite(kl).all() and (kl >= 0).all() for kl in documents
    ):
        return "a document has no divergence in some contrast"
    kappa = max(float(np.median(np.concatenate(documents))), KAPPA)
    thetas = np.array([float(typical_divergence(kl, kappa=kappa)) for kl in documents])
    floor = float(np.quantile(thetas, 0.95))
    return Floor(
        metric=check.metric, statistic=check.statistic, evalsets=dict(evalsets), where=check.where,
        contrasts=tuple(thetas.tolist()), floor=floor, honest=max(LEAST_KL, HONEST * floor),
        upper=float(thetas.max()), kappa=kappa,
    )  # fmt: skip


def floor_of(check: Check, sets: Sequence[EvalSet], calibrations: Sequence[Calibration]) -> Floor | None:
    """The newest floor of what the check measures, on these very sets; None when there is none."""
    digests = {s.card.name: s.card.digest for s in sets if s.card.name in check.evalset}
    for calibration in sorted(calibrations, key=lambda c: c.made, reverse=True):
        for floor in calibration.floors:
            same = (floor.metric, floor.statistic, floor.where) == (
                check.metric,
                check.statistic,
                check.where,
            )
            if same and floor.evalsets == digests:
                return floor
    return None


def below_floor(check: Check, floor: Floor | None) -> str | None:
    """Why the check's margin is not honest: noise alone may exceed a third of it. None when it is, or none is known."""
    if floor is None or check.tier == "advisory" or check.kind not in ("non_inferiority", "equivalence"):
        return None
    margin = margin_of(check)
    if margin >= floor.honest:
        return None
    unit = METRICS[check.metric].unit
    return (
        f"a margin of at least {floor.honest:.4g} {unit}: three times what the baseline differs from itself by "
        f"({floor.floor:.4g}, 95th percentile of {len(floor.contrasts)} contrasts)"
    )
