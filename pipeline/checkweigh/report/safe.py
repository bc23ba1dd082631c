"""Hostile text made showable: what a terminal, a browser or a parser would obey becomes visible instead.

Model outputs, and everything else that was not written by us, go through ``visible`` (or ``one_line``) before
they are shown anywhere. The result has only characters that are legal in XML 1.0.
"""

from __future__ import annotations

import re

# Code points that reorder, hide or break text: bidi marks, embeddings, overrides and isolates; zero-width
# space, word joiner and kin; line and paragraph separators; byte-order mark; interlinear and tag characters.
# The zero-width (non-)joiners U+200C and U+200D stay: Indic and Persian text and emoji need them.
_HIDDEN = re.compile(
    "[\u00ad\u061c\u115f\u1160\u180e\u200b\u200e\u200f\u2028\u2029\u202a-\u202e\u2060-\u206f\u3164\ufeff\uffa0"
    "\ufff9-\ufffb\U000e0000-\U000e0fff]"
)
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_NAMES = {0: "NUL", 7: "BEL", 8: "BS", 13: "CR", 27: "ESC", 127: "DEL"}
_ILLEGAL = re.compile("[\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")


def visible(text: str) -> str:
    """``text`` with control, bidi and invisible characters shown as signs; newline and tab are kept."""
    text = text.replace("\r\n", "\n")
    text = _CONTROL.sub(lambda m: f"\u27e8{_NAMES.get(ord(m[0]), f'{ord(m[0]):02X}')}\u27e9", text)
    text = _HIDDEN.sub(lambda m: f"\u27e8U+{ord(m[0]):04X}\u27e9", text)
    return _ILLEGAL.sub("\ufffd", text)


def clip(text: str, limit: int) -> str:
    """The first ``limit`` characters, and how many are left out."""
    left = len(text) - limit
    return text if left <= 0 else f"{text[:limit]}… ({left:,} more characters)"


def shorten(text: str, limit: int) -> str:
    """``visible`` text on one line for a label: cut with an ellipsis."""
    line = one_line(text, max(limit * 8, 400))
    return line if len(line) <= limit else line[: limit - 1] + "…"


def one_line(text: str, limit: int = 300) -> str:
    """``visible`` text on one line, at most ``limit`` characters of it."""
    shown = visible(text).replace("\n", " \u21b5 ").replace("\t", " ")
    return clip(shown, limit)


def inert(text: str) -> str:
    """Text for the log of a CI job: a zero-width space breaks what a runner would take for a command.

    GitHub obeys ``::name::`` at the start of a line and ``##[name]`` anywhere in it, Azure ``##vso[name]``.
    """
    return re.sub(r":(?=:)|#(?=#(?:\[|vso))", lambda m: f"{m[0]}\u200b", text)
