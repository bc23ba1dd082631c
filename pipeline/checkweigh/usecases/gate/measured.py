"""What a gate has measured so far: it grows by looks, and whole looks only."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from checkweigh.decision.slices import Part, look_parts, merge_measurements, restrict_items
from checkweigh.records.evalset import EvalSet
from checkweigh.records.measurement import MeasurementSet, PairedRun
from checkweigh.usecases.gate.arms.measure_divergence import Divergences
from checkweigh.usecases.gate.inputs import Inputs

Records = dict[str, MeasurementSet]
ROLES = ("baseline", "candidate", "anchor")


def _no_records() -> dict[str, Records]:
    return {role: {} for role in ROLES}


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What was measured up to a look. ``sets``: the sets as the look sees them.

    ``records``: role -> set -> what was looked at so far. ``keys``: role -> part -> key of its measurement. ``untimed``
    says why there is no ``timing``.
    """

    sets: tuple[EvalSet, ...]
    records: Mapping[str, Records] = field(default_factory=_no_records)
    keys: Mapping[str, Mapping[str, str]] = field(default_factory=lambda: {role: {} for role in ROLES})
    divergences: Divergences = field(default_factory=Divergences)
    timing: PairedRun | None = None
    untimed: str = "timing was not measured"

    @classmethod
    def empty(cls, inputs: Inputs) -> Measured:
        """Before the first look."""
        return cls(sets=tuple(restrict_items(s, ()) for s in inputs.evalsets))

    def with_look(
        self, parts: tuple[Part, ...], more: Mapping[str, Records], divergences: Divergences
    ) -> Measured:
        """With another look's parts and what was measured on them."""
        records: dict[str, Records] = {}
        keys: dict[str, dict[str, str]] = defaultdict(dict)
        names = {part.evalset.card.name: part for part in parts}
        for role in ROLES:
            before, new = self.records[role], more[role]
            whole = {n: merge_measurements([before[n], r]) if n in before else r for n, r in new.items()}
            records[role] = {**before, **whole}
            new_keys = {_place(names[n]): r.key.record_digest() for n, r in new.items()}
            keys[role] = {**self.keys[role], **new_keys}
        first = not any(self.records.values())
        return replace(
            self, sets=_together(self.sets, parts), records=records, keys=keys,
            divergences=divergences if first else self.divergences.with_look(divergences),
        )  # fmt: skip

    @property
    def items(self) -> dict[str, int]:
        """Set -> items an arm that were looked at."""
        return {s.card.name: len(s.items) for s in self.sets}


def _place(part: Part) -> str:
    """Name of a part's measurement in a decision."""
    name = part.evalset.card.name
    return name if part.of == 1 else f"{name}@{part.look}"


def _together(seen: tuple[EvalSet, ...], parts: tuple[Part, ...]) -> tuple[EvalSet, ...]:
    """The sets as they are with these parts, in the order of the parts."""
    known = {s.card.name: s.items for s in seen}
    return tuple(
        p.evalset.model_copy(update={"items": (*known.get(p.evalset.card.name, ()), *p.evalset.items)})
        for p in parts
        if p.evalset.items or p.evalset.card.name in known
    )


def parts_of_looks(inputs: Inputs) -> dict[str, tuple[Part, ...]]:
    """Set -> its part for each look that the policy declares."""
    policy = inputs.policy
    return {s.card.name: look_parts(s, policy.looks, policy.seed) for s in inputs.evalsets}
