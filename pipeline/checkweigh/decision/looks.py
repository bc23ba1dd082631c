"""Looks at a growing sample: what every check may spend at each of them. Pure. ``slices`` says which items a look adds.

1. A check's information fraction is a matter of design, never of an estimated variance. It is effective items at the
   look over effective items of the plan, with the correlation within clusters that Tango's score assumes.
2. Pass: Lan-DeMets spending of O'Brien-Fleming type, for each check on its own. Looks at an eighth or less only block.
3. Block: the policy's level, divided by the number of looks; Holm over the checks divides it further.
4. Timing is measured once in a gate, whole: one test at the full level, whichever look it belongs to.
5. Declared attempts share both levels equally.

Lan and DeMets (1983), Biometrika 70:659; Jennison and Turnbull (2000), ch. 9 on repeated confidence intervals.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from scipy import special

from checkweigh.decision.slices import restrict_items, slice_items
from checkweigh.records.evalset import EvalSet, Item
from checkweigh.records.metrics import METRICS
from checkweigh.records.policy import Check, Policy
from checkweigh.stats.estimators.binary import PRIOR_CORRELATION
from checkweigh.stats.sequential import alpha_spent, spending_boundary

BLOCK_ONLY = 0.125  # shares up to here cannot pass
NO_LEVEL = 1e-12  # where less than this is spent, nothing can pass


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


def single_look_level(alpha: float) -> Level:
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
    apart, together = (float(np.sum(np.square(list(x)))) for x in (weights, by_cluster.values()))
    return sum(weights) ** 2 / ((1 - PRIOR_CORRELATION) * apart + PRIOR_CORRELATION * together)


def _items(check: Check, evalset: EvalSet) -> list[Item]:
    wanted = check.where.get("stratum")
    return [item for item in evalset.items if wanted in (None, item.stratum)]


def information_fractions(
    check: Check, sets: Sequence[EvalSet], shares: Sequence[float], seed: int
) -> tuple[float, ...]:
    """(J,) information fractions of a check at each look; the last one is 1, and none is below the one before it."""
    used = [s for s in sets if s.card.name in check.evalset]
    parts = [slice_items(s, shares, seed) for s in used]
    effective = [
        effective_items(
            check,
            [
                restrict_items(s, [i for part in of[: j + 1] for i in part])
                for s, of in zip(used, parts, strict=True)
            ],
        )
        for j in range(len(shares))
    ]
    whole = effective[-1] or 1.0
    grown = np.minimum(np.maximum.accumulate(np.array(effective) / whole), 1.0)
    return (*(float(t) for t in grown[:-1]), 1.0)


def pass_levels(fractions: Sequence[float], shares: Sequence[float], alpha: float) -> tuple[float, ...]:
    """(J,) nominal one-sided levels of a check's pass test; 0 at looks that only block.

    A look that brought the check nothing new keeps the level of the one before.
    """
    able = [
        share > BLOCK_ONLY and t > 0 and alpha_spent(t, alpha) > NO_LEVEL
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


def design_looks(
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
        design = tuple(fractions.get(check.id, shares))
        if METRICS[check.metric].estimator == "blocks":
            design = (1.0,) * len(shares)
        if check.tier == "advisory":
            at = (policy.error_budget.false_pass,) * len(shares)
        elif METRICS[check.metric].estimator == "blocks":
            at = (alpha,) * len(shares)
        else:
            at = pass_levels(design, shares, alpha)
        grows = len(shares) > 1 and at[0] != at[-1]
        for j, (t, level) in enumerate(zip(design, at, strict=True)):
            high = block / max(1, hypotheses) if grows else level
            levels[j][check.id] = Level(information=t, passing=level, final=at[-1], high=high)
    return tuple(
        Look(number=j + 1, of=len(shares), share=share, levels=levels[j], block=block)
        for j, share in enumerate(shares)
    )


def looks_for_sets(
    policy: Policy, checks: Sequence[Check], sets: Sequence[EvalSet], hypotheses: int
) -> tuple[Look, ...]:
    """All looks of a policy on its sets, by their design."""
    quality = [check for check in checks if check.evalset]
    fractions = {check.id: information_fractions(check, sets, policy.looks, policy.seed) for check in quality}
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
        for look in design_looks(policy, checks, fractions, hypotheses)
    )


def _size(check: Check, sets: Sequence[EvalSet]) -> tuple[int, int]:
    """Items and clusters of the whole plan."""
    items = [(s.card.name, i) for s in sets if s.card.name in check.evalset for i in _items(check, s)]
    return len(items), len({(n, i.id if check.metric == "failed" else i.cluster) for n, i in items})
