"""Scores of generated replies: pure functions of the reply and its check.

A check is a kind, a list of values and a pattern; a score lies in [0, 1]. An empty reply scores 0 under
every kind. evalsets/answers/README.md describes the kinds for people who write items.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from decimal import Decimal
from functools import partial

from checkweigh.scoring.extract_numbers import numbers
from checkweigh.scoring.standard import STANDARD, score_against

LOOP_MAX_PERIOD = 16
LOOP_MIN_REPEATS = 4
LOOP_MIN_TOKENS = 24

_SEPARATORS = re.compile(r"\s*(?:,\s*and\b|,|;|\n|\band\b)\s*", re.IGNORECASE)


def normalise(text: str) -> str:
    """Case-folded words with single spaces; apostrophes vanish, all other punctuation separates words."""
    text = unicodedata.normalize("NFKC", text).casefold()
    text = re.sub(r"['\u2019\u2018]", "", text)
    return " ".join(re.findall(r"\w+", text))


def _contains(reply: str, phrase: str) -> bool:
    wanted = normalise(phrase)
    return bool(wanted) and f" {wanted} " in f" {normalise(reply)} "


def phrase(reply: str, values: Sequence[str], pattern: str) -> float:
    """One of the values stands in the reply as whole words, and the pattern (if any) is nowhere in it."""
    if pattern and re.search(pattern, reply, re.IGNORECASE):
        return 0.0
    return float(any(_contains(reply, value) for value in values))


def exact(reply: str, values: Sequence[str], pattern: str) -> float:
    """The whole reply, normalised, is one of the values."""
    normalised = normalise(reply)
    return float(bool(normalised) and any(normalised == normalise(value) for value in values))


def verbatim(reply: str, values: Sequence[str], pattern: str) -> float:
    """The whole reply is one of the values, capitals included.

    Outer white space, one pair of quotation marks around it and one full stop at the end (before or after the
    closing mark) do not count.
    """
    stripped = reply.strip().removesuffix(".")
    if len(stripped) >= 2 and stripped[0] in "\"'" and stripped[-1] == stripped[0]:
        stripped = stripped[1:-1]
    stripped = stripped.strip().removesuffix(".")
    return float(bool(stripped) and any(stripped == value.removesuffix(".") for value in values))


def number(reply: str, values: Sequence[str], pattern: str) -> float:
    """The last number in the reply equals the first value."""
    found = numbers(reply)
    return float(bool(found) and bool(values) and found[-1] == Decimal(values[0]))


def first_number(reply: str, values: Sequence[str], pattern: str) -> float:
    """The first number in the reply equals the first value."""
    found = numbers(reply)
    return float(bool(found) and bool(values) and found[0] == Decimal(values[0]))


def regex(reply: str, values: Sequence[str], pattern: str) -> float:
    """The pattern matches all of the stripped reply.

    The values are replies that would pass; they are not scored.
    """
    stripped = reply.strip()
    return float(bool(stripped) and bool(pattern) and re.fullmatch(pattern, stripped, re.DOTALL) is not None)


def items(reply: str, values: Sequence[str], pattern: str) -> float:
    """A list of as many entries as the pattern says (a whole number).

    The reply is split at commas, semicolons, line ends and "and". Another number of entries scores 0; else
    the score is the share of entries that are distinct and among the values.
    """
    wanted = int(pattern)
    entries = [normalise(part) for part in _SEPARATORS.split(reply.strip())]
    entries = [entry for entry in entries if entry]
    if wanted < 1 or len(entries) != wanted:
        return 0.0
    allowed = {normalise(value) for value in values}
    return len(allowed.intersection(entries)) / wanted


def keywords(reply: str, values: Sequence[str], pattern: str) -> float:
    """The share of the values that stand in the reply as whole words."""
    if not values:
        return 0.0
    return sum(_contains(reply, value) for value in values) / len(values)


def _standard(name: str, reply: str, values: Sequence[str], pattern: str) -> float:
    """A standard scorer, with the values as its references."""
    return score_against(name, values, reply)


CHECKS: dict[str, Callable[[str, Sequence[str], str], float]] = {
    "phrase": phrase,
    "exact": exact,
    "verbatim": verbatim,
    "number": number,
    "first_number": first_number,
    "regex": regex,
    "items": items,
    "keywords": keywords,
    **{name: partial(_standard, name) for name in STANDARD if name != "regex"},
}


def score_reply(kind: str, values: Sequence[str], pattern: str, reply: str) -> float:
    """The reply's score in [0, 1]; ValueError for a kind that does not exist."""
    try:
        check = CHECKS[kind]
    except KeyError:
        raise ValueError(f"unknown kind of check {kind!r}; known are {', '.join(sorted(CHECKS))}") from None
    return check(reply, values, pattern)


def looping(token_ids: Sequence[int]) -> bool:
    """Whether a reply ends in a loop.

    Rule: for some period p of 1 to 16 tokens, every token of the reply's tail equals the one p before it. The tail
    spans at least 24 tokens and at least four whole periods (4p); it includes its first period. An end-of-text token
    after the loop must be cut off by the caller.
    """
    length = len(token_ids)
    for period in range(1, min(LOOP_MAX_PERIOD, length) + 1):
        needed = max(LOOP_MIN_TOKENS, LOOP_MIN_REPEATS * period)
        if needed > length:
            continue
        if all(
            token_ids[at] == token_ids[at - period]
            for at in range(length - 1, length - needed + period - 1, -1)
        ):
            return True
    return False
