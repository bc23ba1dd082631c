"""``ArmRun`` with an engine of the test's own: attempts, blame, and what is asked of an engine before it is used."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkweigh.measure.served_arm import ServedArm
from tests.builders import IDENTITY
from tests.conftest import WriteManifest

from checkweigh.engines.protocol import (
    Continuation,
    Engine,
    GenerateRequest,
    GenerateResult,
    ItemFailure,
    Messages,
    Resources,
    ScoreRequest,
    ScoreResult,
)
from checkweigh.engines.spec import EngineSpec
from checkweigh.errors import EngineDied, EngineError, EngineOutOfMemory, EngineTimeout, PinMismatch
from checkweigh.records.measurement import EngineIdentity
from checkweigh.sources.model.render import Renderer
from checkweigh.sources.pin import Resolved, quiet, verify
from checkweigh.store import Store
from checkweigh.usecases.gate.arm import ArmRun


class Scripted:
    """An engine that starts, or raises what the script says next; counts its lives."""

    lives = 0
    ended = 0

    def __init__(self, spec: EngineSpec, script: list[Exception | None], spoil: slice) -> None:
        self.text = Renderer(spec.tokenizer_dir, spec.chat_template)
        self.script, self.spoil = script, spoil

    @property
    def identity(self) -> EngineIdentity:
        return IDENTITY

    def __enter__(self) -> Engine:
        Scripted.lives += 1
        error = self.script.pop(0) if self.script else None
        if error is not None:
            raise error
        return self

    def __exit__(self, *exc: object) -> None:
        Scripted.ended += 1

    def render(self, conversations: Sequence[Messages]) -> list[tuple[int, ...]]:
        return [self.text.render(c)[self.spoil] for c in conversations]

    def score(self, batch: Sequence[ScoreRequest]) -> list[ScoreResult | ItemFailure]:
        ids = [self.text.encode(r.continuations[0]) for r in batch]
        return [
            ScoreResult(
                id=r.id,
                prompt_ids=(self.text.prefix_id,),
                continuations=(Continuation(token_ids=i, logprobs=-np.ones(len(i), np.float32)),),
            )
            for r, i in zip(batch, ids, strict=True)
        ]

    def generate(self, batch: Sequence[GenerateRequest]) -> list[GenerateResult | ItemFailure]:
        raise NotImplementedError

    def resources(self, *, reset_peak: bool = False) -> Resources:
        return Resources(resident=1, peak=1, swapped=0)


WHOLE = slice(None)
MakeRun = Callable[..., ArmRun]


@pytest.fixture
def make_run(tmp_path: Path, write_manifest: WriteManifest) -> MakeRun:
    resolved: Resolved = verify(write_manifest("arm"))
    Scripted.lives = Scripted.ended = 0

    def make(*script: Exception | None, spoil: slice = WHOLE) -> ArmRun:
        left = list(script)

        def launch(spec: EngineSpec, **_: Any) -> Engine:
            return Scripted(spec, left, spoil)

        return ArmRun(
            role="candidate", resolved=resolved, store=Store(tmp_path / "store"), logs=tmp_path / "logs",
            progress=quiet, deadline=math.inf, launch=launch,
        )  # fmt: skip

    return make


def failing(times: int, error: EngineError) -> Callable[[ServedArm], str]:
    """Work that fails so many times and then answers."""
    left = [error] * times

    def work(arm: ServedArm) -> str:
        if left:
            raise left.pop()
        return "done"

    return work


def test_work_is_tried_again_on_a_new_engine(make_run: MakeRun) -> None:
    run = make_run()
    assert run.survive(failing(1, EngineDied("gone"))) == "done"
    assert (Scripted.lives, Scripted.ended, run.failures) == (2, 1, 1)
    run.close()
    run.close()
    assert Scripted.ended == 2


@pytest.mark.parametrize("kind", [EngineDied, EngineTimeout, EngineError, EngineOutOfMemory])
def test_the_second_failure_is_raised_and_names_the_arm(make_run: MakeRun, kind: type[EngineError]) -> None:
    run = make_run()
    with pytest.raises(kind) as caught:
        run.survive(failing(5, kind("gone")))
    assert caught.value.arm == "candidate"
    assert (Scripted.lives, Scripted.ended) == (2, 2)
    assert not run.unfit, "it was up, so it did fit"


def test_failures_add_up_over_the_whole_gate(make_run: MakeRun) -> None:
    run = make_run()
    run.survive(failing(1, EngineDied("gone")))
    with pytest.raises(EngineDied):
        run.survive(failing(1, EngineDied("gone again")))


def test_an_engine_that_fails_to_start_is_started_again(make_run: MakeRun) -> None:
    run = make_run(EngineDied("at birth"), None)
    assert run.survive(lambda arm: "done") == "done"
    assert Scripted.lives == 2


def test_an_engine_that_does_not_fit_is_not_started_again(make_run: MakeRun) -> None:
    run = make_run(EngineOutOfMemory("too big"), None)
    with pytest.raises(EngineOutOfMemory):
        run.survive(lambda arm: "done")
    assert Scripted.lives == 1
    assert run.unfit


def test_out_of_memory_while_it_serves_is_tried_again(make_run: MakeRun) -> None:
    run = make_run()
    assert run.survive(failing(1, EngineOutOfMemory("a large batch"))) == "done"
    assert not run.unfit


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (slice(1, None), r"found a prompt that the engine cut to its last \d+"),
        (slice(None, 7), "found a prompt that the engine cut to its first 7"),
        (slice(0, 0), "found 0 other ids, rendered by the engine"),
        (slice(None, None, -1), r"found \d+ other ids, rendered by the engine"),
    ],
)
def test_an_engine_that_is_not_what_is_pinned_is_stopped_before_it_is_used(
    make_run: MakeRun, spoil: slice, said: str
) -> None:
    run = make_run(spoil=spoil)
    with pytest.raises(PinMismatch, match=f"probe conversation 0: expected .*{said}"):
        run.survive(lambda arm: "done")
    assert (Scripted.lives, Scripted.ended) == (1, 1)
    assert run.arm is None
