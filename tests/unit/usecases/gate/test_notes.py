"""Notes on a decision: servers, swapping hosts, arms that speculate, tails that only inform."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.builders import check, evalset, measured, policy, with_observations
from tests.unit.measure.conftest import MANIFEST

from checkweigh.engines import host_memory
from checkweigh.engines.protocol import Telemetry
from checkweigh.records.manifest import Manifest, Ngram
from checkweigh.records.measurement import Observation, Speculated
from checkweigh.usecases.diff import Difference
from checkweigh.usecases.gate.notes import (
    fork_note,
    server_note,
    short_tail_notes,
    speculation_notes,
    swap_note,
)

COUNTED = Telemetry(
    prompt_tokens=10, generated_tokens=5, preemptions=2, cache_queries=1000, cache_hits=30, drafts=100, drafted=400,
    accepted=150, kv_use=0.125, kv_tokens=46592,
)  # fmt: skip


def serving(speculating: bool) -> Manifest:
    plain = Manifest.model_validate_json(json.dumps(MANIFEST | {"name": "m"}))
    setting = Ngram(method="ngram", num_tokens=4) if speculating else None
    return plain.model_copy(update={"engine": plain.engine.model_copy(update={"speculative": setting})})


def test_counters_of_all_servers_of_an_arm_are_added_up() -> None:
    (note,) = server_note("candidate", serving(True), [COUNTED, COUNTED])
    assert "acceptance length 2.50 tokens a draft (38% of 800 drafted tokens)" in note
    assert "prefix cache hits 3.0% of 2,000 tokens looked up" in note
    assert "4 preemptions" in note
    assert "12% of 46,592 tokens" in note


def test_speculation_that_never_happened_is_said() -> None:
    idle = Telemetry(
        prompt_tokens=1, generated_tokens=1, preemptions=0, cache_queries=0, cache_hits=0, drafts=0, drafted=0,
        accepted=0, kv_use=0.0,
    )  # fmt: skip
    (note,) = server_note("candidate", serving(True), [idle])
    assert "nothing was drafted" in note
    assert "none of 0 tokens" in note
    (plain,) = server_note("candidate", serving(False), [idle])
    assert "drafted" not in plain
    assert server_note("baseline", serving(False), []) == ()


def test_a_host_that_swaps_is_warned_of() -> None:
    assert swap_note("baseline", 0) == ()
    (note,) = swap_note("baseline", 3 << 20)
    assert "3 MiB" in note
    assert host_memory.swap_activity() >= 0


def speculating(speculative: dict[str, Any] | None) -> Manifest:
    engine = {"kind": "transformers", "version": "5", "speculative": speculative}
    document = {
        "schema": "checkweigh/manifest@1",
        "name": "arm",
        "model": {"source": "path:x"},
        "engine": engine,
    }
    return Manifest.model_validate_json(json.dumps(document))


LOOKUP = speculating({"method": "prompt_lookup", "num_tokens": 10})
PLAIN = speculating(None)


def test_forks_are_announced_where_the_arms_speculate_differently() -> None:
    (note,) = fork_note(PLAIN, LOOKUP)
    assert "in bfloat16 and float16 a text may fork" in note
    assert fork_note(LOOKUP, PLAIN) == (note,)
    assert fork_note(LOOKUP, speculating({"method": "prompt_lookup", "num_tokens": 9})) == (note,)
    assert fork_note(LOOKUP, LOOKUP) == fork_note(PLAIN, PLAIN) == ()
    shown = Difference((), (), {}, (note,))
    assert f"note: {note}" in shown.text().splitlines()
    assert shown.as_json()["notes"] == [note]


def test_the_acceptance_length_is_over_all_forwards() -> None:
    """Failed items, sets without replies and replies without drafts are no division by nothing."""
    counts = [
        Speculated(forwards=4, drafted=20, accepted=5),
        Speculated(forwards=6, drafted=0, accepted=0),
        None,
    ]

    def change(observations: list[Observation]) -> list[Observation]:
        return [o.model_copy(update={"speculated": c}) for o, c in zip(observations, counts, strict=True)]

    texts = measured(evalset("text", 3), [1.0] * 3)
    replies = measured(evalset("generation", 3), [1.0, 0.0, float("nan")])
    records = {"prose": texts, "answers": with_observations(replies, change)}
    assert speculation_notes(LOOKUP, records) == (
        "arm speculates (prompt_lookup, 10 tokens): acceptance length 1.50 tokens a forward on answers "
        "(25% of 20 drafted tokens)",
    )
    counts[0] = Speculated(forwards=1, drafted=0, accepted=0)
    records["answers"] = with_observations(replies, change)
    assert speculation_notes(LOOKUP, records)[0].endswith(
        "1.00 tokens a forward on answers (nothing was drafted)"
    )
    assert speculation_notes(PLAIN, records) == ()


@pytest.mark.parametrize(
    ("pairs", "requests", "more"),
    [
        (20, 40, "60 more requests a block"), (8, 100, "12 more pairs"),
        (8, 40, "12 more pairs and 60 more requests a block"), (20, 100, ""),
    ],
)  # fmt: skip
def test_a_p99_that_informs_says_what_it_lacks_to_gate(pairs: int, requests: int, more: str) -> None:
    tail = check(
        id="tail", metric="e2e", statistic="p99", evalset=[], direction="lower", scale="relative", margin=0.5,
        min_items=6, min_clusters=6, tier="advisory",
    )  # fmt: skip
    notes = list(short_tail_notes(policy(check(), tail, timing={"pairs": pairs, "requests": requests})))
    note = f"tail informs only: a p99 gates with 20 pairs of 100 requests; {more} would do"
    assert notes == ([note] if more else [])
