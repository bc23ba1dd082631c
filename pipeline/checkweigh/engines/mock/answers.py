"""The mock's answers in OpenAI's shape, with vLLM's additions where they are asked for."""

from __future__ import annotations

import json
import zlib
from itertools import count
from typing import Any

from checkweigh.engines.mock import texts
from checkweigh.engines.mock.requests import MockRequest

_NUMBERS = count(1)
DONE = b"data: [DONE]\n\n"


class MockAnswer:
    """One reply as it grows."""

    def __init__(self, ask: MockRequest) -> None:
        self._ask = ask
        self._made = 0
        kind = "chat.completion" if ask.chat else "text_completion"
        self._chunk_kind = "chat.completion.chunk" if ask.chat else kind
        self._kind = kind
        self._id = f"{'chatcmpl' if ask.chat else 'cmpl'}-mock{next(_NUMBERS)}"

    def take(self, step: int) -> tuple[str, list[int]]:
        """Text and ids of the next ``step`` tokens."""
        words = [texts.word(self._ask.seed, self._made + i) for i in range(step)]
        self._made += step
        return "".join(words), [zlib.crc32(w.encode()) % texts.VOCABULARY for w in words]

    def opening(self) -> bytes:
        """What a chat's stream begins with: the role, before any token."""
        return self._event({"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None})

    def update(self, step: int, *, first: bool) -> bytes:
        """The event that brings the next ``step`` tokens."""
        text, ids = self.take(step)
        last = self._made >= self._ask.wanted
        choice: dict[str, Any] = {"index": 0, "finish_reason": self._ask.finish if last else None}
        choice |= {"delta": {"content": text}} if self._ask.chat else {"text": text}
        if self._ask.ids:
            choice["token_ids"] = ids
            if first and not self._ask.chat:
                choice["prompt_token_ids"] = list(self._ask.prompt)
        return self._event(choice, ids=first and self._ask.chat)

    def closing(self) -> bytes:
        """The end of a stream."""
        if not self._ask.usage:
            return DONE
        value = self._head(self._chunk_kind) | {"choices": [], "usage": self._usage()}
        return b"data: " + json.dumps(value).encode() + b"\n\n" + DONE

    def whole(self) -> bytes:
        """The reply in one piece."""
        ask = self._ask
        text, ids = self.take(ask.wanted)
        choice: dict[str, Any] = {"index": 0, "finish_reason": ask.finish, "logprobs": None}
        choice |= {"message": {"role": "assistant", "content": text}} if ask.chat else {"text": text}
        value = self._head(self._kind) | {"choices": [choice], "usage": self._usage()}
        if ask.ids:
            choice["token_ids"] = ids
            (value if ask.chat else choice)["prompt_token_ids"] = list(ask.prompt)
        if ask.logprobs is not None:
            (value if ask.chat else choice)["prompt_logprobs"] = [
                None if i == 0 else {str(token): {"logprob": -1.0, "rank": 1, "decoded_token": "?"}}
                for i, token in enumerate(ask.prompt)
            ]
        return json.dumps(value).encode()

    def _event(self, choice: dict[str, Any], *, ids: bool = False) -> bytes:
        value = self._head(self._chunk_kind) | {"choices": [choice]}
        if ids and self._ask.ids:
            value["prompt_token_ids"] = list(self._ask.prompt)
        return b"data: " + json.dumps(value).encode() + b"\n\n"

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self._id, "object": kind, "created": 0, "model": self._ask.model}

    def _usage(self) -> dict[str, Any]:
        prompt = len(self._ask.prompt)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": self._made,
            "total_tokens": prompt + self._made,
            "prompt_tokens_details": {"cached_tokens": 0},
        }
