"""Scoring and generating through an OpenAI-compatible server: what launched and attached engines have in common.

- A conversation is rendered by the server itself: chat requests say the ids of their prompt (``return_token_ids``), and
  ``/tokenize`` gives those that a choice is appended to. Measurement holds all of them against the pinned ones.
- Scores are ``prompt_logprobs`` of prompt and continuation. As many requests run together as have at most
  ``engine.max_batch_tokens`` tokens, so that scoring cannot exhaust the server's memory.
- Every call has a salt of its own for the prefix cache, every timed request too: nothing is warm from before.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, TypeVar

import numpy as np

from checkweigh.engines.backend import too_long
from checkweigh.engines.http.client import (
    VLLM_IDS,
    Client,
    Event,
    Streamed,
    StreamRequest,
)
from checkweigh.engines.protocol import (
    Continuation,
    GenerateRequest,
    GenerateResult,
    ItemFailure,
    Messages,
    ScoreRequest,
    ScoreResult,
)
from checkweigh.engines.validation import check
from checkweigh.errors import BadInput, EngineError, EngineRefused
from checkweigh.records.manifest import Manifest
from checkweigh.sources.model.render import Renderer

T = TypeVar("T")
Ids = tuple[int, ...]
TINY = -9000.0  # vLLM's number for minus infinity is -9999


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerCapabilities:
    """What a server can do beyond OpenAI's own: say token ids, score prompts, salt its cache."""

    ids: bool
    scores: bool


class BatchClient:
    """One conversation with one server: the asynchronous half of an engine."""

    def __init__(
        self,
        client: Client,
        manifest: Manifest,
        renderer: Renderer,
        capabilities: ServerCapabilities,
        eos: Ids,
    ) -> None:
        self.client = client
        self.manifest = manifest
        self.renderer = renderer
        self.capabilities = capabilities
        self.eos = eos
        self._tokens: dict[str, Ids] = {}

    async def render(self, conversations: Sequence[Messages]) -> list[Ids]:
        """Prompt ids as the server renders them."""
        return await gather_all([self._render(messages) for messages in conversations])

    async def _render(self, messages: Messages) -> Ids:
        body = {
            "messages": [{"role": m.role, "content": m.content} for m in messages], "add_generation_prompt": True,
        }  # fmt: skip
        return await self._tokenize(body, "the chat template refuses a conversation")

    async def _encode(self, text: str) -> Ids:
        if text not in self._tokens:
            if len(self._tokens) > 50_000:
                self._tokens.clear()
            body = {"prompt": text, "add_special_tokens": False}
            self._tokens[text] = await self._tokenize(body, "the server cannot tokenize a text")
        return self._tokens[text]

    async def _tokenize(self, body: dict[str, Any], refusal: str) -> Ids:
        endpoint = self.client.endpoint
        try:
            answer = await self.client.post(f"{endpoint.root}/tokenize", {"model": endpoint.model} | body)
        except EngineRefused as error:
            if error.status == 400:
                raise BadInput(f"{refusal}: {error.cause}") from error
            raise
        ids = answer.get("tokens")
        check(
            isinstance(ids, list) and all(type(i) is int and i >= 0 for i in ids),
            "/tokenize: token ids expected",
        )
        assert isinstance(ids, list)
        return tuple(ids)

    async def score(self, batch: Sequence[ScoreRequest]) -> list[ScoreResult | ItemFailure]:
        """One result for each request, in order."""
        if not self.capabilities.scores:
            raise BadInput(
                f"{self.client.endpoint.url}: expected a server that scores prompts (prompt_logprobs, as vLLM's); "
                "this one cannot be asked for perplexity or choices"
            )
        room = SizedSemaphore(self.manifest.engine.max_batch_tokens)
        salt = secrets.token_hex(16)
        return await gather_all([self._score(request, room, salt) for request in batch])

    async def _score(
        self, request: ScoreRequest, room: SizedSemaphore, salt: str
    ) -> ScoreResult | ItemFailure:
        raw = request.messages is None
        prompt = (self.renderer.prefix_id,) if raw else await self._render(request.messages or ())
        tokens = [await self._encode(text) for text in request.continuations]
        if not tokens or not all(tokens):
            return ItemFailure(id=request.id, reason="engine", detail="a continuation has no tokens")
        # One token is generated, which nobody asked for but the server.
        longest = len(prompt) + max(map(len, tokens))
        limit = self.manifest.limits.max_sequence
        if failure := too_long(request.id, longest + 1, limit, "prompt, longest continuation and one more"):
            return failure
        continuations = await gather_all(
            [
                self._continuation(f"{request.id}[{i}]", prompt, ids, request.top_k, room, salt)
                for i, ids in enumerate(tokens)
            ]
        )
        return ScoreResult(id=request.id, prompt_ids=prompt, continuations=tuple(continuations))

    async def _continuation(
        self, name: str, prompt: Ids, ids: Ids, top_k: int, room: SizedSemaphore, salt: str
    ) -> Continuation:
        body = {
            "model": self.client.endpoint.model, "prompt": [*prompt, *ids], "max_tokens": 1, "temperature": 0.0,
            "prompt_logprobs": top_k, "cache_salt": salt,
        }  # fmt: skip
        async with room.take(len(prompt) + len(ids)):
            answer = await self.client.post(f"{self.client.endpoint.url.rstrip('/')}/completions", body)
        rows = prompt_logprob_rows(answer, name, len(prompt) + len(ids))
        return continuation_of(name, rows[len(prompt) :], ids, top_k)

    async def generate(
        self, batch: Sequence[GenerateRequest], sent: float
    ) -> list[GenerateResult | ItemFailure]:
        """One result for each request, in order; at most ``engine.max_batch`` run together."""
        room = SizedSemaphore(self.manifest.engine.max_batch)
        salt = secrets.token_hex(16)
        return await gather_all([self._generate(request, room, salt, sent) for request in batch])

    async def _generate(
        self, request: GenerateRequest, room: SizedSemaphore, salt: str, sent: float
    ) -> GenerateResult | ItemFailure:
        sampling, exact = self.manifest.sampling, request.exact_tokens
        most = sampling.max_tokens if exact is None else exact
        asked = StreamRequest(
            id=request.id, messages=request.messages, max_tokens=most, temperature=sampling.temperature,
            top_p=sampling.top_p, seed=None if sampling.temperature == 0 else reply_seed(sampling.seed, request.id),
            stop=sampling.stop, exact=exact is not None,
            extra=self._extra(salt if exact is None else secrets.token_hex(16), exact),
        )  # fmt: skip
        limit = self.manifest.limits.max_sequence
        pinned = self.renderer.render(request.messages)
        if failure := too_long(request.id, len(pinned) + most, limit, "prompt and new tokens"):
            return failure
        async with room.take(1):
            reply = await self.client.stream(asked)
        return self._result(request, reply, pinned, sent)

    def _extra(self, salt: str, exact: int | None) -> dict[str, Any]:
        if not self.capabilities.ids:
            return {}
        stops = {} if exact is not None else {"stop_token_ids": list(self.eos)}
        return {**VLLM_IDS, "cache_salt": salt, **stops}

    def _result(
        self, request: GenerateRequest, reply: Streamed, pinned: Ids, sent: float
    ) -> GenerateResult | ItemFailure:
        """Without ids from the server, those of the pinned tokenizer stand for them (the attached engine says so)."""
        name = request.id
        check(reply.finish in ("stop", "length"), f"{name}: finish reason {reply.finish}")
        if self.capabilities.ids:
            check(reply.prompt_ids is not None, f"{name}: the server does not say its prompt ids")
            ids, times = timed_ids(reply.events, sent)
            check(reply.usage is None or reply.usage.completion_tokens == len(ids),
                  f"{name}: {len(ids)} tokens came, another number was counted")  # fmt: skip
        else:
            ids = self.renderer.encode(reply.text)
            times = spread_times(reply.events, len(ids), sent)
        if reply.finish == "stop" and ids and ids[-1] in self.eos:
            ids, times = ids[:-1], times[:-1]
        return GenerateResult(
            id=name, prompt_ids=reply.prompt_ids if reply.prompt_ids is not None else pinned, token_ids=ids,
            text=reply.text, finish="stop" if reply.finish == "stop" else "length", times=times,
        )  # fmt: skip


class SizedSemaphore:
    """Lets callers in, in their order, while their sizes fit together; one larger than all of it goes alone."""

    def __init__(self, size: int) -> None:
        self.size = self.free = size
        self._turn = asyncio.Lock()
        self._change = asyncio.Condition()

    def take(self, size: int) -> _Taken:
        """An asynchronous context in which ``size`` is taken."""
        return _Taken(self, min(size, self.size))


class _Taken:
    def __init__(self, room: SizedSemaphore, size: int) -> None:
        self.room, self.size = room, size

    async def __aenter__(self) -> None:
        async with self.room._turn, self.room._change:
            await self.room._change.wait_for(lambda: self.room.free >= self.size)
            self.room.free -= self.size

    async def __aexit__(self, *exc: object) -> None:
        async with self.room._change:
            self.room.free += self.size
            self.room._change.notify_all()


async def gather_all(calls: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """All results in order; when one fails or this is cancelled, the others are cancelled and waited for."""
    tasks = [asyncio.ensure_future(call) for call in calls]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def with_timeout(seconds: float, call: Callable[[], Awaitable[T]]) -> T:
    """The call's result; TimeoutError after ``seconds``."""
    async with asyncio.timeout(seconds):
        return await call()


def prompt_logprob_rows(answer: dict[str, Any], name: str, count: int) -> list[Any]:
    """``prompt_logprobs`` of ``count`` tokens; the first one has none. EngineError: another number came."""
    choices = answer.get("choices")
    check(
        isinstance(choices, list) and len(choices) == 1 and isinstance(choices[0], dict),
        f"{name}: one choice expected",
    )
    assert isinstance(choices, list)
    rows = choices[0].get("prompt_logprobs")
    check(isinstance(rows, list), f"{name}: no prompt log-probabilities came")
    assert isinstance(rows, list)
    check(len(rows) == count, f"{name}: {count} tokens but {len(rows)} log-probabilities")
    return rows


def continuation_of(name: str, rows: Sequence[Any], ids: Ids, top_k: int) -> Continuation:
    """A continuation from its rows, {token id: {logprob, rank}}, the ``top_k`` likeliest first."""
    logprobs = np.empty(len(ids), np.float32)
    top_ids, top = np.empty((len(ids), top_k), np.int32), np.empty((len(ids), top_k), np.float32)
    for i, (row, token) in enumerate(zip(rows, ids, strict=True)):
        try:
            values = {int(key): (float(v["logprob"]), int(v["rank"])) for key, v in row.items()}
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise EngineError(f"{name}: log-probabilities that cannot be read: {str(row)[:200]}") from error
        check(token in values, f"{name}: token {i} is not the one that was asked about")
        logprobs[i] = values[token][0]
        best = sorted(values.items(), key=lambda item: (item[1][1], -item[1][0]))[:top_k]
        check(len(best) == top_k, f"{name}: {top_k} alternatives expected, {len(best)} came")
        top_ids[i], top[i] = [key for key, _ in best], [value[0] for _, value in best]
    logprobs[logprobs <= TINY] = -np.inf
    if not top_k:
        return Continuation(token_ids=ids, logprobs=logprobs)
    return Continuation(token_ids=ids, logprobs=logprobs, top_ids=top_ids, top_logprobs=top)


def timed_ids(events: Sequence[Event], sent: float) -> tuple[Ids, tuple[float, ...]]:
    """Ids and the time each came, in seconds since ``sent``; those of one event share its time."""
    pairs = [(token, event.at - sent) for event in events for token in event.token_ids]
    return tuple(token for token, _ in pairs), tuple(at for _, at in pairs)


def spread_times(events: Sequence[Event], tokens: int, sent: float) -> tuple[float, ...]:
    """A time for each of ``tokens`` tokens that nobody counted: those of the events, in proportion."""
    if not events:
        return ()
    return tuple(events[min(len(events) - 1, i * len(events) // tokens)].at - sent for i in range(tokens))


def reply_seed(seed: int, name: str) -> int:
    """A seed for one reply: of the pinned seed and the item, not of what runs beside it."""
    data = json.dumps([seed, name]).encode()
    return int.from_bytes(blake2b(data, digest_size=8).digest(), "big") % 2**63
