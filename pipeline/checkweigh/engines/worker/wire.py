"""Frames and JSON between an engine's parent and its worker. No pickle.

A frame is a 4-byte big-endian length and that many bytes of UTF-8 JSON. Arrays are base64 of little-endian
float32 or int32, so that numbers arrive bit for bit, NaN included. Reading an answer gives it the types of
``protocol`` and nothing more: whether it fits its request is for ``engines.validation``.
"""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Callable, Sequence
from typing import Any, BinaryIO, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray

from checkweigh.engines.protocol import (
    Continuation,
    Divergence,
    GenerateRequest,
    GenerateResult,
    ItemFailure,
    Messages,
    Resources,
    ScoreRequest,
    ScoreResult,
    States,
)
from checkweigh.records.evalset import Message
from checkweigh.records.measurement import FailureKind, Speculated, WorstToken

MAX_FRAME = 1 << 30
HEADER = struct.Struct(">I")
REASONS = frozenset(get_args(FailureKind))


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


def pack_floats(array: NDArray[np.float32]) -> str:
    """Base64 of little-endian float32."""
    return base64.b64encode(np.ascontiguousarray(array, dtype="<f4").tobytes()).decode("ascii")


def pack_ints(array: NDArray[np.int32]) -> str:
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
    packed: dict[str, Any] = {"ids": list(value.token_ids), "logprobs": pack_floats(value.logprobs)}
    if value.top_ids is not None and value.top_logprobs is not None:
        packed["top_ids"] = pack_ints(value.top_ids)
        packed["top_logprobs"] = pack_floats(value.top_logprobs)
    return packed


AnyResult = ScoreResult | GenerateResult | States | Divergence | ItemFailure
_Answer = TypeVar("_Answer", ScoreResult, GenerateResult, States, Divergence)
_Number = TypeVar("_Number", np.float32, np.int32)
_T = TypeVar("_T")


def pack_result(result: AnyResult) -> dict[str, Any]:
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
            "kl": pack_floats(result.kl),
            "agree": pack_ints(result.agree),
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


def pack_results(results: Sequence[AnyResult]) -> list[dict[str, Any]]:
    """``pack_result`` of each."""
    return [pack_result(result) for result in results]


def unpack_prompts(value: Any) -> list[tuple[int, ...]]:
    """Token ids of each rendered conversation. ValueError: something else."""
    return [
        _ids(row, f"conversation {i}") for i, row in enumerate(_of(list, value, "rendered conversations"))
    ]


def unpack_resources(value: Any) -> Resources:
    """Memory in bytes. ValueError: something else than three sizes."""
    sizes = _of(list, value, "sizes")
    if len(sizes) != 3 or not all(type(size) is int and size >= 0 for size in sizes):
        raise ValueError("three sizes in bytes expected")
    return Resources(resident=sizes[0], peak=sizes[1], swapped=sizes[2])


def unpack_results(value: Any, unpack: Callable[[dict[str, Any]], _Answer]) -> list[_Answer | ItemFailure]:
    """Inverse of ``pack_results``; ``unpack`` reads one kind of result.

    ValueError, with the position: anything that is neither a failure nor of that kind.
    """
    results: list[_Answer | ItemFailure] = []
    for position, packed in enumerate(_of(list, value, "a list of results")):
        try:
            result = _of(dict, packed, "an object")
            results.append(_unpack_failure(result) if result["kind"] == "failure" else unpack(result))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"result {position}: {type(error).__name__}: {error}") from error
    return results


def unpack_score(value: dict[str, Any]) -> ScoreResult:
    """The scores of one request."""
    _check_kind(value, "score")
    return ScoreResult(
        id=_of(str, value["id"], "an id"),
        prompt_ids=_ids(value["prompt"], "prompt"),
        continuations=tuple(map(_unpack_continuation, _of(list, value["continuations"], "continuations"))),
    )


def unpack_states(value: dict[str, Any]) -> States:
    """The token ids of a text whose hidden states were written."""
    _check_kind(value, "states")
    return States(id=_of(str, value["id"], "an id"), token_ids=_ids(value["ids"], "text"))


def unpack_divergence(value: dict[str, Any]) -> Divergence:
    """The divergences of one text."""
    _check_kind(value, "divergence")
    return Divergence(
        id=_of(str, value["id"], "an id"),
        token_ids=_ids(value["ids"], "text"),
        kl=unpack_floats(value["kl"]),
        agree=unpack_ints(value["agree"]),
        worst=tuple(WorstToken.model_validate_json(json.dumps(token)) for token in value["worst"]),
    )


def unpack_reply(value: dict[str, Any]) -> GenerateResult:
    """One reply."""
    _check_kind(value, "generate")
    times, counts = _of(list, value["times"], "times"), value.get("speculated")
    if not all(isinstance(time, float) for time in times):
        raise ValueError("times in seconds expected")
    if value["finish"] not in ("stop", "length"):
        raise ValueError(f"finish: 'stop' or 'length' expected, {value['finish']!r} came")
    return GenerateResult(
        id=_of(str, value["id"], "an id"),
        prompt_ids=_ids(value["prompt"], "prompt"),
        token_ids=_ids(value["ids"], "reply"),
        text=_of(str, value["text"], "text"),
        finish=value["finish"],
        times=tuple(times),
        speculated=None if counts is None else Speculated.model_validate(counts),
    )


def _unpack_failure(value: dict[str, Any]) -> ItemFailure:
    if value["reason"] not in REASONS:
        raise ValueError(f"an unknown kind of failure: {value['reason']!r}")
    return ItemFailure(
        id=_of(str, value["id"], "an id"), reason=value["reason"], detail=_of(str, value["detail"], "words")
    )


def _unpack_continuation(value: dict[str, Any]) -> Continuation:
    ids, logprobs = _ids(value["ids"], "continuation"), unpack_floats(value["logprobs"])
    if "top_ids" not in value:
        return Continuation(token_ids=ids, logprobs=logprobs)
    return Continuation(
        token_ids=ids,
        logprobs=logprobs,
        top_ids=_table(unpack_ints(value["top_ids"]), len(ids)),
        top_logprobs=_table(unpack_floats(value["top_logprobs"]), len(ids)),
    )


def _table(flat: NDArray[_Number], rows: int) -> NDArray[_Number]:
    """(rows, k)."""
    if not rows or not flat.size or flat.size % rows:
        raise ValueError(f"a ragged table: {flat.size} values for {rows} tokens")
    return flat.reshape(rows, -1)


def _ids(value: Any, what: str) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(type(i) is int and i >= 0 for i in value):
        raise ValueError(f"{what}: token ids expected")
    return tuple(value)


def _of(kind: type[_T], value: Any, what: str) -> _T:
    """``value``, of the kind. ValueError: of another."""
    if not isinstance(value, kind):
        raise ValueError(f"{what} expected, {type(value).__name__} came")
    return value


def _check_kind(value: dict[str, Any], kind: str) -> None:
    if value["kind"] != kind:
        raise ValueError(f"{kind!r} expected, {value['kind']!r} came")
