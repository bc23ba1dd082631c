"""Growing samples: which items each look adds, and what every check may spend there. Pure.

1. A set's items come in one order, fixed before the first look: whole clusters, drawn by the policy's seed, every
   stratum spread evenly over it. A look takes the order's beginning, so that later looks contain earlier ones.
2. A check's information fraction is a matter of design, never of an estimated variance: effective items at the look
   over effective items of the plan, with the correlation within clusters that Tango's score assumes as well.
3. Pass: Lan-DeMets spending of O'Brien-Fleming type, for each check on its own. Looks at an eighth or less only block.
4. Block: the policy's level, divided by the number of looks; Holm over the checks divides it further.
5. Timing is measured once in a gate, whole: one test at the full level, whichever look it belongs to.
6. Declared attempts share both levels equally.

Lan and DeMets (1983), Biometrika 70:659; Jennison and Turnbull (2000), ch. 9 on repeated confidence intervals.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from scipy import special

from checkweigh import canonical
from checkweigh.records.evalset import EvalSet, Item
from checkweigh.records.measurement import MeasurementSet
from checkweigh.records.metrics import METRICS
from checkweigh.records.policy import Check, Policy
from checkweigh.stats.estimators.binary import PRIOR_CORRELATION
from checkweigh.stats.sequential import spending_boundary, spent

BLOCK_ONLY = 0.125  # shares up to here cannot pass
NO_LEVEL = 1e-12  # where less than this is spent, nothing can pass
PARTS = 2**20  # batch plans from here on are those of parts of a set
Slices = tuple[tuple[Item, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """What one check may use at one look.

    ``information``: t in (0, 1]. ``passing``: nominal one-sided level of the pass test and of the lower bound, 0 where
    the look only blocks; ``final``: that of the last look. ``high``: level of the upper bound. ``items``, ``clusters``:
    of the whole plan, which a check's ``min_items`` and ``min_clusters`` are asked of; None when the sample is whole.
    """

    information: float = 1.0
    passing: float
    final: float
    high: float
    items: int | None = None
    clusters: int | None = None


def alone(alpha: float) -> Level:
    """The level of a check that is looked at once, whole."""
    return Level(passing=alpha, final=alpha, high=alpha)


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """Look ``number`` of ``of``, at ``share`` of the items; ``levels`` by check id.

    ``block``: level of the whole policy's block test at this look, before Holm.
    """

    number: int
    of: int
    share: float
    levels: Mapping[str, Level]
    block: float

    @property
    def last(self) -> bool:
        """Whether it is the plan's last one."""
        return self.number == self.of


def slices(evalset: EvalSet, shares: Sequence[float], seed: int) -> Slices:
    """The items that each look adds: whole clusters, as near to the shares as clusters allow; some may be empty.

    Within a stratum the r-th of m clusters stands at (r + u) / m of the order, u drawn for the stratum: every beginning
    of the order holds about the same share of each. A pure function of set, shares and seed.
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


def restricted(evalset: EvalSet, items: Sequence[Item]) -> EvalSet:
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
        return PARTS + int(digest.removeprefix("sha256:")[:10], 16)

    @property
    def label(self) -> str:
        """For people."""
        name = self.evalset.card.name
        return name if self.of == 1 else f"{name}, look {self.look}"


def parts_of(evalset: EvalSet, shares: Sequence[float], seed: int) -> tuple[Part, ...]:
    """One part for each look; those that add nothing have no items."""
    if len(shares) == 1:
        return (Part(evalset=evalset, look=1, of=1),)
    return tuple(
        Part(evalset=restricted(evalset, items), look=j + 1, of=len(shares))
        for j, items in enumerate(slices(evalset, shares, seed))
    )


def merged(records: Sequence[MeasurementSet]) -> MeasurementSet:
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


def shared(evalset: EvalSet, *records: MeasurementSet) -> tuple[EvalSet, tuple[MeasurementSet, ...]]:
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
    return restricted(evalset, [item for item in evalset.items if item.id in ids]), tuple(cut)


def effective_items(check: Check, sets: Sequence[EvalSet]) -> float:
    """Items without clusters and weights that would inform as much: 1 / Var, for variances that are all equal.

    W^2 / [(1 - rho) sum(w^2) + rho sum(W_g^2)], W_g a cluster's weight; for equal weights n / (1 + (k - 1) rho).
    """
    weights: list[float] = []
    by_cluster: dict[tuple[str, str], float] = defaultdict(float)
    for evalset in sets:
        items = _items(check, evalset)
        strata = Counter(item.stratum for item in items)
        graded = METRICS[check.metric].estimator == "graded"
        for item in items:
            weight = 1.0 / strata[item.stratum] if graded else 1.0
            weights.append(weight)
            by_cluster[evalset.card.name, item.id if check.metric == "failed" else item.cluster] += weight
    if not weights:
        return 0.0
    alone, together = (float(np.sum(np.square(list(x)))) for x in (weights, by_cluster.values()))
    return sum(weights) ** 2 / ((1 - PRIOR_CORRELATION) * alone + PRIOR_CORRELATION * together)


def _items(check: Check, evalset: EvalSet) -> list[Item]:
    wanted = check.where.get("stratum")
    return [item for item in evalset.items if wanted in (None, item.stratum)]


def information(
    check: Check, sets: Sequence[EvalSet], shares: Sequence[float], seed: int
) -> tuple[float, ...]:
    """(J,) information fractions of a check at each look; the last one is 1, and none is below the one before it."""
    mine = [s for s in sets if s.card.name in check.evalset]
    parts = [slices(s, shares, seed) for s in mine]
    found = [
        effective_items(
            check,
            [
                restricted(s, [i for part in of[: j + 1] for i in part])
                for s, of in zip(mine, parts, strict=True)
            ],
        )
        for j in range(len(shares))
    ]
    whole = found[-1] or 1.0
    grown = np.minimum(np.maximum.accumulate(np.array(found) / whole), 1.0)
    return (*(float(t) for t in grown[:-1]), 1.0)


def pass_levels(fractions: Sequence[float], shares: Sequence[float], alpha: float) -> tuple[float, ...]:
    """(J,) nominal one-sided levels of a check's pass test; 0 at looks that only block.

    A look that brought the check nothing new keeps the level of the one before.
    """
    able = [
        share > BLOCK_ONLY and t > 0 and spent(t, alpha) > NO_LEVEL
        for t, share in zip(fractions, shares, strict=True)
    ]
    distinct = tuple(sorted({t for t, can in zip(fractions, able, strict=True) if can}))
    levels = dict(zip(distinct, _levels(distinct, alpha), strict=True))
    return tuple(levels[t] if can else 0.0 for t, can in zip(fractions, able, strict=True))


@lru_cache(maxsize=256)
def _levels(fractions: tuple[float, ...], alpha: float) -> tuple[float, ...]:
    if len(fractions) == 1:
        return (alpha,)
    return tuple(float(p) for p in special.ndtr(-spending_boundary(fractions, alpha)))


def designed(
    policy: Policy, checks: Sequence[Check], fractions: Mapping[str, Sequence[float]], hypotheses: int
) -> tuple[Look, ...]:
    """All looks of a policy, from each check's information fractions (check id -> (J,), ending at 1).

    Checks without fractions take the declared shares. Advisory checks spend nothing: they are judged at the full level.
    ``hypotheses``: K of the block test.
    """
    shares = policy.looks
    alpha = policy.error_budget.false_pass / policy.attempts
    block = policy.error_budget.false_block / (policy.attempts * len(shares))
    levels: list[dict[str, Level]] = [{} for _ in shares]
    for check in checks:
        own = tuple(fractions.get(check.id, shares))
        if METRICS[check.metric].estimator == "blocks":
            own = (1.0,) * len(shares)
        if check.tier == "advisory":
            at = (policy.error_budget.false_pass,) * len(shares)
        elif METRICS[check.metric].estimator == "blocks":
            at = (alpha,) * len(shares)
        else:
            at = pass_levels(own, shares, alpha)
        grows = len(shares) > 1 and at[0] != at[-1]
        for j, (t, level) in enumerate(zip(own, at, strict=True)):
            high = block / max(1, hypotheses) if grows else level
            levels[j][check.id] = Level(information=t, passing=level, final=at[-1], high=high)
    return tuple(
        Look(number=j + 1, of=len(shares), share=share, levels=levels[j], block=block)
        for j, share in enumerate(shares)
    )


def planned(
    policy: Policy, checks: Sequence[Check], sets: Sequence[EvalSet], hypotheses: int
) -> tuple[Look, ...]:
    """All looks of a policy on its sets, by their design."""
    quality = [check for check in checks if check.evalset]
    fractions = {check.id: information(check, sets, policy.looks, policy.seed) for check in quality}
    sizes = {check.id: _size(check, sets) for check in quality}
    return tuple(
        replace(
            look,
            levels={
                name: replace(level, items=sizes[name][0], clusters=sizes[name][1])
                if name in sizes
                else level
                for name, level in look.levels.items()
            },
        )
        for look in designed(policy, checks, fractions, hypotheses)
    )


def _size(check: Check, sets: Sequence[EvalSet]) -> tuple[int, int]:
    """Items and clusters of the whole plan."""
    found = [(s.card.name, i) for s in sets if s.card.name in check.evalset for i in _items(check, s)]
    return len(found), len({(n, i.id if check.metric == "failed" else i.cluster) for n, i in found})
