"""``EngineSession`` with an engine of the test's own: restarts, blame, and what is checked before an engine is used."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
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
from checkweigh.errors import Broken, EngineDied, EngineError, EngineOutOfMemory, EngineTimeout, PinMismatch
from checkweigh.measure.served_arm import ServedArm
from checkweigh.progress import no_progress
from checkweigh.records.measurement import EngineIdentity
from checkweigh.sources.model.render import Renderer
from checkweigh.sources.pin import Resolved, verify
from checkweigh.usecases.gate.arms.engine_session import EngineSession, Provisional, hold, settle_all


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
MakeSession = Callable[..., EngineSession]


@pytest.fixture
def resolved(tmp_path: Path, tiny_model_dir: Path, write_manifest: WriteManifest) -> Resolved:
    """An arm with a model of its own."""
    shutil.copytree(tiny_model_dir, tmp_path / "model")
    return verify(write_manifest("arm", model={"source": f"path:{tmp_path / 'model'}"}))


@pytest.fixture
def make_session(tmp_path: Path, resolved: Resolved) -> MakeSession:
    Scripted.lives = Scripted.ended = 0

    def make(
        *script: Exception | None, spoil: slice = WHOLE, loading: Callable[[EngineSpec], None] = id
    ) -> EngineSession:
        left = list(script)

        def launch(spec: EngineSpec, **_: Any) -> Engine:
            loading(spec)
            return Scripted(spec, left, spoil)

        return EngineSession(
            role="candidate", resolved=resolved, logs=tmp_path / "logs", progress=no_progress, launch=launch
        )

    return make


def failing(times: int, error: EngineError) -> Callable[[ServedArm], str]:
    """Work that fails so many times and then answers."""
    left = [error] * times

    def work(arm: ServedArm) -> str:
        if left:
            raise left.pop()
        return "done"

    return work


def test_work_is_tried_again_on_a_new_engine(make_session: MakeSession) -> None:
    session = make_session()
    assert session.survive(failing(1, EngineDied("gone"))) == "done"
    assert (Scripted.lives, Scripted.ended, session.failures) == (2, 1, 1)
    session.close()
    session.close()
    assert Scripted.ended == 2


@pytest.mark.parametrize("kind", [EngineDied, EngineTimeout, EngineError, EngineOutOfMemory])
def test_the_second_failure_is_raised_and_names_the_arm(
    make_session: MakeSession, kind: type[EngineError]
) -> None:
    session = make_session()
    with pytest.raises(kind) as caught:
        session.survive(failing(5, kind("gone")))
    assert caught.value.arm == "candidate"
    assert (Scripted.lives, Scripted.ended) == (2, 2)
    assert not session.unfit, "it was up, so it did fit"


def test_failures_add_up_over_the_whole_gate(make_session: MakeSession) -> None:
    session = make_session()
    session.survive(failing(1, EngineDied("gone")))
    with pytest.raises(EngineDied):
        session.survive(failing(1, EngineDied("gone again")))


def test_an_engine_that_fails_to_start_is_started_again(make_session: MakeSession) -> None:
    session = make_session(EngineDied("at birth"), None)
    assert session.survive(lambda arm: "done") == "done"
    assert Scripted.lives == 2


def test_an_engine_that_does_not_fit_is_not_started_again(make_session: MakeSession) -> None:
    session = make_session(EngineOutOfMemory("too big"), None)
    with pytest.raises(EngineOutOfMemory):
        session.survive(lambda arm: "done")
    assert Scripted.lives == 1
    assert session.unfit


def test_out_of_memory_while_it_serves_is_tried_again(make_session: MakeSession) -> None:
    session = make_session()
    assert session.survive(failing(1, EngineOutOfMemory("a large batch"))) == "done"
    assert not session.unfit


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (slice(1, None), r"found a prompt that the engine cut to its last \d+"),
        (slice(None, 7), "found a prompt that the engine cut to its first 7"),
        (slice(0, 0), "found 0 other ids, rendered by the engine"),
        (slice(None, None, -1), r"found \d+ other ids, rendered by the engine"),
    ],
)
def test_an_engine_that_is_not_what_is_pinned_is_stopped_before_it_is_used(
    make_session: MakeSession, spoil: slice, message: str
) -> None:
    session = make_session(spoil=spoil)
    with pytest.raises(PinMismatch, match=f"probe conversation 0: expected .*{message}"):
        session.survive(lambda arm: "done")
    assert (Scripted.lives, Scripted.ended) == (1, 1)
    session.close()
    assert Scripted.ended == 1, "nothing is left to stop"


def test_a_failure_of_what_is_no_service_is_not_counted(make_session: MakeSession) -> None:
    session = make_session()
    with pytest.raises(EngineDied):
        session.survive_unblamed(failing(5, EngineDied("gone")))
    assert (session.failures, Scripted.lives, Scripted.ended) == (0, 2, 2)


def rewrite(path: Path) -> None:
    """The same bytes once more: the file was written, if to no effect."""
    path.write_bytes(path.read_bytes())


def test_what_changes_while_an_engine_loads_is_refused(make_session: MakeSession, resolved: Resolved) -> None:
    session = make_session(loading=lambda spec: rewrite(resolved.model_dir / "model.safetensors"))
    with pytest.raises(PinMismatch, match=r"pins\.weights\.model\.safetensors"):
        session.survive(lambda arm: "done")
    assert (Scripted.lives, Scripted.ended, session.failures) == (1, 1, 0)
    session.require_settled()


def test_an_engine_loads_from_private_copies_and_its_errors_name_the_users_files(
    make_session: MakeSession, resolved: Resolved, checkweigh_home: Path
) -> None:
    seen: list[EngineSpec] = []

    def load(spec: EngineSpec) -> None:
        seen.append(spec)
        why = f"{spec.model_dir / 'config.json'}: no such layer"
        raise EngineDied("at birth", cause=why, log_tail=f"Traceback\n{why}")

    session = make_session(loading=load)
    with pytest.raises(EngineDied) as caught:
        session.survive(lambda arm: "done")
    assert checkweigh_home in seen[0].model_dir.parents
    assert seen[0].model_dir == seen[0].tokenizer_dir == seen[1].model_dir
    for text in (str(caught.value), caught.value.cause, caught.value.log_tail):
        assert "served" not in text
    assert f"{resolved.model_dir}/config.json: no such layer" in caught.value.log_tail


def test_what_was_measured_counts_when_every_arm_was_read_again(
    make_session: MakeSession, resolved: Resolved
) -> None:
    counted, dropped = [], []
    sessions = make_session(), make_session()
    sessions[1].role = "baseline"
    for session in sessions:
        session.running()
        with pytest.raises(Broken, match="not read again"):
            session.require_settled()
    for name, own in (("own", sessions[:1]), ("both", sessions)):
        measured = Provisional(
            keep=lambda name=name: counted.append(name),
            drop=lambda name=name: dropped.append(name),  # type: ignore[misc]
        )
        hold(measured, *own)
    sessions[0].settle()
    sessions[0].settle()
    assert counted == ["own"], "the divergence waits for the other arm"
    rewrite(resolved.model_dir / "config.json")
    with pytest.raises(PinMismatch) as caught:
        settle_all(sessions)
    assert [problem.path for problem in caught.value.problems] == ["pins.tokenizer.config.json"]
    assert (counted, dropped) == (["own"], ["both"])
    sessions[0].require_settled()
    with pytest.raises(Broken):
        sessions[1].require_settled()


def test_the_next_start_reads_for_what_was_measured_before(make_session: MakeSession) -> None:
    counted: list[str] = []
    session = make_session()
    session.running()
    hold(Provisional(keep=lambda: counted.append("first")), session)
    session.close()
    assert counted == []
    session.running()
    assert counted == ["first"]
    assert session.verification.seconds > 0
    session.settle()
