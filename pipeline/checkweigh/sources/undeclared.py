"""What differs between two arms: declared, undeclared, as loaded, and what that leaves comparable. Pure.

The configuration that two loaded engines have may differ only where a declared difference can explain it. Content and
settings explain, by ``EXPLAINED_BY``; that something lies in another place explains nothing.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from checkweigh import canonical
from checkweigh.errors import UndeclaredDrift
from checkweigh.records.decision import EffectiveDifference, ManifestChange
from checkweigh.records.manifest import Manifest, Pins
from checkweigh.records.measurement import EngineIdentity
from checkweigh.records.metrics import METRICS

CONFIGURATION, GENERATION = "config.json", "generation_config.json"
# What every engine must make alike of the same files, whatever else is declared to differ.
NEUTRAL = ("rotary", "window", "tied_head", "eos", "vocabulary_size")
# Field of a loaded engine -> what can explain that two engines differ in it: groups of ``_real_differences``.
EXPLAINED_BY: Mapping[str, tuple[str, ...]] = {
    "rotary": ("configuration", "limits"),
    "window": ("configuration", "limits"),
    "tied_head": ("configuration", "weights"),
    "eos": ("configuration", "generation", "tokenizer"),
    "vocabulary_size": ("configuration", "weights", "tokenizer"),
    "quantization": ("quantization", "configuration", "weights", "engine"),
    "attention": ("engine", "arguments", "configuration", "quantization"),
    "generation_defaults": ("engine", "generation", "configuration"),
    "draft": ("engine", "arguments", "draft"),
    "packages": ("engine",),
    "packages.bitsandbytes": ("engine", "quantization"),
    "settings": ("engine", "arguments", "batching", "configuration", "quantization", "limits"),
}
# Of any other field that engines report: what decides how a model is built.
OTHERWISE = ("engine", "arguments", "configuration", "quantization", "limits")
# Declared setting -> its group. What stands in no group (threads, sampling, prompts) decides nothing that is loaded.
GROUPS: Mapping[str, str] = {
    "engine.kind": "engine", "engine.version": "engine", "engine.environment": "engine",
    "engine.dtype": "arguments", "engine.device": "arguments", "engine.args": "arguments", "engine.env": "arguments",
    "engine.speculative": "arguments", "engine.continuous": "arguments", "engine.options": "arguments",
    "engine.max_batch": "batching", "engine.max_batch_tokens": "batching",
    "quantization": "quantization", "limits.max_sequence": "limits",
}  # fmt: skip
TOLERANCE = 1e-3  # relative, between numbers that two engines computed


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedArm:
    """What an arm's manifest declares, what is pinned of it, and what its loaded engine says of itself."""

    manifest: Manifest
    pins: Pins
    identity: EngineIdentity


def declared_changes(baseline: Manifest, candidate: Manifest) -> tuple[ManifestChange, ...]:
    """Every declared value that differs, by dotted path."""
    first, second = dict(_leaves(baseline.declared(), "")), dict(_leaves(candidate.declared(), ""))
    paths = sorted(set(first) | set(second))
    return tuple(
        ManifestChange(path=path, baseline=_shown(first.get(path)), candidate=_shown(second.get(path)))
        for path in paths
        if first.get(path) != second.get(path)
    )


def setting_differences(first: Manifest, second: Manifest) -> tuple[str, ...]:
    """Dotted path of every setting that differs; where files lie is none."""
    one, other = (dict(_leaves(manifest.settings(), "")) for manifest in (first, second))
    return tuple(path for path in sorted(one.keys() | other.keys()) if one.get(path) != other.get(path))


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


def unverified(manifest: Manifest, identity: EngineIdentity | None) -> tuple[str, ...]:
    """What of an arm nobody could check, as its engine says; the weights and the configuration first.

    An endpoint that somebody else runs gives no account of either, whatever it says. An engine without an account of
    the configuration that it loaded leaves that unverified. ``identity``: None where no engine was asked.
    """
    named = "" if identity is None else identity.settings.get("unverified", "")
    names = [name.strip() for name in named.split(",") if name.strip()]
    endpoint = manifest.engine.endpoint is not None
    silent = endpoint or (identity is not None and not identity.effective)
    absent = ["weights"] * endpoint + ["configuration"] * silent
    first = [name for name in ("weights", "configuration") if name in (*absent, *names)]
    return tuple(dict.fromkeys([*first, *names]))


def effective_differences(first: LoadedArm, second: LoadedArm) -> tuple[EffectiveDifference, ...]:
    """Every field in which the loaded engines of two arms differ, with the declared differences that can explain it.

    An arm whose configuration is ``unverified`` has nothing to compare. What cannot be read (no number, no JSON, a
    field that is missing) equals nothing and is explained by nothing. Raises UndeclaredDrift with every unexplained
    field.
    """
    if any("configuration" in unverified(arm.manifest, arm.identity) for arm in (first, second)):
        return ()
    real = _real_differences(first, second)
    tolerance = TOLERANCE if real.keys() & {"engine", "arguments"} else 0.0
    facts = _facts(first.identity), _facts(second.identity)
    if first.identity.kind != second.identity.kind:  # each kind reports fields of its own
        shared = {
            name
            for name in facts[0].keys() & facts[1].keys()
            if not name.startswith(("packages.", "settings."))
        }
        facts = tuple({name: arm[name] for name in shared} for arm in facts)  # type: ignore[assignment]
    found, unexplained = [], []
    for field in [*NEUTRAL, *sorted((facts[0].keys() | facts[1].keys()) - set(NEUTRAL))]:
        values = facts[0].get(field), facts[1].get(field)
        readable = all(_is_readable(field, value) for value in values)
        if readable and _same(_read(field, values[0]), _read(field, values[1]), tolerance):
            continue
        shown = tuple("nothing" if value is None else value for value in values)
        why = _explanation(field, real) if readable else ()
        if why:
            found.append(
                EffectiveDifference(field=field, baseline=shown[0], candidate=shown[1], explained=why)
            )
        else:
            unexplained.append(_unexplained(field, shown, readable))
    if unexplained:
        names = f"{first.manifest.name} and {second.manifest.name}"
        raise UndeclaredDrift(
            f"the engines of {names} loaded what no declared difference explains:\n" + "\n".join(unexplained)
        )
    return tuple(found)


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
        "model_files": model, "tokenizer_files": tokenizer,
        "adapters": adapters, "tokenizer": tokenizer, "vocabulary": tokenizer, "chat_template": template,
        "prompts": prompts, "probes": prompts | tokenizer,
        "draft": below("engine.speculative."), "environment": below("engine.environment.") | below("engine.version"),
        "quantization": below("quantization."), "sampling": below("sampling."),
    }  # fmt: skip


def _pins(pins: Pins) -> Iterator[tuple[str, object]]:
    """Pins one by one: ``section``, or ``section file``; the configurations are a section of their own."""
    for name, value in pins.model_dump(
        mode="json", exclude={"manifest", "weights", "draft", "tokenizer", "files"}
    ).items():
        yield name, value
    for name, value in pins.weights.items():
        yield f"weights {name}", value
    for name, value in pins.draft.items():
        yield f"draft {name}", value
    for name, value in pins.tokenizer.items():
        section = "configuration" if name in (CONFIGURATION, GENERATION) else "tokenizer"
        yield f"{section} {name}", value
    for name, value in pins.files.items():
        folder, _, rest = name.partition("/")
        yield f"{folder}_files {rest}", value


def _facts(identity: EngineIdentity) -> dict[str, str]:
    """Field -> value, of what nothing else holds against the manifest."""
    return {
        **identity.effective,
        "vocabulary_size": str(identity.vocabulary_size),
        "quantization.layers": identity.quantization,
        **{f"packages.{name}": version for name, version in identity.packages.items()},
        **{f"settings.{name}": value for name, value in identity.settings.items()},
    }  # fmt: skip


def _real_differences(first: LoadedArm, second: LoadedArm) -> dict[str, tuple[str, ...]]:
    """Group -> what differs of it in content or settings, wherever either lies."""
    found: dict[str, list[str]] = defaultdict(list)
    for path in setting_differences(first.manifest, second.manifest):
        group = next((group for prefix, group in GROUPS.items() if _is_below(path, prefix)), None)
        if group is not None:
            found[group].append(path)
    if first.pins.environment != second.pins.environment:
        found["engine"].append("engine.environment")
    if first.pins.draft != second.pins.draft:
        found["draft"].append("engine.speculative.model")
    files = [arm.pins.weights | arm.pins.tokenizer | arm.pins.files for arm in (first, second)]
    weights = first.pins.weights.keys() | second.pins.weights.keys()
    for name in sorted(files[0].keys() | files[1].keys()):
        if files[0].get(name) != files[1].get(name):
            found[_group_of_file(name, name in weights)].append(name)
    return {group: tuple(names) for group, names in found.items()}


def _is_below(path: str, prefix: str) -> bool:
    return path == prefix or path.startswith((f"{prefix}.", f"{prefix}["))


def _group_of_file(name: str, weights: bool) -> str:
    """What a file decides: a model's code is as good as its configuration; of other files nothing is known to read."""
    plain = name.removeprefix("model/")
    if plain == CONFIGURATION or name.endswith(".py"):
        return "configuration"
    if plain == GENERATION:
        return "generation"
    if weights:
        return "weights"
    return "other" if name.startswith("model/") else "tokenizer"


def _explanation(field: str, real: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """The differences that can explain the field; none where two engines read the same files differently."""
    groups = EXPLAINED_BY.get(field) or EXPLAINED_BY.get(field.partition(".")[0], OTHERWISE)
    if field in NEUTRAL and "engine" in real:
        groups = tuple(group for group in groups if group != "limits")
    return tuple(name for group in groups for name in real.get(group, ()))


def _unexplained(field: str, values: Sequence[str], readable: bool) -> str:
    text = f"{field}: {' and '.join(_shown(value) for value in values)}"
    if not readable:
        return f"{text}: it cannot be read, and is equal to nothing"
    if field in NEUTRAL:
        return f"{text}, from files that are alike"
    return f"{text}, though all that decides it is declared alike"


def _is_readable(field: str, value: str | None) -> bool:
    try:
        _read(field, value)
    except (ValueError, TypeError, AttributeError, RecursionError):
        return False
    return True


def _read(field: str, value: str | None) -> object:
    """A field's value, to be compared. Raises ValueError or TypeError for one that is no value of that field."""
    if value is None:
        if field in NEUTRAL:
            raise ValueError("every engine must say it")
        return None
    match field:
        case "tied_head":
            return (
                {"true": True, "false": False}.get(value) if value in ("true", "false") else _no_value(value)
            )
        case "eos":
            return sorted({int(part) for part in value.split(",")}) if value != "none" else []
        case "vocabulary_size":
            return int(value)
        case "rotary":
            return "none" if value == "none" else _rotary(_json(value))
        case "window":
            return [_run(*run) for run in _json(value)]  # type: ignore[attr-defined]
    return _json(value) if value[:1] in ("{", "[") else value


def _rotary(kinds: object) -> object:
    """Layer kind -> rotation; one rotation for all kinds of layers is ``all``, however an engine names the kinds."""
    if not isinstance(kinds, dict) or not kinds:
        return _no_value(kinds)
    for rotation in kinds.values():
        if not rotation["inv_freq"]:
            _no_value(rotation)
    first, *others = kinds.values()
    return {"all": first} if all(other == first for other in others) else kinds


def _run(window: object, layers: object) -> list[object]:
    """A run of layers with one window, in tokens, or ``none``."""
    numbers = [layers] if window == "none" else [window, layers]
    if any(type(number) is not int or number < 1 for number in numbers):
        _no_value(window)
    return [window, layers]


def _json(text: str) -> object:
    value = json.loads(text, parse_constant=_no_value)
    canonical.dumps(value)  # refuses what is no finite number
    return value


def _no_value(value: object) -> object:
    raise ValueError(f"{value!r} is no value")


def _same(one: object, other: object, tolerance: float) -> bool:
    """Whether two JSON values are equal: computed numbers up to the relative tolerance, counts and ids exactly."""
    if float in (kinds := {type(one), type(other)}) and kinds <= {float, int}:
        return math.isclose(one, other, rel_tol=tolerance)  # type: ignore[arg-type]
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other, [tolerance] * len(one)))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[k], other[k], tolerance) for k in one)
    return type(one) is type(other) and one == other


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
