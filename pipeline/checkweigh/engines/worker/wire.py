"""Frames and JSON between an engine's parent and its worker. No pickle.

A frame is a 4-byte big-endian length and that many bytes of UTF-8 JSON. Arrays are base64 of little-endian
float32 or int32, so that numbers arrive bit for bit, NaN included.
"""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Sequence
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from checkweigh.engines.protocol import (
    Continuation,
    Divergence,
    GenerateRequest,
    GenerateResult,
    ItemFailure,
    Messages,
    ScoreRequest,
    ScoreResult,
    States,
)
from checkweigh.records.evalset import Message

MAX_FRAME = 1 << 30
HEADER = struct.Struct(">I")


class BrokenFrame(Exception):
    """Bytes that are no frame, or a frame that holds no JSON object."""


def frame(value: dict[str, Any]) -> bytes:
    """One message as bytes. ValueError: over 1 GiB."""
    body = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode(
        "utf-8", "surrogatepass"
    )
    if len(body) > MAX_FRAME:
        raise ValueError(f"a message of {len(body)} bytes exceeds {MAX_FRAME}")
    return HEADER.pack(len(body)) + body


def length_of(header: bytes) -> int:
    """Bytes of the body. BrokenFrame: too large to be one."""
    size: int = HEADER.unpack(header)[0]
    if size > MAX_FRAME:
        raise BrokenFrame(f"a frame of {size} bytes was announced")
    return size


def parse(body: bytes) -> dict[str, Any]:
    """The JSON object in a frame's body. BrokenFrame: there is none."""
    try:
        value = json.loads(body.decode("utf-8", "surrogatepass"))
    except ValueError as error:
        raise BrokenFrame(f"no JSON: {error}") from error
    if not isinstance(value, dict):
        raise BrokenFrame(f"a JSON object was expected, found {type(value).__name__}")
    return value


def read_frame(stream: BinaryIO) -> dict[str, Any] | None:
    """Blocking read of one message; None at the end of the stream."""
    header = stream.read(HEADER.size)
    if len(header) < HEADER.size:
        return None
    size = length_of(header)
    body = stream.read(size)
    return parse(body) if len(body) == size else None


def floats(array: NDArray[np.float32]) -> str:
    """Base64 of little-endian float32."""
    return base64.b64encode(np.ascontiguousarray(array, dtype="<f4").tobytes()).decode("ascii")


def ints(array: NDArray[np.int32]) -> str:
    """Base64 of little-endian int32."""
    return base64.b64encode(np.ascontiguousarray(array, dtype="<i4").tobytes()).decode("ascii")


def unpack_floats(text: str) -> NDArray[np.float32]:
    """Inverse of ``floats``, one-dimensional."""
    return np.frombuffer(base64.b64decode(text, validate=True), dtype="<f4").astype(np.float32)


def unpack_ints(text: str) -> NDArray[np.int32]:
    """Inverse of ``ints``, one-dimensional."""
    return np.frombuffer(base64.b64decode(text, validate=True), dtype="<i4").astype(np.int32)


def pack_messages(messages: Messages) -> list[list[str]]:
    """(role, content) pairs."""
    return [[m.role, m.content] for m in messages]


def unpack_messages(value: list[list[str]]) -> Messages:
    """Inverse of ``pack_messages``."""
    return tuple(Message(role=role, content=content) for role, content in value)  # type: ignore[arg-type]


def pack_score_request(request: ScoreRequest) -> dict[str, Any]:
    """A request as JSON values."""
    return {
        "id": request.id,
        "messages": None if request.messages is None else pack_messages(request.messages),
        "continuations": list(request.continuations),
        "top_k": request.top_k,
    }


def unpack_score_request(value: dict[str, Any]) -> ScoreRequest:
    """Inverse of ``pack_score_request``."""
    messages = value["messages"]
    return ScoreRequest(
        id=value["id"],
        messages=None if messages is None else unpack_messages(messages),
        continuations=tuple(value["continuations"]),
        top_k=value["top_k"],
    )


def pack_generate_request(request: GenerateRequest) -> dict[str, Any]:
    """A request as JSON values."""
    return {
        "id": request.id,
        "messages": pack_messages(request.messages),
        "exact_tokens": request.exact_tokens,
    }


def unpack_generate_request(value: dict[str, Any]) -> GenerateRequest:
    """Inverse of ``pack_generate_request``."""
    return GenerateRequest(
        id=value["id"], messages=unpack_messages(value["messages"]), exact_tokens=value["exact_tokens"]
    )


def _pack_continuation(value: Continuation) -> dict[str, Any]:
    packed: dict[str, Any] = {"ids": list(value.token_ids), "logprobs": floats(value.logprobs)}
    if value.top_ids is not None and value.top_logprobs is not None:
        packed["top_ids"] = ints(value.top_ids)
        packed["top_logprobs"] = floats(value.top_logprobs)
    return packed


Result = ScoreResult | GenerateResult | States | Divergence | ItemFailure


def pack_result(result: Result) -> dict[str, Any]:
    """A result as JSON values; its ``kind`` tells which."""
    if isinstance(result, ItemFailure):
        return {"kind": "failure", "id": result.id, "reason": result.reason, "detail": result.detail}
    if isinstance(result, ScoreResult):
        packed = [_pack_continuation(c) for c in result.continuations]
        return {"kind": "score", "id": result.id, "prompt": list(result.prompt_ids), "continuations": packed}
    if isinstance(result, States):
        return {"kind": "states", "id": result.id, "ids": list(result.token_ids)}
    if isinstance(result, Divergence):
        return {
            "kind": "divergence",
            "id": result.id,
            "ids": list(result.token_ids),
            "kl": floats(result.kl),
            "agree": ints(result.agree),
            "worst": [token.model_dump(mode="json") for token in result.worst],
        }
    return {
        "kind": "generate",
        "id": result.id,
        "prompt": list(result.prompt_ids),
        "ids": list(result.token_ids),
        "text": result.text,
        "finish": result.finish,
        "times": list(result.times),
        "speculated": None if result.speculated is None else result.speculated.model_dump(),
    }


def pack_results(results: Sequence[Result]) -> list[dict[str, Any]]:
    """``pack_result`` of each."""
    return [pack_result(result) for result in results]
