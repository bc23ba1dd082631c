"""What differs between two manifests: declared, undeclared, and what that leaves comparable. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from checkweigh import canonical
from checkweigh.records.decision import ManifestChange
from checkweigh.records.manifest import Manifest, Pins
from checkweigh.records.metrics import METRICS


def declared_changes(baseline: Manifest, candidate: Manifest) -> tuple[ManifestChange, ...]:
    """Every declared value that differs, by dotted path."""
    first, second = dict(_leaves(baseline.declared(), "")), dict(_leaves(candidate.declared(), ""))
    paths = sorted(set(first) | set(second))
    return tuple(
        ManifestChange(path=path, baseline=_shown(first.get(path)), candidate=_shown(second.get(path)))
        for path in paths
        if first.get(path) != second.get(path)
    )


def undeclared_differences(
    baseline: Manifest, baseline_pins: Pins, candidate: Manifest, candidate_pins: Pins
) -> list[str]:
    """Pins that differ although both manifests declare the same for everything that could explain it."""
    first, second = _explanations(baseline), _explanations(candidate)
    baseline_values, candidate_values = dict(_pins(baseline_pins)), dict(_pins(candidate_pins))
    differences = []
    for pin in sorted(set(baseline_values) | set(candidate_values)):
        section, _, _ = pin.partition(" ")
        if baseline_values.get(pin) != candidate_values.get(pin) and first[section] == second[section]:
            values = " and ".join(_digest(pins.get(pin)) for pins in (baseline_values, candidate_values))
            declared = " and ".join(first[section])
            differences.append(f"{pin}: {values}, though {declared} is declared alike in both manifests")
    return differences


def comparable_metrics(baseline: Pins, candidate: Pins) -> dict[str, str]:
    """Metric -> "yes", or why two arms with these pins cannot be compared on it."""
    answers = dict.fromkeys(METRICS, "yes")
    if baseline.vocabulary != candidate.vocabulary:
        why = "the vocabularies differ"
        answers["log_perplexity"] = f"{why}: a token is not the same unit in both; use bits_per_byte"
        answers["kl"] = f"{why}: distributions over different tokens have no divergence"
        answers["log_length"] = f"{why}: lengths are counted in different tokens"
        answers["tpot"] = f"{why}: a token is not the same unit in both; use e2e"
    return answers


def _explanations(manifest: Manifest) -> dict[str, dict[str, object]]:
    """Pin -> the declared values, by dotted path, that decide it."""
    declared = dict(_leaves(manifest.declared(), ""))

    def below(prefix: str) -> dict[str, object]:
        return {path: value for path, value in declared.items() if path.startswith(prefix)}

    adapters = below("model.adapters")
    model = {path: value for path, value in below("model.").items() if path not in adapters}
    tokenizer = below("tokenizer.") | (model if manifest.tokenizer.source is None else {})
    template = below("prompts.chat_template") | (tokenizer if manifest.prompts.chat_template is None else {})
    prompts = below("prompts.")
    return {
        "source": model, "wheel": model, "parts": model, "weights": model, "tensors": model, "configuration": model,
        "adapters": adapters, "tokenizer": tokenizer, "vocabulary": tokenizer, "chat_template": template,
        "prompts": prompts, "probes": prompts | tokenizer,
        "draft": below("engine.speculative."), "environment": below("engine.environment.") | below("engine.version"),
        "quantization": below("quantization."), "sampling": below("sampling."),
    }  # fmt: skip


def _pins(pins: Pins) -> Iterator[tuple[str, object]]:
    """Pins one by one: ``section``, or ``section file``; the configurations are a section of their own."""
    for name, value in pins.model_dump(
        mode="json", exclude={"manifest", "weights", "draft", "tokenizer"}
    ).items():
        yield name, value
    for name, value in pins.weights.items():
        yield f"weights {name}", value
    for name, value in pins.draft.items():
        yield f"draft {name}", value
    for name, value in pins.tokenizer.items():
        section = "configuration" if name in ("config.json", "generation_config.json") else "tokenizer"
        yield f"{section} {name}", value


def _digest(value: object) -> str:
    if value is None:
        return "nothing"
    return canonical.short(value if isinstance(value, str) else canonical.digest(value))


def _leaves(value: object, path: str) -> Iterator[tuple[str, object]]:
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _leaves(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list | tuple) and any(isinstance(inner, Mapping) for inner in value):
        for i, inner in enumerate(value):
            yield from _leaves(inner, f"{path}[{i}]")
    else:
        yield path, value


def _shown(value: object) -> str:
    text = value if isinstance(value, str) else canonical.dumps(value)
    return text if len(text) <= 200 else text[:197] + "..."
