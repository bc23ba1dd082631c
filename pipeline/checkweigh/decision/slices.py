"""The slice of a set that each look adds, and measurements of slices put together again. Pure.

A set's items come in one order, fixed before the first look: whole clusters, drawn by the policy's seed, every stratum
spread evenly over it. A look takes the order's beginning, so that later looks contain earlier ones.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from checkweigh import canonical
from checkweigh.records.evalset import EvalSet, Item
from checkweigh.records.measurement import MeasurementSet

FIRST_PART_PLAN = 2**20  # batch plans from here on are those of parts of a set
Slices = tuple[tuple[Item, ...], ...]


def slice_items(evalset: EvalSet, shares: Sequence[float], seed: int) -> Slices:
    """The items that each look adds: whole clusters, as near to the shares as clusters allow; some may be empty.

    Within a stratum the r-th of m clusters is at (r + u) / m of the order, with u drawn for the stratum. So every
    beginning of the order holds about the same share of each stratum. A pure function of set, shares and seed.
    """
    clusters: dict[str, list[Item]] = defaultdict(list)
    for item in sorted(evalset.items, key=lambda item: item.id):
        clusters[item.cluster].append(item)
    strata: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for name, items in clusters.items():
        strata[tuple(sorted({item.stratum for item in items}))].append(name)
    places: list[tuple[float, str]] = []
    for stratum, names in strata.items():
        start = _uniform(seed, evalset.card.digest, *stratum)
        names.sort(key=lambda name: canonical.digest([seed, evalset.card.digest, name]))
        places += [((rank + start) / len(names), name) for rank, name in enumerate(names)]
    parts: list[list[Item]] = [[] for _ in shares]
    done, look, total = 0, 0, len(evalset.items)
    for _, name in sorted(places):
        while look < len(shares) - 1 and done + len(clusters[name]) / 2 > shares[look] * total:
            look += 1
        parts[look] += clusters[name]
        done += len(clusters[name])
    return tuple(tuple(part) for part in parts)


def _uniform(*parts: object) -> float:
    return int(canonical.digest(list(parts)).removeprefix("sha256:")[:12], 16) / 16**12


def restrict_items(evalset: EvalSet, items: Sequence[Item]) -> EvalSet:
    """The set with these items only, in the set's own order; its card stays the whole set's."""
    kept = {item.id for item in items}
    return evalset.model_copy(update={"items": tuple(item for item in evalset.items if item.id in kept)})


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What one look adds to one set: an evaluation set of those items, measured and stored by itself.

    ``batches`` tells its measurements from others of the same set: 0 for a whole set, else a number that follows from
    its items alone, so that policies whose looks share a part share its measurement.
    """

    evalset: EvalSet
    look: int
    of: int

    @property
    def batches(self) -> int:
        """The batch plan in the key of a measurement."""
        if self.of == 1:
            return 0
        digest = canonical.digest(sorted(item.id for item in self.evalset.items))
        return FIRST_PART_PLAN + int(digest.removeprefix("sha256:")[:10], 16)

    @property
    def label(self) -> str:
        """For people."""
        name = self.evalset.card.name
        return name if self.of == 1 else f"{name}, look {self.look}"


def look_parts(evalset: EvalSet, shares: Sequence[float], seed: int) -> tuple[Part, ...]:
    """One part for each look; those that add nothing have no items."""
    if len(shares) == 1:
        return (Part(evalset=evalset, look=1, of=1),)
    return tuple(
        Part(evalset=restrict_items(evalset, items), look=j + 1, of=len(shares))
        for j, items in enumerate(slice_items(evalset, shares, seed))
    )


def merge_measurements(records: Sequence[MeasurementSet]) -> MeasurementSet:
    """Measurements of one arm on parts of one set, as one; its key is that of the first part."""
    first, last = records[0], records[-1]
    if len(records) == 1:
        return first
    stages = [record.stage for record in records]
    stage = stages[0].model_copy(
        update={
            "items": sum(s.items for s in stages),
            "tokens": sum(s.tokens for s in stages),
            "seconds": sum(s.seconds for s in stages),
        }
    )
    return first.model_copy(
        update={
            "planned": sum(record.planned for record in records),
            "observations": tuple(o for record in records for o in record.observations),
            "stage": stage,
            "provenance": first.provenance.model_copy(update={"ended": last.provenance.ended}),
        }
    )


def common_items(evalset: EvalSet, *records: MeasurementSet) -> tuple[EvalSet, tuple[MeasurementSet, ...]]:
    """The set and its measurements, cut down to the items that all of them hold."""
    ids = set.intersection(*({o.item for o in record.observations} for record in records))
    cut = (
        r.model_copy(
            update={
                "observations": (seen := tuple(o for o in r.observations if o.item in ids)),
                "planned": len(seen),
            }
        )
        for r in records
    )
    return restrict_items(evalset, [item for item in evalset.items if item.id in ids]), tuple(cut)
