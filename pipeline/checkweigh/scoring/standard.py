"""The field's standard scores of a reply against references. Pure; each lies in [0, 1], of several references the best.

An empty reply scores 0 under every one of them. ``VERSIONS`` holds each scorer's version: another number for the
same reply needs another version, which is another measurement.
"""

from __future__ import annotations

import json
import math
import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from decimal import Decimal, InvalidOperation
from functools import cache
from typing import Any

from checkweigh.scoring.extract_numbers import numbers
from checkweigh.scoring.instructions import instructions

References = Sequence[str]
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_FENCE = re.compile(r"^```\w*\s*\n(.*?)\n?```$", re.DOTALL)
_NUMERIC = re.compile(r"\s*(?P<value>[^\s±+]\S*?)\s*(?:(?:±|\+-)\s*(?P<by>[\d.eE-]+)\s*(?P<percent>%?))?\s*")


def exact_match(reply: str, references: References) -> float:
    """The reply equals a reference but for outer white space (``evaluate``'s exact_match, stripped)."""
    return float(reply.strip() in {reference.strip() for reference in references})


def squad_words(text: str) -> list[str]:
    """Words as SQuAD's evaluation has them: lower case, without ASCII punctuation, then without articles."""
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()


def normalised_match(reply: str, references: References) -> float:
    """SQuAD's exact match: the words of the reply are those of a reference."""
    words = squad_words(reply)
    return float(bool(words) and any(words == squad_words(reference) for reference in references))


def f1(reply: str, references: References) -> float:
    """SQuAD's F1 of the words that reply and reference share; words count as often as they stand there."""
    return max(_f1(squad_words(reply), squad_words(reference)) for reference in references)


def _f1(given: list[str], wanted: list[str]) -> float:
    shared = sum((Counter(given) & Counter(wanted)).values())
    return 2 * shared / (len(given) + len(wanted)) if shared else 0.0


def rouge_l(reply: str, references: References) -> float:
    """ROUGE-L F-measure (Lin 2004): the longest common subsequence of words, as ``rouge-score`` on ASCII."""
    return max(_rouge_l(_words(reply), _words(reference)) for reference in references)


def _words(text: str) -> list[str]:
    """Runs of letters and digits in lower case, of any script; rouge-score knows only ASCII."""
    return re.findall(r"[^\W_]+", text.lower())


def _rouge_l(given: list[str], wanted: list[str]) -> float:
    common = _common_subsequence(given, wanted)
    return 2 * common / (len(given) + len(wanted)) if common else 0.0


def _common_subsequence(first: list[str], second: list[str]) -> int:
    """Length of the longest common subsequence, a row of the table as the bits of one number (Hyyrö 2004)."""
    places: dict[str, int] = {}
    for place, word in enumerate(first):
        places[word] = places.get(word, 0) | 1 << place
    full = (1 << len(first)) - 1
    row = full
    for word in second:
        matched = row & places.get(word, 0)
        row = ((row + matched) | (row - matched)) & full
    return len(first) - row.bit_count()


def chrf(reply: str, references: References) -> float:
    """Sentence chrF2 (Popović 2015) of ``sacrebleu``, divided by 100."""
    return _sacrebleu("CHRF", reply, references)


def bleu(reply: str, references: References) -> float:
    """Sentence BLEU-4 of ``sacrebleu`` (13a tokens, exponential smoothing, effective order), divided by 100."""
    return _sacrebleu("BLEU", reply, references)


def _sacrebleu(name: str, reply: str, references: References) -> float:
    score = float(_sacrebleu_metric(name).sentence_score(reply, list(references)).score) / 100
    return min(1.0, max(0.0, score))  # 100.00000000000004 for a perfect reply


@cache
def _sacrebleu_metric(name: str) -> Any:
    from sacrebleu import metrics

    return metrics.CHRF() if name == "CHRF" else metrics.BLEU(effective_order=True)


def matches(reply: str, references: References) -> float:
    """A reference, which is a regular expression, matches all of the stripped reply; the dot matches line ends."""
    stripped = reply.strip()
    patterns = [re.compile(reference, re.DOTALL) for reference in references]
    return float(any(pattern.fullmatch(stripped) is not None for pattern in patterns))


def json_schema(reply: str, references: References) -> float:
    """The reply is JSON, alone or in one code fence, that is valid under a reference, which is a JSON Schema.

    ValueError for a reference that is no schema. Nothing is fetched: a ``$ref`` to elsewhere raises.
    """
    validators = [_validator(reference) for reference in references]
    stripped = reply.strip()
    fenced = _FENCE.match(stripped)
    try:
        value = json.loads(fenced.group(1) if fenced else stripped, parse_constant=_no_number)
    except (ValueError, RecursionError):
        return 0.0
    return float(any(validator.is_valid(value) for validator in validators))


@cache
def _validator(text: str) -> Any:
    from jsonschema import exceptions, validators
    from referencing import Registry

    schema = json.loads(text)
    kind = validators.validator_for(schema, default=validators.validator_for({}))
    try:
        kind.check_schema(schema)
    except exceptions.SchemaError as error:
        raise ValueError(f"no JSON Schema: {error.message}") from None
    registry: Any = Registry()
    return kind(schema, registry=registry)


def _no_number(name: str) -> None:
    raise ValueError(name)


def numeric(reply: str, references: References) -> float:
    """The last number of the reply is a reference within its tolerance: ``3.14``, ``3.14 ± 0.01`` or ``3.14 +- 1%``."""
    wanted = [_interval(reference) for reference in references]
    values = numbers(reply)
    return float(bool(values) and any(low <= values[-1] <= high for low, high in wanted))


def _interval(reference: str) -> tuple[Decimal, Decimal]:
    parts = _NUMERIC.fullmatch(reference)
    try:
        if parts is None:
            raise InvalidOperation
        value, by = Decimal(parts["value"]), Decimal(parts["by"] or 0)
    except InvalidOperation:
        raise ValueError(f"{reference!r} is no number, and no number ± tolerance") from None
    width = abs(value) * by / 100 if parts["percent"] else by
    if not (math.isfinite(value) and math.isfinite(width)) or width < 0:
        raise ValueError(f"{reference!r} is no finite number with a tolerance of 0 or more")
    return value - width, value + width


STANDARD: dict[str, Callable[[str, References], float]] = {
    "exact_match": exact_match,
    "normalised_match": normalised_match,
    "f1": f1,
    "rouge_l": rouge_l,
    "chrf": chrf,
    "bleu": bleu,
    "regex": matches,
    "json_schema": json_schema,
    "numeric": numeric,
    "instructions": instructions,
}
VERSIONS = dict.fromkeys(STANDARD, 1)


def score_against(name: str, references: References, reply: str) -> float:
    """The reply's score in [0, 1]. ValueError for an unknown name, for no references, and for references that the
    scorer cannot use: those are faults of the item, not of the reply."""
    if name not in STANDARD:
        raise ValueError(f"unknown scorer {name!r}; known are {', '.join(STANDARD)}")
    if not references or not all(reference.strip() for reference in references):
        raise ValueError("a reference is needed, and none may be blank")
    return STANDARD[name](reply, references) if reply.strip() else 0.0
