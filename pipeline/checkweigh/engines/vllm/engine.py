"""The vLLM engine: a server of its own for each arm, started, compared with its manifest, warmed up, asked, ended.

1. ``preflight``: its environment is there and can do what is set. The model must fit into the host's memory.
2. Start on a free loopback port with a random key, and wait until it is healthy or dead.
3. ``identify``: what it reports must be what the manifest says; any difference is refused.
4. Warm up with prompts of several lengths: the first request of a kind compiles kernels for seconds.
5. Every call runs with a deadline. A server that dies, hangs or gives a wrong answer is ended, and the error says why.
"""

from __future__ import annotations

import asyncio
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Self, TypeVar

from checkweigh.engines import gpu
from checkweigh.engines.host_memory import available
from checkweigh.engines.http.batches import BatchClient, ServerCapabilities, with_timeout
from checkweigh.engines.http.client import Client, Deadlines, Endpoint
from checkweigh.engines.protocol import (
    Divergence,
    GenerateRequest,
    GenerateResult,
    ItemFailure,
    Messages,
    Resources,
    ScoreRequest,
    ScoreResult,
    States,
    Telemetry,
)
from checkweigh.engines.spec import EngineSpec, Timeouts
from checkweigh.engines.vllm import topk_kl
from checkweigh.engines.vllm.measurement_warmup import warm_up
from checkweigh.engines.vllm.memory import require_server_room
from checkweigh.engines.vllm.server_identity import identify
from checkweigh.engines.vllm.server_launch import plan_server, preflight
from checkweigh.engines.vllm.server_metrics import read_telemetry, require_cold
from checkweigh.engines.vllm.server_process import Server, memory_of
from checkweigh.errors import (
    BadInput,
    EngineDied,
    EngineError,
    EngineOutOfMemory,
    EngineRefused,
    EngineTimeout,
)
from checkweigh.records.measurement import EngineIdentity
from checkweigh.sources.model.render import Renderer

T = TypeVar("T")
PORTS = 3  # tries: another process may take the port between the look and the start
_TIMEOUTS = Timeouts()


class VllmEngine:
    """An ``Engine``. Entering starts the server, leaving ends it; ``endpoint`` is where it listens meanwhile.

    Any call raises EngineDied, EngineTimeout, EngineOutOfMemory and EngineError as ``WorkerEngine`` does. BadInput: a
    setting is refused, or the prefix cache cannot be kept cold. PinMismatch: the server is not what is pinned.
    """

    def __init__(self, spec: EngineSpec, *, log: Path, timeouts: Timeouts = _TIMEOUTS) -> None:
        self.spec = spec
        self.log = log
        self.timeouts = timeouts
        self.endpoint = Endpoint(url="", model=spec.manifest.name)
        self._stack = ExitStack()
        self._server: Server | None = None
        self._identity: EngineIdentity | None = None
        self._kv_tokens: int | None = None  # size of the cache, where the server reports it
        self._dead = "it was not started"
        self._timed: Telemetry | None = (
            None  # counters before the first timed request that was not yet judged
        )
        self._kv_use = 0.0

    @property
    def identity(self) -> EngineIdentity:
        """What the running server reports of itself. EngineDied before the start."""
        if self._identity is None:
            raise EngineDied("the engine is not running", cause=self._dead)
        return self._identity

    @property
    def pid(self) -> int | None:
        """The server's process id; None when it does not run."""
        return None if self._server is None else self._server.pid

    def __enter__(self) -> Self:
        if self._server is not None:
            raise EngineError("the engine is running already")
        python = preflight(self.spec)
        if self.spec.manifest.engine.device == "cpu":
            require_server_room(self.spec, available())
        try:
            self._start(python)
        except BaseException:
            self._end("it did not start", grace=0)
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self._end("it was stopped", grace=20.0 if exc[:1] in ((), (None,)) else 0)

    def _start(self, python: Path) -> None:
        until = time.monotonic() + self.timeouts.start
        folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="checkweigh-")))
        self._runner = self._stack.enter_context(asyncio.Runner())
        for attempt in range(PORTS):
            plan = plan_server(self.spec, python, log=self.log, template=folder / "chat_template.jinja")
            self._server = Server(plan)
            self.endpoint = plan.endpoint
            deadlines = Deadlines(connect=5.0, idle=self.timeouts.call, total=self.timeouts.call)
            client = self._runner.run(Client(self.endpoint, deadlines).__aenter__())
            self._stack.callback(self._close, client)
            self._client = client
            if self._wait_healthy(until):
                break
            if "port was taken" not in self._server.cause() or attempt == PORTS - 1:
                raise self._died("start")
            self._server.stop(grace=0)
        self._call("start", max(1.0, until - time.monotonic()), self._introduce)
        warm = partial(warm_up, self._batches, self.identity.vocabulary_size)
        self._call("warm-up", max(1.0, until - time.monotonic()), warm)

    def _close(self, client: Client) -> None:
        self._runner.run(client.__aexit__(None, None, None))

    def _wait_healthy(self, until: float) -> bool:
        """True when the server answers, False when it ended; EngineTimeout when neither happens in time."""
        assert self._server is not None
        while not self._server.ended(wait_s=0.2):
            with suppress(EngineError, TimeoutError):
                self._runner.run(
                    with_timeout(5.0, lambda: self._client.get_text(f"{self.endpoint.root}/health"))
                )
                return True
            if time.monotonic() > until:
                raise self._slow("start", self.timeouts.start)
        return False

    async def _introduce(self) -> None:
        """Ask the server what it is; PinMismatch when that is not what is pinned."""
        assert self._server is not None
        report, self._identity = await identify(self._client, self.spec, self._server.text())
        self._kv_tokens = report.kv_tokens
        renderer = Renderer(self.spec.tokenizer_dir, self.spec.chat_template)
        capabilities = ServerCapabilities(ids=True, scores=True)
        self._batches = BatchClient(
            self._client, self.spec.manifest, renderer, capabilities, self._identity.eos
        )

    def render(self, conversations: Sequence[Messages]) -> list[tuple[int, ...]]:
        """Prompt token ids as the server itself renders them, generation prompt included."""
        return self._call("render", self.timeouts.render, lambda: self._batches.render(conversations))

    def score(self, batch: Sequence[ScoreRequest]) -> list[ScoreResult | ItemFailure]:
        """Score one batch."""
        return self._call("score", self.timeouts.call, lambda: self._watched(self._batches.score(batch)))

    def generate(self, batch: Sequence[GenerateRequest]) -> list[GenerateResult | ItemFailure]:
        """Generate one batch of replies with the pinned sampling."""
        sent = time.monotonic()
        if any(request.exact_tokens is not None for request in batch):
            if self._timed is None:
                self._timed = self._call("metrics", self.timeouts.render, self._counters)
                sent = time.monotonic()
            return self._call("generate", self.timeouts.call, lambda: self._batches.generate(batch, sent))
        work = self._batches.generate
        return self._call("generate", self.timeouts.call, lambda: self._watched(work(batch, sent)))

    def states(self, batch: Sequence[ScoreRequest], folder: Path) -> list[States | ItemFailure]:
        """Write the likeliest tokens at each position of each raw text: all that a server says of a distribution."""
        return topk_kl.states(self.score, batch, folder)

    def divergence(
        self, batch: Sequence[ScoreRequest], their_states: Path, own_states: Path
    ) -> list[Divergence | ItemFailure]:
        """Lower bounds on the divergence, from what both servers wrote."""
        decode = self._batches.renderer.decode
        return [topk_kl.compare(request.id, their_states, own_states, decode) for request in batch]

    def resources(self, *, reset_peak: bool = False) -> Resources:
        """Memory of the server and all it started, and its counters. Judges whether timed requests were cold."""
        server = self._running("resources")
        memory = memory_of(server.processes(), reset_peak=reset_peak)
        counters = self._call("resources", self.timeouts.render, self._counters)
        before, self._timed = self._timed, None
        if before is not None:
            require_cold(before, counters)
        used = gpu.usage([p.pid for p in server.processes()]) if self._on_gpu() else None
        if used is None:
            return replace(memory, telemetry=counters)
        held, busy = used
        return replace(
            memory, resident=memory.resident + held, peak=memory.peak + held, gpu=held, utilization=busy,
            telemetry=counters,
        )  # fmt: skip

    def _on_gpu(self) -> bool:
        return self.spec.manifest.engine.device == "cuda"

    async def _counters(self) -> Telemetry:
        counters = read_telemetry(await self._client.get_text(f"{self.endpoint.root}/metrics"))
        self._kv_use = max(self._kv_use, counters.kv_use)
        return replace(counters, kv_use=self._kv_use, kv_tokens=self._kv_tokens)

    async def _watched(self, work: Awaitable[T]) -> T:
        """The work's result; looks once a second how full the cache is meanwhile."""

        async def look() -> None:
            while True:
                await asyncio.sleep(1.0)
                with suppress(EngineError):
                    await self._counters()

        looking = asyncio.ensure_future(look())
        try:
            return await work
        finally:
            looking.cancel()
            with suppress(asyncio.CancelledError):
                await looking

    def _running(self, call: str) -> Server:
        if self._server is None:
            raise EngineDied(f"{call}: the engine is not running", cause=self._dead)
        if self._server.ended():
            raise self._died(call)
        return self._server

    def _call(self, call: str, seconds: float, work: Callable[[], Awaitable[T]]) -> T:
        """The work's result; every way it can fail becomes an error with its cause, and ends the server."""
        self._running(call)
        if threading.current_thread() is not threading.main_thread() and self._runner.get_loop().is_running():
            raise EngineError(f"{call}: the engine is in use")
        try:
            return self._runner.run(with_timeout(seconds, work))
        except BadInput:
            raise
        except TimeoutError:
            raise self._slow(call, seconds) from None
        except EngineTimeout as error:
            raise self._slow(call, seconds) from error
        except EngineError as error:
            raise self._failed(call, error) from error
        except BaseException:  # Ctrl-C in the middle of a call: what comes next finds no server
            self._end(f"{call} was interrupted", grace=0)
            raise

    def _failed(self, call: str, error: EngineError) -> EngineError | BadInput:
        """``error``, or the server's death if that is what it was."""
        assert self._server is not None
        if self._server.ended(wait_s=2.0):
            return self._died(call)
        tail, cause = self._server.tail(), error.cause
        self._end(f"{call}: {error}", grace=0)
        if isinstance(error, EngineRefused):
            return EngineError(
                f"{call}: the server refused a request ({error.status})", cause=cause, log_tail=tail
            )
        named = type(error)(f"{call}: {error}")
        named.log_tail = tail
        return named

    def _died(self, call: str) -> EngineError | BadInput:
        """The error for a server that ended by itself."""
        assert self._server is not None
        server = self._server
        server.ended(wait_s=5.0)
        cause, tail = server.cause(), server.tail()
        memory, refused = server.out_of_memory(), server.refused()
        self._end(cause, grace=0)
        if refused and call == "start":
            return BadInput(
                f"{self.spec.manifest.name}: vllm {self.spec.manifest.engine.version}: {cause}\n{tail}"
            )
        if memory:
            return EngineOutOfMemory(f"{call}: the engine is out of memory", cause=cause, log_tail=tail)
        return EngineDied(f"the engine died during {call}", cause=cause, log_tail=tail)

    def _slow(self, call: str, seconds: float) -> EngineTimeout:
        assert self._server is not None
        tail = self._server.tail()
        self._end(f"it was stopped after {call} took over {seconds:g} s", grace=0)
        return EngineTimeout(
            f"{call}: no answer within {seconds:g} s",
            cause="the server was still running; it was killed",
            log_tail=tail,
        )

    def _end(self, why: str, *, grace: float) -> None:
        server, self._server = self._server, None
        if server is not None:
            self._dead = why
        try:
            if server is not None:
                server.stop(grace)
        finally:
            self._identity = None if server is not None else self._identity
            with suppress(RuntimeError):  # the loop of an interrupted call
                self._stack.close()
