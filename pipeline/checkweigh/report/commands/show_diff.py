"""Word differences between two replies, for showing them side by side. Pure and bounded."""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import SequenceMatcher

_WORDS = 500  # beyond this the matcher's quadratic time is not worth it


@dataclass(frozen=True, slots=True)
class Piece:
    """A run of text and whether the other side lacks it."""

    text: str
    changed: bool


def sides(baseline: str, candidate: str) -> tuple[tuple[Piece, ...], tuple[Piece, ...]]:
    """Both texts cut into equal and changed pieces; one unmarked piece each when too long to compare."""
    a, b = (re.findall(r"\s+|\w+|[^\w\s]", text) for text in (baseline, candidate))
    if len(a) > _WORDS or len(b) > _WORDS:
        return (Piece(baseline, False),), (Piece(candidate, False),)
    left: list[Piece] = []
    right: list[Piece] = []
    for tag, a0, a1, b0, b1 in SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
        if a1 > a0:
            left.append(Piece("".join(a[a0:a1]), tag != "equal"))
        if b1 > b0:
            right.append(Piece("".join(b[b0:b1]), tag != "equal"))
    return tuple(left), tuple(right)
