"""Any OpenAI-compatible endpoint that somebody else runs: asked, measured, and believed only where it can be checked.

A vLLM server is recognised by its /version and /tokenize: it then says token ids and scores prompts. Of any other
server only texts and times are known; perplexity and choices are refused. ``unverified`` lists what nobody here can
know, and the decision repeats it.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Self, TypeVar

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
from checkweigh.engines.vllm.server_identity import end_ids
from checkweigh.engines.vllm.server_metrics import read_telemetry, require_cold
from checkweigh.errors import BadInput, EngineDied, EngineError, EngineTimeout, PinMismatch, Problem
from checkweigh.records.measurement import EngineIdentity
from checkweigh.sources.model.render import Renderer

T = TypeVar("T")
ALWAYS = ("weights", "configuration", "quantization", "dtype", "device", "threads", "packages", "memory")
WITHOUT_IDS = ("version", "prompt token ids", "reply token ids", "limits.max_sequence")
_TIMEOUTS = Timeouts()


class AttachedEngine:
    """An ``Engine`` on an endpoint. Entering asks what it is; leaving closes the connections and nothing else."""

    def __init__(self, spec: EngineSpec, *, timeouts: Timeouts = _TIMEOUTS) -> None:
        attached = spec.manifest.engine.endpoint
        assert attached is not None
        self.spec = spec
        self.timeouts = timeouts
        self.key_env = attached.key_env
        self.endpoint = Endpoint(url=attached.url.rstrip("/"), model=attached.model, key=None)
        self._stack = ExitStack()
        self._open = False
        self._identity: EngineIdentity | None = None
        self._timed: Telemetry | None = None

    @property
    def identity(self) -> EngineIdentity:
        """What the endpoint says, and the manifest's word for the rest, which ``settings`` lists."""
        if self._identity is None:
            raise EngineDied("the endpoint was not asked yet")
        return self._identity

    def __enter__(self) -> Self:
        key = None if self.key_env is None else os.environ.get(self.key_env)
        if self.key_env is not None and not key:
            raise BadInput(
                f"{self.spec.manifest.name}: expected a key in the environment variable {self.key_env}"
            )
        self.endpoint = replace(self.endpoint, key=key)
        self._runner = self._stack.enter_context(asyncio.Runner())
        try:
            deadlines = Deadlines(connect=10.0, idle=self.timeouts.call, total=self.timeouts.call)
            self._client = self._runner.run(Client(self.endpoint, deadlines).__aenter__())
            self._stack.callback(lambda: self._runner.run(self._client.__aexit__(None, None, None)))
            self._open = True
            self._call("start", self.timeouts.render, self._introduce)
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self._close()

    def _close(self) -> None:
        self._open, self._identity = False, None
        with suppress(RuntimeError):
            self._stack.close()

    async def _introduce(self) -> None:
        manifest, root = self.spec.manifest, self.endpoint.root
        models = await self._client.get(f"{self.endpoint.url}/models")
        listed = [m for m in models.get("data") or [] if isinstance(m, dict)]
        served = next((m for m in listed if m.get("id") == self.endpoint.model), None)
        if served is None:
            names = ", ".join(str(m.get("id")) for m in listed) or "no model"
            raise PinMismatch(
                [
                    Problem(
                        file=manifest.name, line=None, path="engine.endpoint.model",
                        expected=self.endpoint.model, found=f"{names} (the server says)",
                    )
                ]
            )  # fmt: skip
        version, ids = None, False
        with suppress(EngineError):
            version = (await self._client.get(f"{root}/version")).get("version")
            body = {"model": self.endpoint.model, "prompt": "a", "add_special_tokens": False}
            ids = isinstance((await self._client.post(f"{root}/tokenize", body)).get("tokens"), list)
        capabilities = ServerCapabilities(
            ids=ids and isinstance(version, str), scores=ids and isinstance(version, str)
        )
        renderer = Renderer(self.spec.tokenizer_dir, self.spec.chat_template)
        self._batches = BatchClient(self._client, manifest, renderer, capabilities, end_ids(self.spec))
        self._identity = self._identity_of(served, version if capabilities.ids else None)

    def _identity_of(self, model: dict[str, Any], version: str | None) -> EngineIdentity:
        """The identity; what the server does not say is the manifest's word."""
        manifest = self.spec.manifest
        engine, quantization = manifest.engine, manifest.quantization
        longest = model.get("max_model_len")
        unknown = [*ALWAYS, *(WITHOUT_IDS if version is None else ())]
        if isinstance(longest, int):
            unknown = [name for name in unknown if name != "limits.max_sequence"]
        return EngineIdentity(
            kind="openai", version=engine.version if version is None else version.partition("+")[0],
            dtype=engine.dtype, device=engine.device,
            quantization=" ".join(filter(None, (quantization.method, quantization.type))), threads=engine.threads,
            max_sequence=longest if isinstance(longest, int) else manifest.limits.max_sequence,
            vocabulary_size=0, eos=end_ids(self.spec), packages={},
            settings={"endpoint": self.endpoint.url, "model": self.endpoint.model, "unverified": ", ".join(unknown),
                      **({"root": root} if isinstance(root := model.get("root"), str) else {})},
        )  # fmt: skip

    def render(self, conversations: Sequence[Messages]) -> list[tuple[int, ...]]:
        """Prompt ids as the server renders them; the pinned ones where it does not say (``unverified``)."""
        if not self._batches.capabilities.ids:
            return [self._batches.renderer.render(messages) for messages in conversations]
        return self._call("render", self.timeouts.render, lambda: self._batches.render(conversations))

    def score(self, batch: Sequence[ScoreRequest]) -> list[ScoreResult | ItemFailure]:
        """Score one batch. BadInput: the server cannot."""
        return self._call("score", self.timeouts.call, lambda: self._batches.score(batch))

    def generate(self, batch: Sequence[GenerateRequest]) -> list[GenerateResult | ItemFailure]:
        """Generate one batch of replies with the pinned sampling."""
        timed = any(request.exact_tokens is not None for request in batch)
        if timed and self._timed is None and self._batches.capabilities.ids:
            self._timed = self._call("metrics", self.timeouts.render, self._counters)
        sent = time.monotonic()
        return self._call("generate", self.timeouts.call, lambda: self._batches.generate(batch, sent))

    def states(self, batch: Sequence[ScoreRequest], folder: Path) -> list[States | ItemFailure]:
        """As ``VllmEngine``: the likeliest tokens."""
        return topk_kl.states(self.score, batch, folder)

    def divergence(
        self, batch: Sequence[ScoreRequest], their_states: Path, own_states: Path
    ) -> list[Divergence | ItemFailure]:
        """As ``VllmEngine``: lower bounds."""
        decode = self._batches.renderer.decode
        return [topk_kl.compare(request.id, their_states, own_states, decode) for request in batch]

    def resources(self, *, reset_peak: bool = False) -> Resources:
        """Of another's process nothing is known: 0, which no check on memory can use. Counters where it is a vLLM."""
        counters = None
        if self._batches.capabilities.ids:
            counters = self._call("resources", self.timeouts.render, self._counters)
            before, self._timed = self._timed, None
            if before is not None:
                require_cold(before, counters)
        return Resources(resident=0, peak=0, swapped=0, telemetry=counters)

    async def _counters(self) -> Telemetry:
        return read_telemetry(await self._client.get_text(f"{self.endpoint.root}/metrics"))

    def _call(self, call: str, seconds: float, work: Callable[[], Awaitable[T]]) -> T:
        if not self._open:
            raise EngineDied(f"{call}: the connection to the endpoint is closed")
        try:
            return self._runner.run(with_timeout(seconds, work))
        except TimeoutError:
            raise EngineTimeout(f"{call}: {self.endpoint.url} gave no answer within {seconds:g} s") from None
