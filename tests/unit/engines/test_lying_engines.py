"""A lie is refused in the same way whichever engine tells it, and no measurement asks an engine past the check."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.unit.engines.conftest import MakeSpec, user
from tests.unit.engines.test_attached import attach
from tests.unit.engines.vllm.fake_vllm import write_environment, write_script
from tests.unit.engines.vllm.test_vllm import make
from tests.unit.measure.conftest import InProcess

import checkweigh
from checkweigh.engines.attached import AttachedEngine
from checkweigh.engines.protocol import Engine, GenerateRequest, ItemFailure, ScoreRequest
from checkweigh.engines.vllm.engine import VllmEngine
from checkweigh.engines.worker.engine import WorkerEngine
from checkweigh.errors import EngineError
from checkweigh.measure.served_arm import ServedArm

ASKED = [ScoreRequest(id="a", messages=None, continuations=("red blue",))]
TIMED = [GenerateRequest(id="a", messages=user("say blue"), exact_tokens=5)]
Start = Callable[[str], Engine]


def spoilt_score(result: Any, lie: str) -> Any:
    """A score with the lie in it."""
    continuation = result.continuations[0]
    logprobs = continuation.logprobs.copy()
    logprobs[-1] = {"positive": 0.5, "non_finite": np.nan}.get(lie, logprobs[-1])
    if lie == "fewer_values":
        logprobs = logprobs[:-1]
    return replace(result, continuations=(replace(continuation, logprobs=logprobs),))


class Liar(InProcess):
    """An engine inside the test that lies."""

    def __init__(self, lie: str) -> None:
        super().__init__()
        self.lie = lie

    def score(self, batch: Any) -> Any:
        results = [spoilt_score(result, self.lie) for result in super().score(batch)]
        if self.lie == "fewer_results":
            return results[:-1]
        return [replace(r, id=r.id + "?") for r in results] if self.lie == "other_id" else results

    def generate(self, batch: Any) -> Any:
        (request,) = batch
        return super().generate([replace(request, exact_tokens=request.exact_tokens - 1)])


# The lies that each path can carry: over HTTP the client itself names the items and counts them.
WORKER: dict[str, dict[str, Any]] = {
    "fewer_results": {"lie_at": 1, "lie": "count"},
    "other_id": {"lie_at": 1, "lie": "ids"},
    "fewer_values": {"lie_at": 1, "lie": "lengths"},
    "positive": {"lie_at": 1, "lie": "positive"},
    "non_finite": {"nan_share": 1.0},
    "fewer_tokens": {"lie_at": 1, "lie": "lengths"},
}
SERVER: dict[str, dict[str, Any]] = {
    "fewer_values": {"short": True},
    "positive": {"positive": True},
    "non_finite": {"infinite": True},
    "fewer_tokens": {"fewer": True},
}
PATHS = [
    *(("in process", lie) for lie in WORKER),
    *(("worker", lie) for lie in WORKER),
    *((path, lie) for path in ("vllm", "attached") for lie in SERVER),
]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment whose vLLM lies as its script says."""
    folder = tmp_path_factory.mktemp("lies") / "env"
    write_environment(folder)
    return folder


@pytest.fixture
def liar(
    fake: MakeSpec, environment: Path, tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[str, str], ServedArm]]:
    """``liar(path, lie)``: an arm whose engine, reached by that path, tells that lie."""
    with ExitStack() as stack:

        def start(path: str, lie: str) -> ServedArm:
            spec = fake(**WORKER[lie])
            if path == "in process":
                engine: Engine = Liar(lie)
            elif path == "worker":
                engine = stack.enter_context(WorkerEngine(spec, log=tmp_path / "log"))
            else:
                write_script(environment, **SERVER[lie])
                spec = make(environment, tiny_model_dir)
                server = stack.enter_context(VllmEngine(spec, log=tmp_path / "log"))
                engine = server
                if path == "attached":
                    monkeypatch.setenv("THE_KEY", str(server.endpoint.key))
                    spec = attach(spec, server.endpoint.url, key_env="THE_KEY")
                    engine = stack.enter_context(AttachedEngine(spec))
            return ServedArm(spec.manifest, engine, lambda messages: (), lambda text: (), 0)

        yield start


@pytest.mark.parametrize(("path", "lie"), PATHS)
def test_a_lie_is_refused_whoever_tells_it(
    liar: Callable[[str, str], ServedArm], path: str, lie: str
) -> None:
    arm = liar(path, lie)
    if lie == "non_finite":
        (result,) = arm.score(ASKED)
        assert isinstance(result, ItemFailure)
        assert (result.id, result.reason) == ("a", "non_finite")
        return
    with pytest.raises(EngineError, match="does not fit the request"):
        arm.generate(TIMED) if lie == "fewer_tokens" else arm.score(ASKED)


def test_a_server_that_lies_writes_no_states(liar: Callable[[str, str], ServedArm], tmp_path: Path) -> None:
    arm = liar("vllm", "positive")
    with pytest.raises(EngineError, match="a probability above 1"):
        arm.states(ASKED, tmp_path)
    assert not list(tmp_path.glob("*.states"))


def test_only_the_checked_calls_ask_an_engine() -> None:
    """Outside the engines nobody calls what a measurement rests on but ``ServedArm``, and what hands it on unread."""
    root = Path(checkweigh.__file__).parent
    allowed = {root / "measure" / "served_arm.py", root / "guard" / "admission" / "guarded_engine.py"}
    callers = set()
    for path in root.rglob("*.py"):
        if path.is_relative_to(root / "engines"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and node.attr in (
                "score",
                "generate",
                "states",
                "divergence",
                "render",
            ):
                owner = node.value
                name = owner.attr if isinstance(owner, ast.Attribute) else getattr(owner, "id", "")
                if name in ("engine", "_engine", "_inner"):
                    callers.add(path)
    assert callers == allowed
