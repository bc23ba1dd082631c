"""A request's body -> what the mock needs of it, or an error in OpenAI's shape."""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass
from typing import Any

from checkweigh.engines.mock import texts
from checkweigh.engines.mock.mock_knobs import MockKnobs


class RefusedRequest(Exception):
    """An answer of 4xx or 5xx."""

    def __init__(self, status: int, message: str, kind: str = "BadRequestError") -> None:
        super().__init__(message)
        self.status = status
        self.body = {"error": {"message": message, "type": kind, "param": None, "code": status}}


@dataclass(frozen=True, slots=True, kw_only=True)
class MockRequest:
    """One completion or chat completion."""

    chat: bool
    model: str
    prompt: tuple[int, ...]
    wanted: int  # tokens of the reply
    finish: str
    stream: bool
    usage: bool  # streams: a last chunk with the usage
    ids: bool  # return_token_ids
    logprobs: int | None  # prompt_logprobs
    seed: int  # of the reply's words


def decode(raw: bytes) -> dict[str, Any]:
    """A JSON object. Raises Refused."""
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise RefusedRequest(400, f"the body is not JSON: {error}") from error
    if not isinstance(body, dict):
        raise RefusedRequest(400, "the body is not a JSON object")
    return body


def prompt_ids(body: dict[str, Any]) -> tuple[int, ...]:
    """Token ids of ``messages`` or ``prompt``. Raises Refused."""
    messages, prompt = body.get("messages"), body.get("prompt")
    if isinstance(messages, list) and messages and all(isinstance(m, dict) for m in messages):
        return texts.tokenize(texts.rendered(messages))
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str):
        prompt = prompt[0]
    if isinstance(prompt, str) and prompt:
        return texts.tokenize(prompt)
    if isinstance(prompt, list) and prompt and all(type(i) is int and i >= 0 for i in prompt):
        return tuple(prompt)
    raise RefusedRequest(400, "expected messages, or a prompt of text or token ids")


def read_request(body: dict[str, Any], *, chat: bool, knobs: MockKnobs) -> MockRequest:
    """The request. Raises Refused: another model, no prompt, too long, max_tokens that is no positive integer."""
    if body.get("model") not in (knobs.model, None):
        raise RefusedRequest(404, f"The model `{body.get('model')}` does not exist.", "NotFoundError")
    ids = prompt_ids(body)
    limit = body.get("max_completion_tokens", body.get("max_tokens"))
    if limit is None:
        limit = knobs.max_len - len(ids) if chat else 16
    if type(limit) is not int or limit < 1:
        raise RefusedRequest(400, f"max_tokens must be at least 1, got {limit!r}.")
    if len(ids) + limit > knobs.max_len:
        raise RefusedRequest(
            400,
            f"This model's maximum context length is {knobs.max_len} tokens. However, you requested "
            f"{len(ids) + limit} tokens ({len(ids)} in the messages, {limit} in the completion).",
        )
    least = limit if body.get("ignore_eos") else min(limit, body.get("min_tokens") or 0)
    wanted = max(least, min(limit, knobs.reply_tokens))
    options = body.get("stream_options") or {}
    top = body.get("prompt_logprobs")
    return MockRequest(
        chat=chat,
        model=knobs.model,
        prompt=ids,
        wanted=wanted,
        finish="length" if wanted == limit else "stop",
        stream=body.get("stream") is True,
        usage=options.get("include_usage") is True,
        ids=body.get("return_token_ids") is True,
        logprobs=top if type(top) is int else None,
        seed=zlib.crc32(repr(ids).encode()),
    )
