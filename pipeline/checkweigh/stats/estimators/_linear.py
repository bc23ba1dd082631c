"""Ratios of sums, delete-cluster jackknife and Student's t: shared by means and ratios."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from checkweigh.stats._tails import t_isf, t_sf
from checkweigh.stats.arrays import Bools, Floats
from checkweigh.stats.evidence import Evidence, not_estimable
from checkweigh.stats.partition import Partition

# A standard error this small against the data's size, or against the margin, is rounding and not variance.
ROUNDING = 1e-12
IMPLAUSIBLY_SURE = 1e-9


@dataclass(frozen=True, slots=True, eq=False)
class Jackknife:
    """theta = sum(numerator) / sum(weights) with its two variances; arrays (...).

    ``variance`` deletes clusters (CV3), ``variance_iid`` deletes items; ``scale`` is the size of one item's
    contribution, against which rounding is judged.
    """

    theta: Floats
    variance: Floats
    variance_iid: Floats
    scale: Floats
    g_eff: float

    @property
    def design_effect(self) -> Floats:
        """V_CV3 / V_iid; 1 where V_iid is zero and the ratio undefined."""
        zero = self.variance_iid <= (ROUNDING * self.scale) ** 2
        return np.where(zero, 1.0, self.variance / np.where(zero, 1.0, self.variance_iid))


def jackknife(numerator: Floats, weights: Floats, partition: Partition) -> Jackknife:
    """Delete-cluster jackknife of sum(numerator) / sum(weights), centred on the full estimate (CV3).

    numerator (..., n), weights (n,) positive. With residuals e = numerator - theta * weights, deleting
    cluster g moves the estimate by -E_g / (W - W_g), so no estimate is ever recomputed. For equal weights and
    singletons the variance is s^2 / n. MacKinnon, Nielsen and Webb (2023), J. Appl. Econometrics 38:671.
    """
    total = float(weights.sum())
    by_cluster = partition.sums(weights)
    groups, n = partition.clusters, partition.n
    with np.errstate(all="ignore"):
        theta = np.asarray(numerator.sum(axis=-1) / total)
        residual = numerator - theta[..., None] * weights
        moved = partition.sums(residual) / (total - by_cluster)
        moved_iid = residual / (total - weights)
        return Jackknife(
            theta=theta,
            variance=np.asarray((groups - 1) / groups * np.sum(moved**2, axis=-1)),
            variance_iid=np.asarray((n - 1) / n * np.sum(moved_iid**2, axis=-1)),
            scale=np.asarray(np.sqrt(np.mean(numerator**2, axis=-1)) * n / total),
            g_eff=total**2 / float(np.sum(by_cluster**2)),
        )


def checked_weights(weights: Floats, n: int) -> Floats:
    """(n,) finite positive weights, shared by all simulations."""
    if weights.shape != (n,):
        raise ValueError(f"expected weights of shape ({n},), got {weights.shape}")
    if not bool(np.all(np.isfinite(weights) & (weights > 0.0))):
        raise ValueError("weights must be finite and positive")
    return weights


def student_evidence(
    numerator: Floats, weights: Floats, partition: Partition, *, margin: float, alpha: float, method: str
) -> Evidence:
    """Evidence about sum(numerator) / sum(weights) from t(G_eff - 1); see clustered_mean and ratio."""
    if numerator.ndim == 0 or numerator.shape[-1] != partition.n:
        raise ValueError(f"expected {partition.n} items on the last axis, got shape {numerator.shape}")
    shape = numerator.shape[:-1]
    if partition.clusters < 2:
        return not_estimable(shape, partition, method)
    jack = jackknife(numerator, weights, partition)
    df = jack.g_eff - 1.0
    se = np.sqrt(jack.variance)
    estimable: Bools = se > np.maximum(ROUNDING * jack.scale, IMPLAUSIBLY_SURE * margin)
    reach = t_isf(alpha, df) * se
    with np.errstate(all="ignore"):
        return Evidence(
            effect=jack.theta,
            lower=jack.theta - reach,
            upper=jack.theta + reach,
            p_noninferior=t_sf((jack.theta + margin) / se, df),
            p_worse=t_sf(-jack.theta / se, df),
            p_superior=t_sf((jack.theta - margin) / se, df),
            se=se,
            df=np.full(shape, df),
            design_effect=jack.design_effect,
            estimable=estimable,
            n=partition.n,
            clusters=partition.clusters,
            g_eff=jack.g_eff,
            method=method,
        )
