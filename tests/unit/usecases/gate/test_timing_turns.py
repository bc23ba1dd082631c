"""How the arms of a gate take turns while they are timed, and what a policy's load asks of them beforehand."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from tests.unit.measure.conftest import InProcess, make_arm
from tests.unit.usecases.gate_bench import SCORE, GateBench

from checkweigh.engines.protocol import Messages
from checkweigh.errors import EngineDied, EngineOutOfMemory
from checkweigh.measure.paired_blocks import ARMS
from checkweigh.measure.served_arm import ServedArm
from checkweigh.progress import no_progress
from checkweigh.records.measurement import PairedRun
from checkweigh.records.policy import Policy
from checkweigh.usecases.gate.arms.engine_session import EngineSession
from checkweigh.usecases.gate.arms.time_arms import (
    BY_RESTARTS,
    TimingPrompts,
    time_arms,
)

from tests.builders import check, policy  # isort: skip

TPOT = check(
    id="tpot", metric="tpot", statistic="p50", evalset=[], direction="lower", scale="relative", margin=0.5,
    min_items=6, min_clusters=6, tier="advisory",
)  # fmt: skip
LOAD = {"arrivals": {"kind": "poisson", "rate": 4.0}, "slo": {"e2e": 3.0}}


class Memory:
    """A host that holds ``room`` engines at once."""

    def __init__(self, room: int, fails: int = 0) -> None:
        self.room, self.fails, self.up, self.starts = room, fails, 0, 0
        self.most = 0

    def start(self) -> ServedArm:
        if self.up >= self.room:
            raise EngineOutOfMemory("does not fit")
        self.up, self.starts = self.up + 1, self.starts + 1
        self.most = max(self.most, self.up)
        return make_arm(_Counted(self, dies=self.starts <= self.fails))


class _Counted(InProcess):
    def __init__(self, memory: Memory, *, dies: bool) -> None:
        super().__init__()
        self.memory, self.dies = memory, dies

    def __exit__(self, *exc: object) -> None:
        self.memory.up -= 1

    def generate(self, batch: Any) -> Any:
        if self.dies:
            raise EngineDied("gone")
        return super().generate(batch)


class Session(EngineSession):
    """A session whose engines are started by a test."""

    def __init__(self, role: str, start: Callable[[], ServedArm]) -> None:
        super().__init__(
            role=role, resolved=None, logs=Path(), progress=no_progress,  # type: ignore[arg-type]
        )  # fmt: skip
        self.begin = start

    def _start(self) -> ServedArm:
        return self.begin()


def rules(max_seconds: float = 60) -> Policy:
    timing = {"pairs": 8, "requests": 2, "output_tokens": 4, "max_seconds": max_seconds}
    return policy(check(), TPOT, timing=timing)


def timed(
    sessions: Mapping[str, EngineSession], conversations: list[Messages], max_seconds: float = 60
) -> PairedRun:
    """The blocks of two arms, with a minute for all of it."""
    prompts, deadline = TimingPrompts(conversations=conversations), time.monotonic() + 60
    return time_arms(rules(max_seconds), sessions, prompts, no_progress, deadline=deadline).run


def test_the_time_for_timing_is_not_spent_on_starting_engines(conversations: list[Messages]) -> None:
    host = Memory(2)

    def slowly() -> ServedArm:
        time.sleep(2.0)
        return host.start()

    sessions = {str(role): Session(role, slowly) for role in ARMS}
    run = timed(sessions, conversations, max_seconds=3)
    assert len(run.blocks) == 8


@pytest.mark.parametrize("minutes_over", [True, False])
def test_timing_is_late_when_the_gates_time_was_over_and_not_that_of_timing(
    minutes_over: bool, conversations: list[Messages]
) -> None:
    sessions = {str(role): Session(role, Memory(2).start) for role in ARMS}
    deadline = time.monotonic() + (0 if minutes_over else 60)
    short = rules(max_seconds=60 if minutes_over else 1e-9)
    timed = time_arms(
        short, sessions, TimingPrompts(conversations=conversations), no_progress, deadline=deadline
    )
    assert len(timed.run.blocks) == 1
    assert timed.late is minutes_over


@pytest.mark.parametrize(("room", "restarts"), [(2, False), (1, True)])
def test_arms_that_do_not_fit_together_take_turns_in_memory(
    room: int, restarts: bool, conversations: list[Messages]
) -> None:
    host = Memory(room)
    sessions = {str(role): Session(role, host.start) for role in ARMS}
    run = timed(sessions, conversations)
    assert len(run.blocks) == 8
    assert (BY_RESTARTS in run.notes) is restarts
    assert host.most == room
    assert (host.starts > 4) is restarts
    assert not any(s.unfit or s.failures for s in sessions.values()), "not fitting together is no failure"


def test_arms_that_do_not_fit_alone_are_an_error(conversations: list[Messages]) -> None:
    sessions = {str(role): Session(role, Memory(0).start) for role in ARMS}
    with pytest.raises(EngineOutOfMemory) as caught:
        timed(sessions, conversations)
    assert caught.value.arm in ARMS


def test_an_engine_that_dies_is_started_once_more_and_its_blocks_are_not_used(
    conversations: list[Messages],
) -> None:
    sessions = {
        "baseline": Session("baseline", Memory(9).start),
        "candidate": Session("candidate", Memory(9, fails=1).start),
    }
    run = timed(sessions, conversations)
    assert len(run.blocks) == 8
    assert (sessions["candidate"].failures, sessions["baseline"].failures) == (1, 0)
    dying = {
        "baseline": Session("baseline", Memory(9).start),
        "candidate": Session("candidate", Memory(9, fails=2).start),
    }
    with pytest.raises(EngineDied) as caught:
        timed(dying, conversations)
    assert caught.value.arm == "candidate"


@pytest.fixture
def conversations() -> list[Messages]:
    from checkweigh.records.evalset import Message

    return [(Message(role="user", content=f"question {i}"),) for i in range(5)]


def test_a_load_needs_engines_that_serve_over_http(bench: GateBench) -> None:
    bench.policy(SCORE, TPOT | {"min_items": 60}, timing={"pairs": 6, "requests": 10, "load": LOAD})
    assert bench.gate() == 2
    assert (
        "timing.load: expected manifests of engines that serve over HTTP, such as vllm, found embedded ones in"
        in (bench.stderr)
    )
    assert not (bench.out / "logs").exists(), "nothing was started"


def test_a_trace_is_read_and_measured_against_the_plan_beforehand(bench: GateBench) -> None:
    arrivals = {"kind": "trace", "file": "trace.csv", "max_prompt_tokens": 2000}
    bench.policy(SCORE, TPOT, timing={"pairs": 6, "requests": 10, "load": LOAD | {"arrivals": arrivals}})
    assert bench.gate() == 2
    assert "trace.csv: expected a trace of requests, found no such file" in bench.stderr
    rows = "".join(f"2023-11-16 18:17:{i:02d},{i + 1},{i + 1}\n" for i in range(9))
    (bench.folder / "gates" / "trace.csv").write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n" + rows)
    assert bench.gate() == 2
    assert "expected a trace of 60 requests, one for each of all blocks, found 9" in bench.stderr
    assert "that fit into candidate's limits.max_sequence" in bench.stderr


def test_a_sweep_without_a_load_is_bad_input(bench: GateBench) -> None:
    assert bench.gate(more=["--sweep"]) == 2
    assert "timing.load: expected a load to sweep, found none" in bench.stderr


@pytest.mark.parametrize("name", ["serving.yaml", "serving-p99.yaml"])
def test_the_shipped_policies_refuse_an_embedded_engine_by_name(name: str, bench: GateBench) -> None:
    shipped = str(Path(__file__).parents[4] / "gates" / name)
    manifests = [str(bench.manifest(role)) for role in ARMS]
    assert bench.run("gate", *manifests, "--policy", shipped) == 2
    assert "timing.load" in bench.stderr
