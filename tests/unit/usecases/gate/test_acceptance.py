"""What is said of arms that speculate."""

from __future__ import annotations

import json
from typing import Any

from tests.builders import evalset, measured, with_observations

from checkweigh.records.manifest import Manifest
from checkweigh.records.measurement import Observation, Speculated
from checkweigh.usecases.diff import Difference
from checkweigh.usecases.gate.note_speculation import acceptance, forks


def manifest(speculative: dict[str, Any] | None) -> Manifest:
    engine = {"kind": "transformers", "version": "5", "speculative": speculative}
    document = {
        "schema": "checkweigh/manifest@1",
        "name": "arm",
        "model": {"source": "path:x"},
        "engine": engine,
    }
    return Manifest.model_validate_json(json.dumps(document))


LOOKUP = manifest({"method": "prompt_lookup", "num_tokens": 10})
PLAIN = manifest(None)


def test_forks_are_announced_where_the_arms_speculate_differently() -> None:
    (note,) = forks(PLAIN, LOOKUP)
    assert "in bfloat16 and float16 a text may fork" in note
    assert forks(LOOKUP, PLAIN) == (note,)
    assert forks(LOOKUP, manifest({"method": "prompt_lookup", "num_tokens": 9})) == (note,)
    assert forks(LOOKUP, LOOKUP) == forks(PLAIN, PLAIN) == ()
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
    assert acceptance(LOOKUP, records) == (
        "arm speculates (prompt_lookup, 10 tokens): acceptance length 1.50 tokens a forward on answers "
        "(25% of 20 drafted tokens)",
    )
    counts[0] = Speculated(forwards=1, drafted=0, accepted=0)
    records["answers"] = with_observations(replies, change)
    assert acceptance(LOOKUP, records)[0].endswith("1.00 tokens a forward on answers (nothing was drafted)")
    assert acceptance(PLAIN, records) == ()
