"""Clusters: counting them, and what unequal sizes cost."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from checkweigh.stats import Partition


def test_labels_become_codes_in_order_of_appearance() -> None:
    partition = Partition.from_labels(["b", "a", "b", "c", "b"])
    assert partition.codes.tolist() == [0, 1, 0, 2, 0]
    assert partition.sizes.tolist() == [3, 1, 1]
    assert (partition.n, partition.clusters) == (5, 3)
    assert partition.g_eff == pytest.approx(25 / 11)
    assert partition.k == pytest.approx(11 / 5)


def test_equal_sizes_lose_no_clusters_and_singletons_cost_nothing() -> None:
    five = Partition.from_labels([str(i // 5) for i in range(200)])
    assert (five.g_eff, five.k) == (40.0, 5.0)
    alone = Partition.singletons(7)
    assert (alone.g_eff, alone.k, alone.clusters) == (7.0, 1.0, 7)


@pytest.mark.parametrize("lead", [(), (3,), (2, 3), (0,)])
def test_sums_agree_with_a_loop_on_every_leading_axis(lead: tuple[int, ...]) -> None:
    rng = np.random.default_rng(1)
    partition = Partition.from_labels(list("abcabcaadb"))
    x = rng.normal(size=(*lead, 10))
    expected = np.stack([x[..., partition.codes == g].sum(axis=-1) for g in range(4)], axis=-1)
    np.testing.assert_allclose(partition.sums(x), expected, atol=1e-12)


def test_a_nan_spoils_only_its_own_cluster_and_its_own_simulation() -> None:
    x = np.ones((2, 4))
    x[1, 0] = np.nan
    sums = Partition.from_labels(list("aabb")).sums(x)
    np.testing.assert_array_equal(sums, [[2.0, 2.0], [np.nan, 2.0]])


def test_no_items_has_no_effective_size() -> None:
    empty = Partition.from_labels([])
    assert (empty.n, empty.clusters) == (0, 0)
    assert np.isnan(empty.g_eff)
    assert np.isnan(empty.k)


@pytest.mark.parametrize("labels", [["a", ""], ["a", None], [3, "a"]])
def test_a_missing_cluster_label_is_an_error(labels: list[Any]) -> None:
    with pytest.raises(ValueError, match="every item needs a cluster label"):
        Partition.from_labels(labels)


@pytest.mark.parametrize(
    ("codes", "sizes"),
    [([0, 2], [1, 1]), ([0, -1], [1, 1]), ([0, 0], [1, 1]), ([0, 0], [2, 0]), ([[0]], [1])],
)
def test_codes_and_sizes_must_agree(codes: list[Any], sizes: list[int]) -> None:
    with pytest.raises(ValueError, match=r"codes|sizes"):
        Partition(np.array(codes), np.array(sizes))


def test_it_is_frozen_down_to_its_arrays_and_keeps_no_hold_on_the_callers() -> None:
    codes = np.array([0, 1])
    partition = Partition(codes, np.array([1, 1]))
    codes[0] = 1
    assert partition.codes.tolist() == [0, 1]
    with pytest.raises(ValueError, match="read-only"):
        partition.codes[0] = 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        partition.codes = codes  # type: ignore[misc]


def test_sums_refuse_another_number_of_items() -> None:
    with pytest.raises(ValueError, match="expected 2 items"):
        Partition.singletons(2).sums(np.ones(3))
