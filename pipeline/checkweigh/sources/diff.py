"""What differs between two manifests: declared, undeclared, and what that leaves comparable. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from checkweigh import canonical
from checkweigh.records.decision import Change
from checkweigh.records.manifest import Manifest, Pins
from checkweigh.records.metrics import METRICS

# pin -> the declared sections that may explain a difference of it
EXPLAINED_BY: dict[str, tuple[str, ...]] = {
    "source": ("model",),
    "wheel": ("model",),
    "weights": ("model",),
    "tensors": ("model",),
    "adapters": ("model",),
    "tokenizer": ("model", "tokenizer"),
    "vocabulary": ("model", "tokenizer"),
    "chat_template": ("model", "tokenizer", "prompts"),
    "prompts": ("prompts",),
    "probes": ("model", "tokenizer", "prompts"),
    "quantization": ("quantization",),
    "sampling": ("sampling",),
}


def changes(baseline: Manifest, candidate: Manifest) -> tuple[Change, ...]:
    """Every declared value that differs, by dotted path."""
    first, second = dict(_leaves(baseline.declared(), "")), dict(_leaves(candidate.declared(), ""))
    paths = sorted(set(first) | set(second))
    return tuple(
        Change(path=path, baseline=_shown(first.get(path)), candidate=_shown(second.get(path)))
        for path in paths
        if first.get(path) != second.get(path)
    )


def undeclared(
    baseline: Manifest, baseline_pins: Pins, candidate: Manifest, candidate_pins: Pins
) -> list[str]:
    """Pins that differ although every section that could explain it is the same in both manifests."""
    declared = baseline.declared(), candidate.declared()
    pins = baseline_pins.model_dump(mode="json"), candidate_pins.model_dump(mode="json")
    found = []
    for pin, sections in EXPLAINED_BY.items():
        if pins[0][pin] != pins[1][pin] and all(declared[0][s] == declared[1][s] for s in sections):
            values = " and ".join(canonical.short(canonical.digest(p[pin])) for p in pins)
            found.append(f"{pin}: {values}, though {' and '.join(sections)} is the same in both manifests")
    return found


def comparable(baseline: Pins, candidate: Pins) -> dict[str, str]:
    """Metric -> "yes", or why two arms with these pins cannot be compared on it."""
    answers = dict.fromkeys(METRICS, "yes")
    if baseline.vocabulary != candidate.vocabulary:
        why = "the vocabularies differ"
        answers["log_perplexity"] = f"{why}: a token is not the same unit in both; use bits_per_byte"
        answers["log_length"] = f"{why}: lengths are counted in different tokens"
        answers["tpot"] = f"{why}: a token is not the same unit in both; use e2e"
    return answers


def _leaves(value: object, path: str) -> Iterator[tuple[str, object]]:
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _leaves(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, Sequence) and not isinstance(value, str) and any(isinstance(v, Mapping) for v in value):
        for i, inner in enumerate(value):
            yield from _leaves(inner, f"{path}[{i}]")
    else:
        yield path, value


def _shown(value: object) -> str:
    text = value if isinstance(value, str) else canonical.dumps(value)
    return text if len(text) <= 200 else text[:197] + "..."
