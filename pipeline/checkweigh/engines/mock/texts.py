"""Tokens and replies of a model that does not exist: a pure function of the prompt."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

VOCABULARY = 50_000
_WORDS = (
    "box",
    "belt",
    "scale",
    "label",
    "pallet",
    "gram",
    "line",
    "order",
    "weight",
    "seal",
    "crate",
    "shift",
)


def rendered(messages: Sequence[Mapping[str, Any]]) -> str:
    """A conversation as one text."""
    turns = "".join(f"<{m.get('role')}>{text_of(m.get('content'))}\n" for m in messages)
    return f"{turns}<assistant>"


def text_of(content: object) -> str:
    """The text of a message's content: a string, or parts."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return json.dumps(content)


def tokenize(text: str) -> tuple[int, ...]:
    """One id for every four bytes of UTF-8."""
    data = text.encode("utf-8", "surrogatepass")
    return tuple(zlib.crc32(data[i : i + 4]) % VOCABULARY for i in range(0, len(data), 4))


def word(seed: int, position: int) -> str:
    """The reply's token at ``position``."""
    return _WORDS[zlib.crc32(b"%d:%d" % (seed, position)) % len(_WORDS)] + " "
