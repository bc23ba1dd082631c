"""The engine's process: its answers, its deaths with their causes, and that nothing is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pytest
from tests.unit.engines.conftest import MakeSpec, make_spec, user
from tests.waiting import InVain, until

from checkweigh.engines.protocol import (
    GenerateRequest,
    GenerateResult,
    ScoreRequest,
    ScoreResult,
)
from checkweigh.engines.spec import Timeouts
from checkweigh.engines.worker.engine import WorkerEngine
from checkweigh.engines.worker.process import environment
from checkweigh.errors import (
    BadInput,
    EngineDied,
    EngineError,
    EngineOutOfMemory,
    EngineTimeout,
)
from checkweigh.records.evalset import Message

SCORE = [ScoreRequest(id="a", messages=user("red or blue"), continuations=("red", "blue"))]
SHORT = Timeouts(start=20, call=0.5, render=20)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "engine.log"


@pytest.fixture(autouse=True)
def _leaves_nothing_behind():
    before = {p.pid for p in psutil.Process().children(recursive=True)}
    yield
    left = [p for p in psutil.Process().children(recursive=True) if p.pid not in before]
    assert not left


def ended(pid: int, seconds: float = 10.0) -> bool:
    def gone() -> bool:
        return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE

    with suppress(InVain):
        until(gone, seconds)
    return gone()


def called(log: Path) -> None:
    """Until an engine that ``prints`` has begun a call."""
    until(lambda: log.exists() and "a library speaks" in log.read_text())


def test_a_whole_life(fake: MakeSpec, log: Path) -> None:
    with WorkerEngine(fake(), log=log) as engine:
        pid = engine.pid
        assert pid is not None
        assert os.getpgid(pid) == pid  # a group of its own
        assert engine.identity.kind == "fake"
        (ids,) = engine.render([user("red or blue")])
        (scored,) = engine.score(SCORE)
        assert isinstance(scored, ScoreResult)
        assert scored.prompt_ids == ids
        (reply,) = engine.generate([GenerateRequest(id="g", messages=user("say blue"))])
        assert isinstance(reply, GenerateResult)
        assert reply.text.startswith("blue")
        memory = engine.resources(reset_peak=True)
        assert memory.peak >= memory.resident > 1 << 20
        assert memory.swapped >= 0
        assert engine.score([]) == []
    assert ended(pid)
    with pytest.raises(EngineDied, match="it was stopped"):
        engine.score(SCORE)


def test_use_before_the_start(fake: MakeSpec, log: Path) -> None:
    engine = WorkerEngine(fake(), log=log)
    for call in (lambda: engine.identity, lambda: engine.score(SCORE)):
        with pytest.raises(EngineDied, match="it was not started"):
            call()


@pytest.mark.parametrize(
    ("knob", "error", "cause"),
    [
        ("crash_at", EngineDied, "SIGABRT"),
        ("kill_at", EngineDied, r"signal 9 .*likely out of memory: host had \d+\.\d GiB free"),
        ("exit_at", EngineDied, "exited with code 0 although nobody asked"),
        ("raise_at", EngineDied, "ArithmeticError: the fake engine was told to raise"),
        ("oom_at", EngineOutOfMemory, "MemoryError: the fake engine was told"),
    ],
)
@pytest.mark.parametrize("at", [0, 2])
def test_deaths_name_their_cause(
    fake: MakeSpec, log: Path, knob: str, error: type[EngineError], cause: str, at: int
) -> None:
    engine = WorkerEngine(fake(**{knob: at}), log=log)

    def live() -> None:
        with engine:
            engine.score(SCORE)
            with pytest.raises(error, match=cause):
                engine.score(SCORE)
            started = time.monotonic()
            with pytest.raises(EngineDied, match="not running"):  # every further call, at once
                engine.resources()
            assert time.monotonic() - started < 0.1

    if at:
        live()
    else:
        with pytest.raises(error, match=cause):
            live()


def test_the_log_tail_shows_the_last_lines(fake: MakeSpec, log: Path) -> None:
    log.write_text("from an earlier engine\n")
    with WorkerEngine(fake(crash_at=1), log=log) as engine, pytest.raises(EngineDied) as caught:
        engine.score(SCORE)
    assert "Fatal Python error: Aborted" in caught.value.log_tail
    assert "earlier" not in caught.value.log_tail
    assert len(caught.value.log_tail.splitlines()) <= 20
    assert "earlier" in log.read_text()


@pytest.mark.parametrize(("at", "name"), [(0, "start"), (1, "call")])
def test_a_hang_is_killed_and_the_timeout_named(fake: MakeSpec, log: Path, at: int, name: str) -> None:
    timeouts = Timeouts(start=2 if at == 0 else 20, call=0.5, render=20)
    engine = WorkerEngine(fake(hang_at=at), log=log, timeouts=timeouts)
    with pytest.raises(EngineTimeout, match=f"timeout '{name}'"), engine:
        engine.score(SCORE)
    assert engine.pid is None
    with pytest.raises(EngineDied, match="stopped after"):
        engine.score(SCORE)


def test_an_answer_that_is_no_message(fake: MakeSpec, log: Path) -> None:
    with (
        WorkerEngine(fake(lie_at=1, lie="garbage"), log=log) as engine,
        pytest.raises(EngineError, match=r"does not fit the request.*a frame of 4294967295 bytes"),
    ):
        engine.score(SCORE)


def test_prints_do_not_disturb_the_protocol(fake: MakeSpec, log: Path) -> None:
    with WorkerEngine(fake(prints=True), log=log) as engine:
        assert isinstance(engine.score(SCORE)[0], ScoreResult)
    assert "a library speaks on stdout" in log.read_text()
    assert "descriptor 1" in log.read_text()


def test_not_a_number_passes_the_pipe(fake: MakeSpec, log: Path) -> None:
    with WorkerEngine(fake(nan_share=1.0), log=log) as engine:
        (result,) = engine.score(SCORE)
    assert isinstance(result, ScoreResult)
    assert all(np.isnan(c.logprobs).all() for c in result.continuations)


def test_bad_input_leaves_the_engine_alive(fake: MakeSpec, log: Path) -> None:
    with WorkerEngine(fake(), log=log) as engine:
        with pytest.raises(BadInput, match="the user speaks first"):
            engine.render([(Message(role="assistant", content="hello"),)])
        assert engine.render([user("hello")])


def test_bad_knobs_are_bad_input(fake: MakeSpec, log: Path) -> None:
    with pytest.raises(BadInput, match=r"did you mean 'bias_nats'\?.*known are.*wrong_share"):
        WorkerEngine(fake(bias_nat=1.0), log=log).__enter__()


def test_a_broken_start_of_python_is_a_death(
    fake: MakeSpec, log: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho no such module >&2\nexit 3\n")
    broken.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(broken))
    with pytest.raises(EngineDied, match="exited with code 3") as caught:
        WorkerEngine(fake(), log=log).__enter__()
    assert caught.value.log_tail == "no such module\n"


def test_an_interrupt_ends_the_process(fake: MakeSpec, log: Path) -> None:
    engine = WorkerEngine(fake(hang_at=1, prints=True), log=log)
    main, pids = threading.get_ident(), []

    def interrupt() -> None:
        called(log)
        signal.pthread_kill(main, signal.SIGINT)

    def work() -> None:
        with engine:
            pids.append(engine.pid)
            threading.Thread(target=interrupt).start()
            engine.score(SCORE)

    with pytest.raises(KeyboardInterrupt):
        work()
    assert ended(pids[0])


@pytest.mark.parametrize("thread", ["main", "other"])
def test_the_child_dies_with_its_parent(tokenizer_dir: Path, tmp_path: Path, thread: str) -> None:
    """The parent is killed while the child hangs in a call: nobody can clean up."""
    script = textwrap.dedent(
        f"""
        import sys, threading
        from pathlib import Path
        from tests.unit.engines.conftest import make_spec
        from tests.unit.engines.worker.test_worker_engine import SCORE
        from checkweigh.engines.worker.engine import WorkerEngine
        def run():
            options = {{"hang_at": 1, "prints": True}}
            spec = make_spec(Path({str(tokenizer_dir)!r}), "fake", engine={{"options": options}})
            with WorkerEngine(spec, log=Path({str(tmp_path / "log")!r})) as engine:
                print(engine.pid, flush=True)
                engine.score(SCORE)
        if {thread!r} == "main":
            run()
        else:
            threading.Thread(target=run).start()
        """
    )
    root = Path(__file__).parents[4]
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, cwd=root, text=True
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        called(tmp_path / "log")
        assert psutil.pid_exists(pid)
        parent.kill()
        parent.wait()
    assert ended(pid)


def test_the_environment_is_an_allow_list(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("OMP_NUM_THREADS", "64")
    seen = environment(3)
    assert "secret" not in seen.values()
    assert seen["OMP_NUM_THREADS"] == seen["MKL_NUM_THREADS"] == "3"
    assert seen["HF_HUB_OFFLINE"] == seen["TRANSFORMERS_OFFLINE"] == "1"
    assert seen["OMP_WAIT_POLICY"] == "PASSIVE"
    assert seen["TOKENIZERS_PARALLELISM"] == "false"


def test_a_large_message_passes_the_pipe(fake: MakeSpec, log: Path) -> None:
    text = "quick brown fox " * 40_000
    with WorkerEngine(fake({"limits": {"max_sequence": 1_000_000}}), log=log) as engine:
        (result,) = engine.score([ScoreRequest(id="big", messages=None, continuations=(text,))])
    assert isinstance(result, ScoreResult)
    assert len(result.continuations[0].token_ids) > 100_000


def test_starting_twice_is_refused(fake: MakeSpec, log: Path) -> None:
    with WorkerEngine(fake(), log=log) as engine, pytest.raises(EngineError, match="running already"):
        engine.__enter__()


def test_memory_is_checked_before_anything_is_loaded(tiny_dir: Path, log: Path) -> None:
    spec = make_spec(tiny_dir, "transformers", limits={"max_sequence": 256, "memory_headroom": 0.999})
    started = time.monotonic()
    with pytest.raises(EngineOutOfMemory, match=r"needs about .* GiB .*memory_headroom keeps 100%"):
        WorkerEngine(spec, log=log).__enter__()
    assert time.monotonic() - started < 5
