"""Slices: which items of a set each look adds."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.builders import evalset

from checkweigh.decision.slices import slice_items
from checkweigh.records.policy import ADAPTIVE

SET = evalset("choice", 1600)


@given(
    n=st.integers(1, 150),
    size=st.integers(1, 7),
    strata=st.integers(1, 6),
    seed=st.integers(0, 5),
    shares=st.sampled_from([(1.0,), ADAPTIVE, (0.5, 1.0), (0.01, 0.02, 1.0)]),
)
@settings(max_examples=80, deadline=None)
def test_slices_are_whole_clusters_and_every_item_once(
    n: int, size: int, strata: int, seed: int, shares: tuple[float, ...]
) -> None:
    source = evalset("choice", n, cluster_size=size, strata=strata)
    parts = slice_items(source, shares, seed)
    assert len(parts) == len(shares)
    assert sorted(i.id for part in parts for i in part) == sorted(i.id for i in source.items)
    homes: dict[str, set[int]] = {}
    for j, part in enumerate(parts):
        for item in part:
            homes.setdefault(item.cluster, set()).add(j)
    assert all(len(looks) == 1 for looks in homes.values()), "no cluster lies in two looks"
    done = 0
    for part, share in zip(parts, shares, strict=True):
        done += len(part)
        assert abs(done - share * n) <= size, "as near to the share as clusters allow"
    shuffled = source.model_copy(update={"items": source.items[::-1]})
    assert [{i.id for i in p} for p in slice_items(shuffled, shares, seed)] == [
        {i.id for i in p} for p in parts
    ]


def test_the_order_follows_the_seed_and_spreads_the_strata() -> None:
    first, again, other = (slice_items(SET, ADAPTIVE, seed)[0] for seed in (0, 0, 1))
    assert first == again
    assert {i.id for i in first} != {i.id for i in other}
    for seed in range(5):
        counts = Counter(item.stratum for item in slice_items(SET, ADAPTIVE, seed)[0])
        assert set(counts) == {"s0", "s1", "s2", "s3"}
        assert max(counts.values()) - min(counts.values()) <= 1


def test_lonely_strata_do_not_bunch() -> None:
    """Strata of one cluster each come anywhere in the order, not all in its middle."""
    items = tuple(item.model_copy(update={"stratum": item.cluster}) for item in SET.items)
    lonely = SET.model_copy(update={"items": items})
    first, other = (slice_items(lonely, ADAPTIVE, seed)[0] for seed in (0, 1))
    assert len(first) == len(other) == 200
    shared = len({i.id for i in first} & {i.id for i in other})
    assert shared < 60, "an eighth of an eighth is 25: the seed decides, not the names"
