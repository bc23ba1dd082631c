"""Reads and checks a client's body. Whatever is wrong is answered with 4xx, before anything goes upstream. Pure.

Only known fields are passed on: clients may not use an engine's own switches (adapters to load, KV transfer, cache
control). ``n`` is 1, a request is one prompt, content is text.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

from checkweigh.guard.http.error_responses import ErrorResponse, bad_field

_ROLES = ("system", "developer", "user", "assistant", "tool")
_NUMBERS: dict[str, tuple[float, float]] = {
    "temperature": (0, 2), "top_p": (0, 1), "min_p": (0, 1), "presence_penalty": (-2, 2),
    "frequency_penalty": (-2, 2), "repetition_penalty": (0.01, 10),
}  # fmt: skip
_INTEGERS: dict[str, tuple[int, int]] = {
    "seed": (-(2**63), 2**63 - 1), "top_k": (-1, 1_000_000), "top_logprobs": (0, 20), "prompt_logprobs": (0, 20),
    "n": (1, 1), "best_of": (1, 1), "min_tokens": (0, 10_000_000),
}  # fmt: skip
_BOOLEANS = ("stream", "ignore_eos", "echo", "return_token_ids", "parallel_tool_calls", "store")
_TEXTS = ("user", "cache_salt", "tool_choice", "suffix")
_OBJECTS = ("stream_options", "response_format", "logit_bias", "metadata")
_LISTS = ("tools",)
_OTHER = ("model", "messages", "prompt", "max_tokens", "max_completion_tokens", "stop", "logprobs")
_MESSAGE = frozenset(
    ("role", "content", "name", "tool_calls", "tool_call_id", "reasoning_content", "refusal")
)
_DEEPEST = 64  # objects and lists in each other
KNOWN = frozenset((*_NUMBERS, *_INTEGERS, *_BOOLEANS, *_TEXTS, *_OBJECTS, *_LISTS, *_OTHER))
Count = Callable[[str], int]


@dataclass(slots=True, kw_only=True)
class ValidatedRequest:
    """One request that is well formed and within bounds."""

    chat: bool
    body: dict[str, Any]  # as the client sent it; what goes upstream is ``upstream``
    prompt_tokens: int
    max_tokens: int
    stream: bool
    usage: bool  # the client wants the last chunk with the usage
    scoring: bool  # it asks for the log probabilities of its prompt
    user: str | None

    @property
    def path(self) -> str:
        """Its path below /v1."""
        return "/chat/completions" if self.chat else "/completions"

    def prompt(self) -> str:
        """The messages or the prompt as canonical JSON, for the log."""
        return json.dumps(
            self.body.get("messages" if self.chat else "prompt"), ensure_ascii=False, sort_keys=True
        )

    def upstream(self, model: str, max_tokens: int) -> bytes:
        """The body for the engine: the model's name there, an explicit length, and usage at a stream's end."""
        body = self.body | {"model": model, "max_tokens": max_tokens}
        if max_tokens < self.max_tokens and "min_tokens" in body:
            body["min_tokens"] = min(body["min_tokens"], max_tokens)
        body.pop("max_completion_tokens", None)
        body.pop("store", None)
        body.pop("metadata", None)
        body.pop("user", None)
        if self.stream:
            body["stream_options"] = {**(self.body.get("stream_options") or {}), "include_usage": True}
        return json.dumps(body, separators=(",", ":")).encode()


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """What requests may ask for, in tokens. ``count`` gives the tokens of a text, or an upper estimate."""

    model: str
    max_sequence: int
    max_tokens: int
    default_tokens: int
    count: Count


def parse_request(raw: bytes, *, chat: bool, bounds: Bounds) -> ValidatedRequest:
    """The request in a body. Raises ErrorResponse: 400 for what is malformed or out of range, 404 for another model."""
    body = _object(raw)
    _fields(body)
    if body.get("model") != bounds.model:
        if not isinstance(body.get("model"), str):
            raise bad_field("model", "model: expected the name of the served model")
        raise ErrorResponse(404, "The model does not exist.", code="model_not_found", param="model")
    if ("messages" in body) != chat or ("prompt" in body) == chat:
        wanted, other = ("messages", "prompt") if chat else ("prompt", "messages")
        raise bad_field(wanted, f"expected {wanted}, and no {other}, on this path")
    limit = _limit(body, bounds)
    tokens = _messages(body, bounds) if chat else _prompt(body["prompt"], bounds)
    if tokens + limit > bounds.max_sequence:
        raise ErrorResponse(
            400,
            f"At most {bounds.max_sequence} tokens fit, the prompt has about {tokens} and {limit} are asked for.",
            code="context_length_exceeded", param="messages" if chat else "prompt",
        )  # fmt: skip
    options = body.get("stream_options") or {}
    return ValidatedRequest(
        chat=chat,
        body=body,
        prompt_tokens=tokens,
        max_tokens=limit,
        stream=body.get("stream") is True,
        usage=options.get("include_usage") is True,
        scoring=body.get("prompt_logprobs") is not None or body.get("echo") is True,
        user=body.get("user"),
    )


def _object(raw: bytes) -> dict[str, Any]:
    try:
        body = json.loads(raw.decode("utf-8"), parse_constant=_no_constant, parse_float=_finite)
    except UnicodeDecodeError as error:
        raise ErrorResponse(400, f"the body is not UTF-8 (byte {error.start})", code="invalid_utf8") from None
    except (ValueError, RecursionError) as error:
        cause = str(error) if isinstance(error, json.JSONDecodeError) else "not JSON, or too deep"
        raise ErrorResponse(400, f"the body is not JSON: {cause}", code="invalid_json") from None
    if not isinstance(body, dict):
        raise ErrorResponse(400, "the body is not a JSON object", code="invalid_json")
    level: list[Any] = [body]
    for _ in range(_DEEPEST):
        inner = [value for node in level for value in (node.values() if isinstance(node, dict) else node)]
        if not (level := [value for value in inner if isinstance(value, dict | list)]):
            return body
    raise ErrorResponse(400, f"the body is deeper than {_DEEPEST} objects and lists", code="invalid_json")


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def _finite(digits: str) -> float:
    if abs(value := float(digits)) == float("inf"):
        raise ValueError("a number beyond all floats")
    return value


def _fields(body: dict[str, Any]) -> None:
    """Check names, types and ranges. None stands for absent, as in OpenAI's clients."""
    for name in [name for name, value in body.items() if value is None and name in KNOWN]:
        del body[name]
    for name, value in body.items():
        if name not in KNOWN:
            near = difflib.get_close_matches(name, KNOWN, n=1) if len(name) < 64 else []
            hint = f" (did you mean '{near[0]}'?)" if near else ""
            raise ErrorResponse(
                400, f"unknown field '{name[:64]}'{hint}", code="unknown_field", param=name[:64]
            )
        if (span := _NUMBERS.get(name)) is not None:
            valid = type(value) in (int, float) and span[0] <= value <= span[1]
            wanted = f"a number from {span[0]} to {span[1]}"
        elif (range_ := _INTEGERS.get(name)) is not None:
            valid = type(value) is int and range_[0] <= value <= range_[1]
            wanted = f"a whole number from {range_[0]} to {range_[1]}"
        elif name in _BOOLEANS:
            valid, wanted = type(value) is bool, "true or false"
        elif name in _TEXTS:
            valid, wanted = (
                isinstance(value, str) or (name == "tool_choice" and isinstance(value, dict)),
                "text",
            )
        elif name in _OBJECTS:
            valid, wanted = isinstance(value, dict), "an object"
        elif name in _LISTS:
            valid, wanted = isinstance(value, list), "a list"
        elif name == "stop":
            several = (
                isinstance(value, list) and len(value) <= 16 and all(isinstance(s, str) and s for s in value)
            )
            valid, wanted = several or (isinstance(value, str) and value != ""), "text, or at most 16 texts"
        elif name == "logprobs":
            valid = type(value) is bool or (type(value) is int and 0 <= value <= 20)
            wanted = "true, false or a number up to 20"
        else:
            continue
        if not valid:
            raise bad_field(name, f"{name}: expected {wanted}")


def _limit(body: dict[str, Any], bounds: Bounds) -> int:
    names = [name for name in ("max_completion_tokens", "max_tokens") if name in body]
    for name in names:
        value = body[name]
        if type(value) is not int or not 1 <= value <= bounds.max_tokens:
            raise bad_field(name, f"{name}: expected a whole number from 1 to {bounds.max_tokens}")
    return int(body[names[0]]) if names else min(bounds.default_tokens, bounds.max_tokens)


def _messages(body: dict[str, Any], bounds: Bounds) -> int:
    """Check them; returns the tokens of all that a chat template may render, with eight a message for what it adds."""
    messages = body["messages"]
    if not isinstance(messages, list) or not messages:
        raise bad_field("messages", "messages: expected a list that is not empty")
    texts = []
    for i, message in enumerate(messages):
        at = f"messages[{i}]"
        if not isinstance(message, dict):
            raise bad_field(at, f"{at}: expected an object")
        if message.get("role") not in _ROLES:
            raise bad_field(f"{at}.role", f"{at}.role: expected one of {', '.join(_ROLES)}")
        for name in [name for name, value in message.items() if value is None and name != "content"]:
            del message[name]
        if unknown := sorted(set(message) - _MESSAGE):
            raise ErrorResponse(
                400, f"{at}: unknown field '{unknown[0][:64]}'", code="unknown_field", param=at
            )
        texts.append(_content(message, at))
        texts += [_json(message[name]) for name in sorted(_MESSAGE - {"role", "content"}) if name in message]
    texts += [_json(body[name]) for name in ("tools", "tool_choice") if name in body]
    return _tokens("".join(texts), bounds) + 8 * (len(messages) + 1)


def _content(message: dict[str, Any], at: str) -> str:
    content = message.get("content")
    if isinstance(content, str):
        return content
    if content is None and message["role"] == "assistant" and isinstance(message.get("tool_calls"), list):
        return ""
    if not isinstance(content, list) or not content:
        raise bad_field(f"{at}.content", f"{at}.content: expected text, or a list of parts of type text")
    for part in content:
        valid = isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)
        if not valid or len(part) != 2:
            raise bad_field(
                f"{at}.content", f"{at}.content: expected parts of type text, with nothing else in them"
            )
    return "".join(part["text"] for part in content)


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def _prompt(prompt: object, bounds: Bounds) -> int:
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str | list):
        prompt = prompt[0]
    if isinstance(prompt, str) and prompt:
        return _tokens(prompt, bounds)
    if isinstance(prompt, list) and prompt and all(type(i) is int and 0 <= i < 2**31 for i in prompt):
        return len(prompt)
    raise bad_field("prompt", "prompt: expected one text that is not empty, or one list of token ids")


def _tokens(text: str, bounds: Bounds) -> int:
    """Tokens of ``text``; its bytes when even at 16 bytes a token it would be too long."""
    try:
        size = len(text.encode("utf-8"))
    except UnicodeEncodeError:
        raise ErrorResponse(400, "the body holds half a surrogate pair", code="invalid_utf8") from None
    return size if size > 16 * bounds.max_sequence else bounds.count(text)
