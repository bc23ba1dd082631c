"""Endpoints that somebody else runs: a vLLM, which can be asked a lot, and a server that only chats."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from tests.unit.engines.vllm.fake_vllm import write_environment
from tests.unit.engines.vllm.test_vllm import HELLO, make

from checkweigh.engines.attached import AttachedEngine
from checkweigh.engines.launch import check_engine, open_engine
from checkweigh.engines.protocol import GenerateRequest, GenerateResult, ScoreRequest, ScoreResult
from checkweigh.engines.spec import EngineSpec, Timeouts
from checkweigh.engines.vllm.engine import VllmEngine
from checkweigh.errors import BadInput, EngineDied, EngineRefused, EngineTimeout, PinMismatch
from checkweigh.measure.served_arm import ServedArm, check_identity
from checkweigh.records.manifest import Attached


def attach(spec: EngineSpec, url: str, model: str = "tiny", key_env: str | None = None) -> EngineSpec:
    changes = {"kind": "openai", "environment": None, "env": {}, "args": None,
               "endpoint": Attached(url=url, model=model, key_env=key_env)}  # fmt: skip
    engine = spec.manifest.engine.model_copy(update=changes)
    return replace(
        spec, manifest=spec.manifest.model_copy(update={"engine": engine}), python=None, packages={}
    )


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Iterator[VllmEngine]:
    """A running server of the scripted kind."""
    folder = tmp_path_factory.mktemp("attached")
    write_environment(folder / "env")
    with VllmEngine(make(folder / "env", tiny_model_dir), log=folder / "log") as engine:
        yield engine


@pytest.fixture
def key(server: VllmEngine, monkeypatch: pytest.MonkeyPatch) -> str:
    assert server.endpoint.key is not None
    monkeypatch.setenv("THE_KEY", server.endpoint.key)
    return "THE_KEY"


def test_a_vllm_of_others_is_asked_like_ours(server: VllmEngine, key: str, tmp_path: Path) -> None:
    spec = attach(server.spec, server.endpoint.url, key_env=key)
    with open_engine(spec, log=tmp_path / "log") as engine:
        assert isinstance(engine, AttachedEngine)
        request = [ScoreRequest(id="a", messages=HELLO, continuations=("red", "blue"))]
        (ours,), (theirs,) = server.score(request), engine.score(request)
        assert isinstance(ours, ScoreResult)
        assert isinstance(theirs, ScoreResult)
        assert theirs.prompt_ids == ours.prompt_ids
        assert all(
            (a.logprobs == b.logprobs).all()
            for a, b in zip(ours.continuations, theirs.continuations, strict=True)
        )
        (reply,) = engine.generate([GenerateRequest(id="x", messages=HELLO)])
        assert isinstance(reply, GenerateResult)
        identity = engine.identity
        assert (identity.kind, identity.version, identity.max_sequence) == ("openai", "9.9.0", 512)
        assert (
            identity.settings["unverified"]
            == "weights, configuration, quantization, dtype, device, threads, packages, memory"
        )
        assert identity.settings["root"] == str(server.spec.model_dir), (
            "another one after a restart is refused"
        )
        found = engine.resources()
        assert (found.resident, found.peak) == (0, 0)
        assert found.telemetry is not None
        check_identity(ServedArm(spec.manifest, engine, lambda m: (), lambda t: (), 0))
    assert server.render([HELLO])  # it was left running
    with pytest.raises(EngineDied, match="closed"):
        engine.render([HELLO])


def test_another_version_or_model_is_a_pin_mismatch(server: VllmEngine, key: str) -> None:
    spec = attach(server.spec, server.endpoint.url, key_env=key)
    engine = spec.manifest.engine.model_copy(update={"version": "9.8.0"})
    other = replace(spec, manifest=spec.manifest.model_copy(update={"engine": engine}))
    with AttachedEngine(other) as running, pytest.raises(PinMismatch, match=r"engine\.version"):
        check_identity(ServedArm(other.manifest, running, lambda m: (), lambda t: (), 0))
    with (
        pytest.raises(PinMismatch, match="tiny"),
        AttachedEngine(attach(server.spec, server.endpoint.url, "huge", key)),
    ):
        pass


def test_a_key_comes_from_the_environment(server: VllmEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = attach(server.spec, server.endpoint.url, key_env="NO_SUCH_KEY")
    with pytest.raises(BadInput, match="NO_SUCH_KEY"):
        check_engine(spec)
    with pytest.raises(BadInput, match="NO_SUCH_KEY"), AttachedEngine(spec):
        pass
    monkeypatch.setenv("NO_SUCH_KEY", "wrong")
    with pytest.raises(EngineRefused, match="401") as caught, AttachedEngine(spec):
        pass
    assert "wrong" not in str(caught.value)


class Chats(BaseHTTPRequestHandler):
    """A server that knows models and chat, and nothing that vLLM added."""

    slow = 0.0

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        if self.path == "/v1/models":
            self.answer(200, json.dumps({"object": "list", "data": [{"id": "gpt"}]}))
        else:
            self.answer(404, json.dumps({"error": {"message": "no"}}))

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path != "/v1/chat/completions" or "cache_salt" in body or "return_token_ids" in body:
            self.answer(400, json.dumps({"error": {"message": "what is that?"}}))
            return
        threading.Event().wait(self.slow)
        events = [{"choices": [{"delta": {"content": word}}]} for word in ("red", " blue", " green")]
        events += [{"choices": [{"delta": {}, "finish_reason": "stop"}]}]
        data = "".join(f"data: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n\n"
        self.answer(200, data)

    def answer(self, status: int, text: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())


@contextmanager
def chatting(slow: float = 0.0) -> Iterator[str]:
    handler = type("Slow", (Chats,), {"slow": slow})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as http:
        thread = threading.Thread(target=http.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{http.server_address[1]}/v1"
        finally:
            http.shutdown()
            thread.join()


def test_a_server_that_only_chats_is_believed_in_little(server: VllmEngine) -> None:
    with chatting() as url, AttachedEngine(attach(server.spec, url, "gpt")) as engine:
        unverified = engine.identity.settings["unverified"]
        assert {"version", "prompt token ids", "reply token ids", "weights", "configuration"} <= set(
            unverified.split(", ")
        )
        (reply,) = engine.generate([GenerateRequest(id="x", messages=HELLO)])
        assert isinstance(reply, GenerateResult)
        assert (reply.text, reply.finish) == ("red blue green", "stop")
        renderer = server._batches.renderer
        assert reply.token_ids == renderer.encode("red blue green")
        assert reply.prompt_ids == renderer.render(HELLO)
        assert len(reply.times) == len(reply.token_ids)
        assert list(reply.times) == sorted(reply.times)
        assert engine.resources().telemetry is None
        with pytest.raises(BadInput, match="scores prompts"):
            engine.score([ScoreRequest(id="s", messages=None, continuations=("red",))])


def test_a_server_that_does_not_answer(server: VllmEngine) -> None:
    timeouts = Timeouts(start=5.0, call=0.5, render=5.0)
    with (
        chatting(slow=1.5) as url,
        AttachedEngine(attach(server.spec, url, "gpt"), timeouts=timeouts) as engine,
        pytest.raises(EngineTimeout),
    ):
        engine.generate([GenerateRequest(id="x", messages=HELLO)])
    with pytest.raises(EngineDied, match="no connection"), AttachedEngine(attach(server.spec, url, "gpt")):
        pass
