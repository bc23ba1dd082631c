"""Kullback-Leibler divergence between the next-token distributions of two arms."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from checkweigh.stats._tails import checked_alpha, t_isf, t_sf
from checkweigh.stats.arrays import Floats
from checkweigh.stats.estimators._linear import jackknife
from checkweigh.stats.evidence import Evidence, not_estimable
from checkweigh.stats.partition import Partition

ROUNDING = 1e-12  # of a probability that is 1 minus a sum of others
KAPPA = 1e-4  # nats; below it a document's divergence is rounding
MIN_DOCUMENTS = 120
RUINED = 4.0  # times the margin: a document beyond it is ruined
MOST_RUINED = 0.10


def typical_divergence(kl: ArrayLike, *, kappa: float = KAPPA) -> Floats:
    """theta = exp(mean over documents of log(KL_d + kappa)), nats a token; kl (..., n) of n documents.

    Estimand: the geometric mean of the documents' mean divergence, which one ruined document does not decide (the
    arithmetic mean's t test passes 10 to 21% at the margin). Degenerate: no documents, a negative or a non-finite
    one: NaN. Source: ours; tests/calibration/test_calibrated_divergence.py.
    """
    values = np.asarray(kl, dtype=np.float64)
    if values.shape[-1] == 0:
        return np.full(values.shape[:-1], np.nan)
    with np.errstate(invalid="ignore"):
        logs = np.where((values >= 0) & np.isfinite(values), np.log(np.maximum(values, 0) + kappa), np.nan)
    return np.asarray(np.exp(logs.mean(axis=-1)))


def divergence_evidence(
    kl: ArrayLike,
    partition: Partition,
    *,
    margin: float,
    floor: float,
    kappa: float = KAPPA,
    alpha: float = 0.05,
) -> Evidence:
    """The typical divergence against a margin and against the noise floor; effect = -theta, as higher is better.

    Estimand: theta of ``typical_divergence``; kl (..., n) >= 0, nats a token. ``p_noninferior`` is p of H0
    theta >= margin. It is 1 when the 95% Clopper-Pearson upper bound on the share of ruined documents (above 4 margins)
    reaches 10%, because a geometric mean hardly sees a few of them. ``p_worse`` is p of H0 theta <= floor; ``floor`` is
    the upper bound of the divergence of the baseline from itself.
    Assumptions: the logarithms' mean is close to normal, clusters (works) are independent, t(G_eff - 1).
    Degenerate: fewer than 2 clusters, a negative or non-finite value, no variance: not estimable; whether there are
    documents enough (``MIN_DOCUMENTS``) is the caller's to ask. Source: ours.
    Size: tests/calibration/test_calibrated_divergence.py. ValueError: a margin, floor or kappa that is not positive.
    """
    values = np.asarray(kl, dtype=np.float64)
    if not (floor > 0 and margin > 0 and kappa > 0):
        raise ValueError(f"margin, floor and kappa must be positive, got {margin!r}, {floor!r} and {kappa!r}")
    if values.ndim == 0 or values.shape[-1] != partition.n:
        raise ValueError(f"expected {partition.n} documents, got {values.shape}")
    method = "log divergence, cluster jackknife t"
    if partition.clusters < 2:
        return not_estimable(values.shape[:-1], partition, method)
    sound = (np.isfinite(values) & (values >= 0)).all(axis=-1)
    logs = np.log(np.where(np.isfinite(values), np.maximum(values, 0), 0) + kappa)
    jack = jackknife(logs, np.ones(partition.n), partition)
    df, se, middle = jack.g_eff - 1.0, np.sqrt(jack.variance), jack.theta
    reach = t_isf(checked_alpha(alpha), df) * se
    ruined = (values > RUINED * margin).sum(axis=-1)
    most = special.betaincinv(ruined + 1.0, np.maximum(partition.n - ruined, 1e-9), 0.95)
    with np.errstate(all="ignore"):
        p_pass = np.where(most < MOST_RUINED, t_sf((np.log(margin) - middle) / se, df), 1.0)
        return Evidence(
            effect=-np.exp(middle), lower=-np.exp(middle + reach), upper=-np.exp(middle - reach),
            p_noninferior=p_pass, p_worse=t_sf((middle - np.log(floor)) / se, df),
            p_superior=np.ones_like(middle), se=np.exp(middle) * se, df=np.full(middle.shape, df),
            design_effect=jack.design_effect, estimable=sound & (se > 1e-9),
            n=partition.n, clusters=partition.clusters, g_eff=jack.g_eff, method=method,
        )  # fmt: skip


def truncated_divergence(
    baseline_ids: ArrayLike, baseline: ArrayLike, candidate_ids: ArrayLike, candidate: ArrayLike
) -> Floats:
    """(T,) lower bounds on KL(baseline || candidate), from the top k of each arm at T positions.

    ids (T, k) are distinct within a position; log-probabilities (T, k), natural. The tokens in both lists are kept, and
    all others are one event. Putting events together never raises a divergence (log-sum inequality, Cover and Thomas
    2006, theorem 2.7.1). So this can show that two arms differ and never that they agree. The candidate's rest is what
    rounding leaves of 1 minus a sum: ``ROUNDING`` is added, so that it is never too small. NaN where a log-probability
    is NaN, or where a list claims more than all of the probability.
    """
    ids = np.asarray(baseline_ids)[..., :, None] == np.asarray(candidate_ids)[..., None, :]
    p, q = np.exp(np.asarray(baseline, np.float64)), np.exp(np.asarray(candidate, np.float64))
    shared = ids.any(axis=-1)
    q_of = (ids * q[..., None, :]).sum(axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(shared & (p > 0), p * np.log(p / q_of), 0.0).sum(axis=-1)
        rest_p = 1 - np.where(shared, p, 0.0).sum(axis=-1)
        rest_q = 1 - np.where(shared, q_of, 0.0).sum(axis=-1)
        wrong = np.isnan(p).any(axis=-1) | np.isnan(q).any(axis=-1) | (rest_p < -1e-3) | (rest_q < -1e-3)
        rest_p, rest_q = np.maximum(rest_p, 0), np.maximum(rest_q, 0) + ROUNDING
        tail = np.where(rest_p > 0, rest_p * np.log(rest_p / np.maximum(rest_q, rest_p * 1e-12)), 0.0)
    return np.where(wrong, np.nan, np.maximum(terms + tail, 0))
