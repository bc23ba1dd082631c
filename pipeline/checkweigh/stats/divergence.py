"""Kullback-Leibler divergence between the next-token distributions of two arms."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from checkweigh.stats._tails import Floats

KAPPA = 1e-4  # nats; below it a document's divergence is rounding


def typical_divergence(kl: ArrayLike, *, kappa: float = KAPPA) -> Floats:
    """theta = exp(mean over documents of log(KL_d + kappa)), nats a token; kl (..., n) of n documents.

    Estimand: the geometric mean of the documents' mean divergence, which one ruined document does not decide (the
    arithmetic mean's t test passes 10 to 21% at the margin). Degenerate: no documents, a negative or a non-finite
    one: NaN. Source: STATISTICS, "KL to the baseline".
    """
    values = np.asarray(kl, dtype=np.float64)
    if values.shape[-1] == 0:
        return np.full(values.shape[:-1], np.nan)
    with np.errstate(invalid="ignore"):
        logs = np.where((values >= 0) & np.isfinite(values), np.log(np.maximum(values, 0) + kappa), np.nan)
    return np.asarray(np.exp(logs.mean(axis=-1)))


def truncated_divergence(
    baseline_ids: ArrayLike, baseline: ArrayLike, candidate_ids: ArrayLike, candidate: ArrayLike
) -> Floats:
    """(T,) lower bounds on KL(baseline || candidate), from the top k of each arm at T positions.

    ids (T, k) are distinct within a position; log-probabilities (T, k), natural. The tokens that stand in both
    lists are kept, all others are one event: by the log-sum inequality (Cover and Thomas 2006, theorem 2.7.1) putting
    events together never raises a divergence, so this can show that two arms differ and never that they agree. NaN
    where a log-probability is NaN, or where a list claims more than all of the probability.
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
        rest_p, rest_q = np.maximum(rest_p, 0), np.maximum(rest_q, 0)
        tail = np.where(rest_p > 0, rest_p * np.log(rest_p / np.maximum(rest_q, rest_p * 1e-12)), 0.0)
    return np.where(wrong, np.nan, np.maximum(terms + tail, 0))
