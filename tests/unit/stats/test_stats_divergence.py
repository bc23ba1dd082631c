"""The typical divergence, and the truncated one as a lower bound on the exact one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from checkweigh.stats.estimators.mean_kl import (
    KAPPA,
    divergence_evidence,
    truncated_divergence,
    typical_divergence,
)
from checkweigh.stats.partition import Partition


def test_the_typical_divergence_is_a_geometric_mean() -> None:
    assert typical_divergence([0.1 - KAPPA, 0.4 - KAPPA]) == pytest.approx(0.2)
    assert typical_divergence([0.0, 0.0]) == pytest.approx(KAPPA)
    assert typical_divergence([[0.1, 0.1], [0.2, 0.2]]).shape == (2,)


@pytest.mark.parametrize("kl", [[], [0.1, np.nan], [0.1, np.inf], [0.1, -0.01]])
def test_no_number_comes_of_documents_that_have_none(kl: list[float]) -> None:
    assert np.isnan(typical_divergence(kl))


def test_one_ruined_document_does_not_decide() -> None:
    kl = np.full(200, 0.01)
    kl[0] = 50
    assert typical_divergence(kl) < 0.011
    assert kl.mean() > 0.25


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), k=st.integers(1, 12), spread=st.sampled_from([0.0, 0.05, 1.0, 8.0]))
@example(seed=0, k=11, spread=8.0)  # the candidate's rest is all rounding
def test_truncation_never_overstates(seed: int, k: int, spread: float) -> None:
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(6, 12)) * 2
    p, q = (
        x - np.logaddexp.reduce(x, axis=1, keepdims=True)
        for x in (logits, logits + spread * rng.normal(size=(6, 12)))
    )
    exact = (np.exp(p) * (p - q)).sum(axis=1)
    tops = [np.argsort(-x, axis=1)[:, :k] for x in (p, q)]
    bound = truncated_divergence(
        tops[0], np.take_along_axis(p, tops[0], 1), tops[1], np.take_along_axis(q, tops[1], 1)
    )
    assert (bound >= 0).all()
    assert (bound <= exact + 1e-9).all()
    if k == 12:
        assert bound == pytest.approx(exact, abs=1e-9)


def test_truncation_sees_a_plain_difference() -> None:
    """A hand-made case: .5 against .25 on the one shared token, the rest being one event."""
    found = truncated_divergence([[7, 1]], np.log([[0.5, 0.3]]), [[7, 2]], np.log([[0.25, 0.3]]))
    assert found == pytest.approx([0.5 * np.log(2) + 0.5 * np.log(0.5 / 0.75)])


@pytest.mark.parametrize("bad", [[[np.nan, -1.0]], [[0.0, 0.0]]])
def test_an_impossible_list_gives_no_number(bad: list[list[float]]) -> None:
    fine = np.log([[0.5, 0.3]])
    assert np.isnan(truncated_divergence([[1, 2]], bad, [[1, 2]], fine)).all()
    assert np.isnan(truncated_divergence([[1, 2]], fine, [[1, 2]], bad)).all()


ALONE = Partition(np.arange(4), np.ones(4, dtype=np.int64))


@pytest.mark.parametrize(
    "kl",
    [
        [0.1, 0.1, 0.1, 0.1],
        [0.0] * 4,
        [0.1, 0.2, np.nan, 0.1],
        [0.1, 0.2, np.inf, 0.1],
        [0.1, 0.2, -0.1, 0.1],
    ],
)
def test_what_says_nothing_is_not_estimable(kl: list[float]) -> None:
    found = divergence_evidence(kl, ALONE, margin=0.05, floor=0.01)
    assert not found.estimable
    assert np.isnan(found.p_noninferior)


def test_evidence_by_hand() -> None:
    """Logs 0, 1, 2, 3 above log(1e-2): mean 1.5, s = 1.29, se = .6455, t(3)."""
    kl = 1e-2 * np.exp([0.0, 1, 2, 3]) - KAPPA
    found = divergence_evidence(kl, ALONE, margin=0.5, floor=0.01)
    assert found.effect == pytest.approx(-1e-2 * np.exp(1.5))
    assert found.lower == pytest.approx(-1e-2 * np.exp(1.5 + 2.3534 * 0.6455), rel=1e-3)
    assert found.upper == pytest.approx(-1e-2 * np.exp(1.5 - 2.3534 * 0.6455), rel=1e-3)
    assert found.p_worse == pytest.approx(0.0514, abs=1e-3)
    assert found.p_noninferior == 1.0, "with four documents nobody can exclude that a tenth is ruined"


@pytest.mark.parametrize(
    "wrong", [{"margin": 0.0}, {"floor": 0.0}, {"kappa": -1.0}, {"margin": float("nan")}]
)
def test_limits_that_are_none_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be positive"):
        divergence_evidence([0.1, 0.2, 0.3, 0.4], ALONE, **({"margin": 0.05, "floor": 0.01} | wrong))
