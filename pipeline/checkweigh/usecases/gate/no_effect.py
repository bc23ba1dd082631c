"""A change without effect: something is declared or pinned differently, and every output of both arms is identical.

What counts as a change, and what it must do, stands in ``EFFECTS``. A change that must show in some output was not
applied where it shows in none, which refuses the gate; others may show in none, which the verdict says. What lies in
another place or in other files is no change, and neither is a setting that by design alters no output.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from checkweigh import canonical
from checkweigh.errors import BadInput, SourceError
from checkweigh.records.manifest import Manifest, Pins
from checkweigh.records.measurement import MeasurementSet, Observation, Scored
from checkweigh.records.policy import Policy
from checkweigh.sources.digests import tensor_content
from checkweigh.sources.pin import Resolved
from checkweigh.sources.undeclared import CONFIGURATION, GENERATION, setting_differences
from checkweigh.usecases.gate.inputs import Inputs
from checkweigh.usecases.gate.measured import Measured

Effect = Literal["must", "may", "none"]
# Setting of a manifest -> what another value does to the outputs; the longest name counts, and what has none may.
EFFECTS: Mapping[str, Effect] = {
    "model": "none",  # permissions, and recipes: the tensors they give are compared
    "model.adapters": "must",
    "tokenizer": "none",  # a place: its files are compared
    "prompts": "may",
    "quantization": "must",
    "engine": "none",  # another engine, the same numbers: what an A/A is made to show
    "engine.dtype": "may",
    "engine.stride": "may",
    "engine.options": "may",
    "engine.endpoint": "may",
    "engine.endpoint.key_env": "none",
    "engine.env.VLLM_CPU_INT4_W4A8": "may",
    "sampling": "may",
    "limits": "none",  # what fits is computed alike
    "intends": "may",
}
# As EFFECTS, of pins; the settings that decide a pin speak for it where it is "none".
PINNED: Mapping[str, Effect] = {
    "manifest": "none", "source": "none", "wheel": "none", "parts": "none", "tensors": "none", "prompts": "none",
    "probes": "none", "vocabulary": "none", "draft": "none", "environment": "none", "quantization": "none",
    "sampling": "none",
    "weights": "may", "tokenizer": "may", "files": "may", "chat_template": "may", "adapters": "must",
}  # fmt: skip
_SHOWN = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class NoEffect:
    """``changes`` that altered none of ``items`` outputs; ``refused``: those that the policy refuses for it.

    ``scored``: log-probabilities are among the outputs.
    """

    changes: tuple[str, ...]
    refused: tuple[str, ...]
    items: int
    scored: bool

    @property
    def sentence(self) -> str:
        """For people: the first line of the verdict."""
        outputs = (
            "log-probabilities too" if self.scored else "replies only: no log-probabilities are measured"
        )
        return (
            f"NO EFFECT of {_listed(self.changes)}: every output of both arms is identical "
            f"({self.items:,} items; {outputs})"
        )


def refuse_without_effect(inputs: Inputs, measured: Measured) -> None:
    """Raise BadInput where the policy refuses a change that altered none of the outputs measured so far."""
    found = find_no_effect(inputs, measured)
    if found is not None and found.refused:
        applied = "it was" if len(found.refused) == 1 else "they were"
        raise BadInput(
            f"{inputs.candidate.path}: {found.sentence}. Expected some output to show {_listed(found.refused)}: "
            f"{applied} not applied, as far as anything shows. No verdict was reached. Where that is meant, "
            "'no_effect: warn' in the policy lets it pass and says so"
        )


def find_no_effect(inputs: Inputs, measured: Measured) -> NoEffect | None:
    """The changes of the candidate that altered no output measured so far; None where one did, or nothing changed.

    Nothing is identical where nothing was measured, where an item lacks a result on either arm, and where the
    distributions of two arms diverge.
    """
    pins = inputs.baseline.pins, inputs.candidate.pins
    items = _identical_items(measured, _asked_alike(*pins))
    if not items:
        return None
    changes = dict(_changes(inputs.baseline, inputs.candidate))
    if not changes:
        return None
    return NoEffect(
        changes=tuple(changes), items=items, scored=any(s.card.kind != "generation" for s in measured.sets if s.items),
        refused=tuple(name for name, effect in changes.items() if _is_refused(inputs.policy, effect)),
    )  # fmt: skip


def _is_refused(policy: Policy, effect: Effect) -> bool:
    return policy.no_effect == "refuse" or (policy.no_effect is None and effect == "must")


def _changes(baseline: Resolved, candidate: Resolved) -> Iterator[tuple[str, Effect]]:
    """Setting or file -> what it does to outputs, of all that differ and do something."""
    for path in setting_differences(baseline.manifest, candidate.manifest):
        effect = effect_of(path)
        if effect != "none" and not _is_cache_dtype_by_name(path, baseline.manifest, candidate.manifest):
            yield path, effect
    for intent in candidate.manifest.intends:
        yield f"intends ({intent})", EFFECTS["intends"]
    first, second = baseline.pins, candidate.pins
    for name, effect in PINNED.items():
        one, other = getattr(first, name), getattr(second, name)
        if effect == "none" or one == other:
            continue
        if name == "weights":
            yield from _weights(baseline, candidate)
        elif isinstance(one, dict):
            yield from ((file, effect) for file in sorted(_differing(one, other)))
        else:
            yield name, effect


def effect_of(path: str) -> Effect:
    """What another value of a manifest's setting does to the outputs."""
    names = [name for name in EFFECTS if path == name or path.startswith((f"{name}.", f"{name}["))]
    return EFFECTS[max(names, key=len)] if names else "may"


def _is_cache_dtype_by_name(path: str, *manifests: Manifest) -> bool:
    """Whether ``auto`` and the engine's own dtype are all that differs in the dtype of the key-value cache."""
    dtypes = {
        m.engine.dtype if m.quantization.kv_dtype == "auto" else m.quantization.kv_dtype for m in manifests
    }
    return path == "quantization.kv_dtype" and len(dtypes) == 1


def _weights(baseline: Resolved, candidate: Resolved) -> Iterator[tuple[str, Effect]]:
    """The weights where their tensors differ, in whatever files they lie; code beside them by its name."""
    differing = _differing(baseline.pins.weights, candidate.pins.weights)
    yield from ((name, PINNED["weights"]) for name in sorted(differing) if name.endswith(".py"))
    kinds = {Path(name).suffix for name in differing} - {".py", ".json"}
    if kinds and (kinds != {".safetensors"} or _tensors(baseline) != _tensors(candidate)):
        yield "weights", PINNED["weights"]


def _tensors(arm: Resolved) -> str:
    """Digest of all tensors of an arm; of its pins where they cannot be told apart by tensor."""
    files = [arm.model_dir / name for name in arm.pins.weights if name.endswith(".safetensors")]
    try:
        return tensor_content(files)
    except SourceError:
        return canonical.digest(arm.pins.weights)


def _differing(one: Mapping[str, object], other: Mapping[str, object]) -> set[str]:
    return {name for name in one.keys() | other.keys() if one.get(name) != other.get(name)}


def _asked_alike(one: Pins, other: Pins) -> bool:
    """Whether both arms are asked with the same token ids, which a raw output's digest covers."""
    files = _differing(one.tokenizer, other.tokenizer) - {CONFIGURATION, GENERATION}
    names = ("prompts", "chat_template", "probes", "vocabulary")
    return not files and all(getattr(one, name) == getattr(other, name) for name in names)


def _identical_items(measured: Measured, asked_alike: bool) -> int:
    """How many items both arms gave the same output for; 0 where not every item looked at is one."""
    records, items = measured.records, 0
    for evalset in (s for s in measured.sets if s.items):
        one, other = (
            _outputs(records[role].get(evalset.card.name), asked_alike) for role in ("baseline", "candidate")
        )
        if one != other or one.keys() != {item.id for item in evalset.items} or None in one.values():
            return 0
        items += len(evalset.items)
    divergences = [o for r in measured.divergences.records.values() for o in r.observations]
    diverged = any(not isinstance(o.outcome, Scored) or any(kl != 0 for kl in o.kl) for o in divergences)
    return 0 if diverged or measured.divergences.late else items


def _outputs(record: MeasurementSet | None, asked_alike: bool) -> dict[str, object]:
    """Item -> its output; empty without a record."""
    return {} if record is None else {o.item: _output(o, asked_alike) for o in record.observations}


def _output(observation: Observation, asked_alike: bool) -> object:
    """What an execution gave, without what it was asked where that differs; None for a failure."""
    if not isinstance(observation.outcome, Scored) or observation.raw is None:
        return None
    if asked_alike:
        return observation.raw
    scored = observation.outcome
    return scored.values, scored.weights, observation.text, observation.output_tokens, observation.finish


def _listed(names: tuple[str, ...]) -> str:
    shown = [*names[:_SHOWN], *([f"{len(names) - _SHOWN} more"] if len(names) > _SHOWN else [])]
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"
