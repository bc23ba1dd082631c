"""Candidates whose truth is known, through the decision code of a gate. Pure: the generator of chance is an argument.

1. Every set keeps its own items, clusters, strata and looks. Only the paired differences are drawn, from the ``Noise``
   of each metric on each set: normal, or flips where values are 0 or 1. Any two checks' estimates are correlated by
   ``CORRELATION``.
2. A scenario moves one check by a number of its margins, on all its sets; every other check stays equal, unless it
   looks at the same values.
3. Look by look, ``compare_many`` and ``decide`` judge as in a gate; a run stops when its verdict is settled.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from zlib import crc32

import numpy as np
from numpy.typing import NDArray
from scipy import special

from checkweigh.decision.compare import compare_many, margin_of
from checkweigh.decision.compare_timing import block_key, compare_blocks
from checkweigh.decision.looks import Level, Look, looks_for_sets
from checkweigh.decision.pairing import PairedSample
from checkweigh.decision.planning import (
    Noise,
    Noises,
    assumed_block_noise,
    item_size,
    items_of_check,
)
from checkweigh.decision.slices import slice_items
from checkweigh.decision.verdict import all_checks, decide, hypothesis_count
from checkweigh.progress import Progress
from checkweigh.records.comparison import Comparison
from checkweigh.records.decision import Verdict
from checkweigh.records.evalset import EvalSet, Item
from checkweigh.records.measurement import Block, PairedRun
from checkweigh.records.metrics import METRICS
from checkweigh.records.operating_characteristics import Rates
from checkweigh.records.policy import Check, Policy, Timing
from checkweigh.stats import Partition
from checkweigh.stats.arrays import Floats

CORRELATION = 0.3
MARGINS = (-1.0, -1.5, -3.0)
Key = tuple[str, str, str]  # set, metric, against: what one draw is of
Pair = tuple[
    dict[str, float], dict[str, float], dict[str, tuple[int, int]]
]  # values of either arm, and unlike
Indices = NDArray[np.intp]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One kind of candidate: ``check`` is worse by ``margins`` of its own; without a check all are equal."""

    check: str | None = None
    margins: float = 0.0

    @property
    def name(self) -> str:
        """In words."""
        return f"{self.check} at {self.margins:g} m" if self.check else "equal"


@dataclass(frozen=True, slots=True)
class _Order:
    """A set's items in the order of its looks; ``until`` how many of them each look sees."""

    items: tuple[Item, ...]
    until: tuple[int, ...]


class PolicySimulator:
    """A policy and its sets, ready to be run many times. Divergence informs only, as without a noise floor."""

    def __init__(self, policy: Policy, sets: Sequence[EvalSet], noises: Noises) -> None:
        self.left_out = {c.id: "divergences are not drawn" for c in policy.checks if _is(c, "divergence")}
        kept = (
            c.model_copy(update={"tier": "advisory"}) if c.id in self.left_out else c for c in policy.checks
        )
        self.policy = policy.model_copy(update={"checks": tuple(kept)})
        self.checks = tuple(c for c in all_checks(self.policy) if c.tier != "advisory")
        self.looks = looks_for_sets(self.policy, all_checks(self.policy), sets, hypothesis_count(self.policy))
        self.sets = {s.card.name: s for s in sets}
        self.orders = {name: _order(s, self.policy) for name, s in self.sets.items()}
        self.noises: dict[Key, Noise] = {
            (name, check.metric, check.against): noises(self.sets[name], check)
            for check in self.checks
            for name in check.evalset
        }
        self._samples: dict[tuple[str, int], _Layout] = {}

    @property
    def items(self) -> int:
        """Items of all sets together."""
        return sum(len(order.items) for order in self.orders.values())

    def items_at(self, look: Look) -> int:
        """Items an arm has been measured on at a look."""
        return sum(order.until[look.number - 1] for order in self.orders.values())

    def scenarios(self) -> tuple[Scenario, ...]:
        """Equal, and each critical check at and beyond its margin. Absolute limits and gains have no such margin."""
        worse = [
            c for c in self.checks if c.tier == "critical" and c.kind in ("non_inferiority", "equivalence")
        ]
        return (Scenario(), *(Scenario(check=c.id, margins=m) for c in worse for m in MARGINS))

    def run(self, scenario: Scenario, runs: int, rng: np.random.Generator) -> Rates:
        """The rates of one scenario."""
        drawn = self._draw(scenario, runs, rng)
        timings = {c.id: self._time(c, scenario, runs, rng) for c in self.checks if _is(c, "blocks")}
        verdicts = [Verdict.INCONCLUSIVE] * runs
        stopped = np.full(runs, len(self.looks))
        active = np.arange(runs)
        for look in self.looks:
            comparisons = {c.id: self._compared(c, look, drawn, timings, active) for c in self.checks}
            settled = []
            for row, i in enumerate(active):
                judged = decide(
                    self.policy, {name: rows[row] for name, rows in comparisons.items()}, (), look
                )
                verdicts[i] = judged.verdict
                if judged.verdict in (Verdict.PASS, Verdict.BLOCK):
                    settled.append(row)
                    stopped[i] = look.number
            active = np.delete(active, settled)
            if not len(active):
                break
        return self._rates(scenario, verdicts, stopped)

    def _rates(self, scenario: Scenario, verdicts: Sequence[Verdict], stopped: Indices) -> Rates:
        runs = len(verdicts)
        counts = Counter(verdicts)
        sizes = np.array([self.items_at(look) for look in self.looks])[stopped - 1]
        first = sum(v is Verdict.BLOCK and s == 1 for v, s in zip(verdicts, stopped, strict=True))
        return Rates(
            scenario=scenario.name, check=scenario.check, margins=scenario.margins, runs=runs,
            ship=counts[Verdict.PASS] / runs, block=counts[Verdict.BLOCK] / runs,
            inconclusive=counts[Verdict.INCONCLUSIVE] / runs, items=float(sizes.mean()),
            share=float(sizes.mean()) / max(1, self.items), first_look=first / runs,
        )  # fmt: skip

    def _draw(
        self, scenario: Scenario, runs: int, rng: np.random.Generator
    ) -> dict[Key, tuple[Floats, Floats]]:
        """Baseline and candidate values (runs, items in look order) a unit of size, for each set and metric."""
        moved = next((c for c in self.checks if c.id == scenario.check), None)
        path = _SharedPath(rng, runs, [len(order.items) for order in self.orders.values()])
        values = {}
        for key, noise in self.noises.items():
            items = self.orders[key[0]].items
            better = METRICS[key[1]].better
            within = noise.correlation
            if noise.flips is not None:
                within = latent_correlation(noise.flips, within)
            z = path.scores(_partition(items, alone=key[1] == "failed"), within)
            loss = np.zeros(len(items))
            if moved is not None and (moved.metric, moved.against) == key[1:] and key[0] in moved.evalset:
                looked = {item.id for item in items_of_check(moved, self.sets[key[0]])}
                hurt = np.array([item.id in looked for item in items])
                loss = np.where(hurt, -scenario.margins * margin_of(moved), 0.0)
                if moved.direction != better:  # a length that shrinks instead of growing
                    loss = -loss
            sign = 1.0 if better == "higher" else -1.0
            values[key] = (
                _graded(z, noise, loss, sign)
                if noise.flips is None
                else _flipped(z, noise, loss, better, rng)
            )
        return values

    def _time(self, check: Check, scenario: Scenario, runs: int, rng: np.random.Generator) -> list[PairedRun]:
        """Blocks of a check, all the pairs that timing may grow to, judged at its last look."""
        timing, key = self.policy.timing, block_key(check)
        loss = -scenario.margins * margin_of(check) if scenario.check == check.id else 0.0
        noise, shape = assumed_block_noise(check, timing.requests), (runs, timing.looks[-1])
        if noise.flips is not None:
            share = max(noise.flips, loss)
            worse, better = (
                rng.binomial(timing.requests, (share + way * loss) / 2, size=shape) for way in (1, -1)
            )
            return [_counted(check, key, w, b, timing) for w, b in zip(worse, better, strict=True)]
        ratios = np.exp(rng.normal(loss, noise.sd, size=shape))
        return [_timed(key, row, timing) for row in ratios]

    def _compared(
        self,
        check: Check,
        look: Look,
        drawn: Mapping[Key, tuple[Floats, Floats]],
        timings: Mapping[str, Sequence[PairedRun]],
        active: Indices,
    ) -> Sequence[Comparison]:
        level: Level = look.levels[check.id]
        if check.id in timings:
            return [compare_blocks(check, timings[check.id][i], alpha=level) for i in active]
        layout = self._samples.setdefault((check.id, look.number), _layout(self, check, look))
        arms = [
            np.concatenate([drawn[key][arm][np.ix_(active, places)] for key, places in layout.parts], axis=-1)
            for arm in (0, 1)
        ]
        sample = PairedSample(
            metric=check.metric, baseline=arms[0] * layout.sizes, candidate=arms[1] * layout.sizes, size=layout.sizes,
            weights=layout.weights, clusters=layout.clusters, identical=False,
        )  # fmt: skip
        return compare_many(check, sample, alpha=level)


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where a check's values at one look stand in what was drawn."""

    parts: tuple[tuple[Key, Indices], ...]
    sizes: Floats
    weights: Floats
    clusters: tuple[str, ...]


def _layout(bench: PolicySimulator, check: Check, look: Look) -> _Layout:
    parts: list[tuple[Key, Indices]] = []
    sizes: list[float] = []
    weights: list[float] = []
    clusters: list[str] = []
    for name in check.evalset:
        order = bench.orders[name]
        wanted = {item.id for item in items_of_check(check, bench.sets[name])}
        seen = order.items[: order.until[look.number - 1]]
        places = np.array([i for i, item in enumerate(seen) if item.id in wanted], dtype=np.intp)
        strata = Counter(seen[i].stratum for i in places)
        parts.append(((name, check.metric, check.against), places))
        sizes += [item_size(check, seen[i]) for i in places]
        weights += [1.0 / strata[seen[i].stratum] for i in places]
        clusters += [f"{name}/{seen[i].id if check.metric == 'failed' else seen[i].cluster}" for i in places]
    return _Layout(tuple(parts), np.array(sizes), np.array(weights), tuple(clusters))


def _order(evalset: EvalSet, policy: Policy) -> _Order:
    parts = slice_items(evalset, policy.looks, policy.seed)
    until = np.cumsum([len(part) for part in parts])
    return _Order(tuple(item for part in parts for item in part), tuple(int(n) for n in until))


def _partition(items: Sequence[Item], *, alone: bool) -> Partition:
    return Partition.from_labels([item.id if alone else item.cluster for item in items])


class _SharedPath:
    """One Brownian path a run that all sets walk along, each in its own steps.

    A set's i-th of n steps is standard normal. The mean over any beginning of its order depends on the path's value
    there alone. So estimates on different sets are correlated by ``CORRELATION`` at every look, whatever their sizes.
    """

    def __init__(self, rng: np.random.Generator, runs: int, sizes: Sequence[int]) -> None:
        self.rng, self.runs = rng, runs
        self.grid = np.unique(np.concatenate([np.arange(n + 1) / n for n in sizes if n]))
        steps = rng.normal(size=(runs, len(self.grid) - 1)) * np.sqrt(np.diff(self.grid))
        self.values = np.concatenate([np.zeros((runs, 1)), steps.cumsum(axis=-1)], axis=-1)

    def scores(self, partition: Partition, within: float) -> Floats:
        """(runs, n) standard normal, correlated by ``within`` inside a cluster; high is better."""
        n = partition.n
        at = np.searchsorted(self.grid, np.arange(n + 1) / n)
        common = np.diff(self.values[:, at], axis=-1) * np.sqrt(n)
        separate = self.rng.normal(size=(self.runs, n))
        each = np.sqrt(CORRELATION) * common + np.sqrt(1.0 - CORRELATION) * separate
        if partition.clusters == n:
            return np.asarray(each)
        k = partition.sizes[partition.codes]
        middle = (partition.sums(each) / partition.sizes)[:, partition.codes]
        return np.asarray(middle * np.sqrt(1.0 + (k - 1) * within) + np.sqrt(1.0 - within) * (each - middle))


def latent_correlation(flips: float, wanted: float) -> float:
    """The scores' correlation at which a share ``flips`` of them, half at either end, is correlated by ``wanted``.

    P(X < -t, Y < -t) = Phi(-t) - 2 T(t, sqrt((1 - r) / (1 + r))), T being Owen's.
    """
    if not 0.0 < flips < 1.0 or wanted <= 0.0:
        return 0.0
    t = -special.ndtri(flips / 2.0)

    def both(r: float) -> float:
        return float(special.ndtr(-t) - 2.0 * special.owens_t(t, np.sqrt((1.0 - r) / (1.0 + r))))

    low, high = 0.0, 0.999
    for _ in range(40):
        middle = (low + high) / 2.0
        reached = 2.0 * (both(middle) - both(-middle)) / flips >= wanted
        low, high = (low, middle) if reached else (middle, high)
    return high


def _graded(z: Floats, noise: Noise, loss: Floats, sign: float) -> tuple[Floats, Floats]:
    baseline = np.broadcast_to(0.5 + 0.1 * np.sin(np.arange(z.shape[-1])), z.shape)
    return np.asarray(baseline), np.asarray(baseline + sign * (noise.sd * z - loss))


def _flipped(
    z: Floats, noise: Noise, loss: Floats, better: str, rng: np.random.Generator
) -> tuple[Floats, Floats]:
    """0 and 1: the lowest scores turn from good to bad, the highest from bad to good, as often but for the loss."""
    flips = np.maximum(noise.flips or 0.0, np.abs(loss))
    down, up = (flips + loss) / 2.0, (flips - loss) / 2.0
    worse, improved = z < special.ndtri(down), z > special.ndtri(1.0 - up)
    good = np.where(worse, True, np.where(improved, False, rng.random(z.shape) < noise.rate))
    after = np.where(worse, False, np.where(improved, True, good))
    if better == "lower":
        good, after = ~good, ~after
    return good.astype(np.float64), after.astype(np.float64)


def _timed(key: str, ratios: Floats, timing: Timing) -> PairedRun:
    return _run([({key: 1.0}, {key: float(r)}, {}) for r in ratios], timing)


def _counted(check: Check, key: str, worse: Floats, better: Floats, timing: Timing) -> PairedRun:
    """Requests on which the arms differ; a rate of errors holds where the candidate is the worse one."""
    held = (worse, better) if check.direction == "higher" else (better, worse)
    pairs = np.stack(held, axis=-1)
    return _run([({key: 0.5}, {key: 0.5}, {check.metric: (int(b), int(c))}) for b, c in pairs], timing)


def _run(blocks: Sequence[Pair], timing: Timing) -> PairedRun:
    return PairedRun.model_construct(
        seed=0, seconds=0.0, looks=tuple(n / timing.looks[-1] for n in timing.looks), planned_looks=len(timing.looks),
        blocks=tuple(
            Block.model_construct(
                pair=i, order=("baseline", "candidate"), baseline=b, candidate=c, unlike=unlike,
                requests=timing.requests,
            )
            for i, (b, c, unlike) in enumerate(blocks)
        ),
    )  # fmt: skip


def _is(check: Check, estimator: str) -> bool:
    return METRICS[check.metric].estimator == estimator


def simulate(
    bench: PolicySimulator,
    scenarios: Sequence[Scenario],
    runs: int,
    seed: int,
    progress: Progress,
) -> tuple[Rates, ...]:
    """Every scenario, each with a generator of its own: one alone gives the same numbers as among others."""
    rates = []
    for number, scenario in enumerate(scenarios):
        progress(f"simulating: {scenario.name}", number, len(scenarios))
        rng = np.random.default_rng([seed, crc32(scenario.name.encode())])
        rates.append(bench.run(scenario, runs, rng))
    progress("simulating", len(scenarios), len(scenarios))
    return tuple(rates)
