"""What must hold for every data set: no order, no names, no side and no scale decides anything."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from checkweigh.stats import (
    Evidence,
    Partition,
    block_log_ratio,
    clustered_mean,
    clustered_tango,
    holm,
    items_to_settle,
    ratio_difference,
)

quick = settings(max_examples=60, deadline=None, database=None, derandomize=True)

Array = np.ndarray[Any, Any]
margins = st.floats(0.005, 0.5)
alphas = st.sampled_from([0.05, 0.0482, 0.00554, 0.001])
finite = st.floats(-10.0, 10.0).map(lambda x: round(x, 3))


@st.composite
def clustered(draw: st.DrawFn) -> tuple[Array, Array, Partition]:
    """Two real arms and a partition of 4..40 items."""
    n = draw(st.integers(4, 40))
    arm = st.lists(finite, min_size=n, max_size=n).map(np.array)
    labels = draw(st.lists(st.sampled_from("abcdefgh"), min_size=n, max_size=n))
    return draw(arm), draw(arm), Partition.from_labels(labels)


@st.composite
def outcomes(draw: st.DrawFn) -> tuple[Array, Array, Partition]:
    """Two binary arms and a partition of 4..60 items, singletons included."""
    n = draw(st.integers(4, 60))
    arm = st.lists(st.sampled_from([0.0, 1.0]), min_size=n, max_size=n).map(np.array)
    labels = draw(st.lists(st.sampled_from("abcdefgh"), min_size=n, max_size=n))
    alone = draw(st.booleans())
    return draw(arm), draw(arm), Partition.singletons(n) if alone else Partition.from_labels(labels)


def mean(b: Array, c: Array, partition: Partition, **kw: Any) -> Evidence:
    return clustered_mean(c - b, partition, **kw)


def ratio(b: Array, c: Array, partition: Partition, **kw: Any) -> Evidence:
    return ratio_difference(c - b, 1.0 + np.arange(len(b)) % 3, partition, **kw)


def blocks(b: Array, c: Array, partition: Partition, **kw: Any) -> Evidence:
    return block_log_ratio(c - b, **kw)


estimators = pytest.mark.parametrize("estimate", [mean, ratio, blocks])
FIELDS = ("effect", "lower", "upper", "p_noninferior", "p_worse", "p_superior", "se", "df", "design_effect")


def same(one: Evidence, other: Evidence) -> None:
    assert bool(one.estimable) == bool(other.estimable)
    for name in FIELDS:
        x, y = getattr(one, name), getattr(other, name)
        np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-9, err_msg=name)


def sane(found: Evidence, margin: float, alpha: float) -> None:
    if not found.estimable:
        assert all(np.isnan(getattr(found, name)) for name in FIELDS)
        return
    assert found.lower <= found.effect <= found.upper
    assert found.lower < found.upper
    for p in (found.p_noninferior, found.p_worse, found.p_superior):
        assert 0.0 <= p <= 1.0
    assert found.p_noninferior <= found.p_superior
    # The bounds and the tests are one and the same decision (away from the very edge).
    for p, null in ((found.p_noninferior, -margin), (found.p_superior, margin)):
        if abs(float(found.lower) - null) > 1e-9 and abs(float(p) - alpha) > 1e-9:
            assert bool(found.lower > null) == bool(p < alpha)
    if abs(float(found.upper)) > 1e-9 and abs(float(found.p_worse) - alpha) > 1e-9:
        assert bool(found.upper < 0.0) == bool(found.p_worse < alpha)


@estimators
@quick
@given(data=clustered(), margin=margins, alpha=alphas)
def test_bounds_and_tests_agree(estimate: Any, data: Any, margin: float, alpha: float) -> None:
    sane(estimate(*data, margin=margin, alpha=alpha), margin, alpha)


@quick
@given(data=outcomes(), margin=margins, alpha=alphas)
def test_bounds_and_tests_agree_for_binary(data: Any, margin: float, alpha: float) -> None:
    sane(clustered_tango(*data, margin=margin, alpha=alpha), margin, alpha)


@pytest.mark.parametrize("estimate", [mean, blocks])
@quick
@given(data=clustered(), margin=margins, seed=st.integers(0, 2**32 - 1))
def test_the_order_of_items_decides_nothing(estimate: Any, data: Any, margin: float, seed: int) -> None:
    b, c, partition = data
    order = np.random.default_rng(seed).permutation(partition.n)
    moved = Partition(partition.codes[order], partition.sizes)
    same(estimate(b, c, partition, margin=margin), estimate(b[order], c[order], moved, margin=margin))


@quick
@given(data=outcomes(), margin=margins, seed=st.integers(0, 2**32 - 1))
def test_the_order_of_items_decides_nothing_for_binary(data: Any, margin: float, seed: int) -> None:
    b, c, partition = data
    order = np.random.default_rng(seed).permutation(partition.n)
    moved = Partition(partition.codes[order], partition.sizes)
    same(
        clustered_tango(b, c, partition, margin=margin),
        clustered_tango(b[order], c[order], moved, margin=margin),
    )


@pytest.mark.parametrize("estimate", [mean, ratio])
@quick
@given(data=clustered(), margin=margins)
def test_the_names_of_clusters_decide_nothing(estimate: Any, data: Any, margin: float) -> None:
    b, c, partition = data
    renamed = Partition(partition.clusters - 1 - partition.codes, partition.sizes[::-1])
    same(estimate(b, c, partition, margin=margin), estimate(b, c, renamed, margin=margin))


@quick
@given(data=outcomes(), margin=margins)
def test_the_names_of_clusters_decide_nothing_for_binary(data: Any, margin: float) -> None:
    b, c, partition = data
    renamed = Partition(partition.clusters - 1 - partition.codes, partition.sizes[::-1])
    same(clustered_tango(b, c, partition, margin=margin), clustered_tango(b, c, renamed, margin=margin))


def mirrored(one: Evidence, other: Evidence) -> None:
    assert bool(one.estimable) == bool(other.estimable)
    np.testing.assert_allclose(one.effect, -other.effect, atol=1e-9)
    np.testing.assert_allclose(one.lower, -other.upper, atol=1e-9)
    np.testing.assert_allclose(one.upper, -other.lower, atol=1e-9)


@estimators
@quick
@given(data=clustered(), margin=margins)
def test_exchanging_the_arms_mirrors_the_interval(estimate: Any, data: Any, margin: float) -> None:
    b, c, partition = data
    mirrored(estimate(b, c, partition, margin=margin), estimate(c, b, partition, margin=margin))


@quick
@given(data=outcomes(), margin=margins)
def test_exchanging_the_arms_or_the_outcomes_mirrors_the_score_interval(data: Any, margin: float) -> None:
    b, c, partition = data
    found = clustered_tango(b, c, partition, margin=margin)
    mirrored(found, clustered_tango(c, b, partition, margin=margin))
    mirrored(found, clustered_tango(1 - b, 1 - c, partition, margin=margin))


def easier(strict: Evidence, lenient: Evidence) -> None:
    """A larger margin is easier not to fall short of and harder to surpass, and moves nothing else."""
    if not (strict.estimable and lenient.estimable):
        return
    assert lenient.p_noninferior <= strict.p_noninferior + 1e-12
    assert lenient.p_superior >= strict.p_superior - 1e-12
    assert (lenient.lower, lenient.upper, lenient.p_worse) == (strict.lower, strict.upper, strict.p_worse)


@estimators
@quick
@given(data=clustered(), pair=st.tuples(margins, margins))
def test_a_larger_margin_is_easier(estimate: Any, data: Any, pair: tuple[float, float]) -> None:
    easier(*(estimate(*data, margin=margin) for margin in sorted(pair)))


@quick
@given(data=outcomes(), pair=st.tuples(margins, margins))
def test_a_larger_margin_is_easier_for_binary(data: Any, pair: tuple[float, float]) -> None:
    easier(*(clustered_tango(*data, margin=margin) for margin in sorted(pair)))


@quick
@given(data=outcomes(), margin=margins, pick=st.integers(0, 59))
def test_one_more_loss_never_helps_without_clusters(data: Any, margin: float, pick: int) -> None:
    b, c, _ = data
    alone, worse = Partition.singletons(len(b)), c.copy()
    worse[pick % len(b)] = 0.0
    before = clustered_tango(b, c, alone, margin=margin)
    after = clustered_tango(b, worse, alone, margin=margin)
    assert after.lower <= before.lower + 1e-12
    assert after.upper <= before.upper + 1e-12
    assert after.p_noninferior >= before.p_noninferior - 1e-12


@pytest.mark.parametrize("estimate", [mean, blocks])
@quick
@given(data=clustered(), margin=margins, factor=st.floats(0.1, 50.0))
def test_units_decide_nothing(estimate: Any, data: Any, margin: float, factor: float) -> None:
    b, c, partition = data
    small = estimate(b, c, partition, margin=margin)
    large = estimate(b * factor, c * factor, partition, margin=margin * factor)
    assert bool(small.estimable) == bool(large.estimable)
    np.testing.assert_allclose(large.lower, small.lower * factor, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(large.p_worse, small.p_worse, rtol=1e-6, atol=1e-9)


@quick
@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 200))
def test_the_score_interval_holds_its_estimate_and_has_a_width(n12: int, n21: int, rest: int) -> None:
    n = n12 + n21 + rest
    if n == 0:
        return
    delta = np.repeat([1.0, -1.0, 0.0], [n12, n21, rest])
    found = clustered_tango(delta < 0, delta > 0, Partition.singletons(n), margin=0.05, alpha=0.025)
    assert found.estimable == (n > 1)
    if n > 1:
        assert -1.0 <= found.lower <= (n12 - n21) / n <= found.upper <= 1.0
        assert found.lower < found.upper


@quick
@given(st.lists(st.one_of(st.floats(0.0, 1.0), st.just(float("nan"))), min_size=1, max_size=12))
def test_holm_never_lowers_a_p_value_and_keeps_their_order(p: list[float]) -> None:
    filled = np.where(np.isnan(p), 1.0, p)
    adjusted = holm(p)
    assert np.all((adjusted >= filled) & (adjusted <= 1.0))
    order = np.argsort(filled, kind="stable")
    assert np.all(np.diff(adjusted[order]) >= 0.0)
    np.testing.assert_allclose(holm(p[::-1])[::-1], adjusted)


@quick
@given(st.floats(-1.0, 1.0), st.floats(1e-4, 1.0), st.integers(1, 10_000), margins)
def test_items_to_settle_is_a_number_or_none(effect: float, se: float, n: int, margin: float) -> None:
    items = items_to_settle(effect, se, n, margin)
    assert items is None or n <= items <= 100 * n
