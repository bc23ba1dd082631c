"""What is said of arms that a server runs, and of a host that swaps."""

from __future__ import annotations

import json

from tests.unit.measure.conftest import MANIFEST

from checkweigh.engines import host_memory
from checkweigh.engines.protocol import Telemetry
from checkweigh.records.manifest import Manifest, Ngram
from checkweigh.usecases.gate.note_servers import served, swapping

COUNTED = Telemetry(
    prompt_tokens=10, generated_tokens=5, preemptions=2, cache_queries=1000, cache_hits=30, drafts=100, drafted=400,
    accepted=150, kv_use=0.125, kv_tokens=46592,
)  # fmt: skip


def manifest(speculating: bool) -> Manifest:
    found = Manifest.model_validate_json(json.dumps(MANIFEST | {"name": "m"}))
    setting = Ngram(method="ngram", num_tokens=4) if speculating else None
    return found.model_copy(update={"engine": found.engine.model_copy(update={"speculative": setting})})


def test_counters_of_all_servers_of_an_arm_are_added_up() -> None:
    (note,) = served("candidate", manifest(True), {}, [COUNTED, COUNTED])
    assert "acceptance length 2.50 tokens a draft (38% of 800 drafted tokens)" in note
    assert "prefix cache hits 3.0% of 2,000 tokens looked up" in note
    assert "4 preemptions" in note
    assert "12% of 46,592 tokens" in note


def test_speculation_that_never_happened_is_said() -> None:
    idle = Telemetry(
        prompt_tokens=1, generated_tokens=1, preemptions=0, cache_queries=0, cache_hits=0, drafts=0, drafted=0,
        accepted=0, kv_use=0.0,
    )  # fmt: skip
    (note,) = served("candidate", manifest(True), {}, [idle])
    assert "nothing was drafted" in note
    assert "none of 0 tokens" in note
    (plain,) = served("candidate", manifest(False), {}, [idle])
    assert "drafted" not in plain
    assert served("baseline", manifest(False), {}, []) == ()


def test_a_host_that_swaps_is_warned_of() -> None:
    assert swapping("baseline", 0) == ()
    (note,) = swapping("baseline", 3 << 20)
    assert "3 MiB" in note
    assert host_memory.swap_activity() >= 0
