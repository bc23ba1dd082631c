"""Instructions about a reply's form that a program can check, after IFEval (Zhou et al. 2023). Pure."""

from __future__ import annotations

import json
import operator
import re
from collections.abc import Callable, Sequence

_COUNT = re.compile(r"(words|sentences|lines|bullets) (>=|<=|=) (\d+)")
_COUNTED: dict[str, Callable[[str], int]] = {
    "words": lambda reply: len(re.findall(r"\w+(?:['\u2019-]\w+)*", reply)),
    "sentences": lambda reply: len(re.findall(r"[^.!?\s][^.!?]*", reply)),
    "lines": lambda reply: sum(bool(line.strip()) for line in reply.splitlines()),
    "bullets": lambda reply: len(re.findall(r"^\s*[*+\u2022-]\s+\S", reply, re.MULTILINE)),
}
_COMPARE: dict[str, Callable[[int, int], bool]] = {">=": operator.ge, "<=": operator.le, "=": operator.eq}
_WHOLE: dict[str, Callable[[str], bool]] = {
    "no commas": lambda reply: not re.search(r"[,\uff0c\u060c\u3001]", reply),
    "lower case": lambda reply: reply == reply.lower() and any(map(str.isalpha, reply)),
    "upper case": lambda reply: reply == reply.upper() and any(map(str.isalpha, reply)),
    "json": lambda reply: _is_json(reply),
}
_TEXT: dict[str, Callable[[str, str], bool]] = {
    "contains": lambda reply, text: text.casefold() in reply.casefold(),
    "lacks": lambda reply, text: text.casefold() not in reply.casefold(),
    "starts with": lambda reply, text: reply.strip().casefold().startswith(text.casefold()),
    "ends with": lambda reply, text: reply.strip().casefold().endswith(text.casefold()),
}


def _is_json(reply: str) -> bool:
    try:
        json.loads(reply)
    except (ValueError, RecursionError):
        return False
    return True


def instructions(reply: str, wanted: Sequence[str]) -> float:
    """The share of the instructions that the reply follows.

    ``words <= 50`` (or sentences, lines, bullets; with >=, <= or =), ``contains X``, ``lacks X``, ``starts with X``,
    ``ends with X`` (upper and lower case alike), ``no commas``, ``lower case``, ``upper case``, ``json``.
    ValueError for any other.
    """
    return sum([_follows(reply, instruction.strip()) for instruction in wanted]) / len(wanted)


def _follows(reply: str, instruction: str) -> bool:
    if count := _COUNT.fullmatch(instruction):
        return _COMPARE[count[2]](_COUNTED[count[1]](reply), int(count[3]))
    if instruction in _WHOLE:
        return _WHOLE[instruction](reply)
    for verb, holds in _TEXT.items():
        if instruction.startswith(verb + " ") and instruction.removeprefix(verb).strip():
            return holds(reply, instruction.removeprefix(verb).strip())
    known = ", ".join([*(f"{what} <= N" for what in _COUNTED), *_WHOLE, *(f"{verb} X" for verb in _TEXT)])
    raise ValueError(f"unknown instruction {instruction!r}; known are {known}")
