"""What a gate can settle and what it will cost, before it is paid for; and a policy's operating characteristics.

1. Read the policy and its sets; with manifests, verify them and look for what the store has of either.
2. Noise of each metric on each set: measured where both arms have been measured, else assumed and said so.
3. The closed forms of ``planning``; expected items from simulated gates with the same noise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from checkweigh.decision.noise_floor import floor_of
from checkweigh.decision.pairing import pair
from checkweigh.decision.planning import (
    Noise,
    assumed_noise,
    joint_pass_probability,
    measured_noise,
    plan_checks,
    plan_problems,
)
from checkweigh.decision.simulation import CORRELATION, PolicySimulator, simulate
from checkweigh.decision.slices import common_items
from checkweigh.errors import StoreError
from checkweigh.measure import host_facts
from checkweigh.progress import Progress
from checkweigh.records.evalset import EvalSet
from checkweigh.records.measurement import PROTOCOL, MeasurementSet
from checkweigh.records.metrics import METRICS
from checkweigh.records.operating_characteristics import Simulation
from checkweigh.records.policy import Check, Policy
from checkweigh.records.sample_plan import Expected, Plan
from checkweigh.sources.cache import cache_root
from checkweigh.sources.pin import Resolved, verify
from checkweigh.store import Store
from checkweigh.usecases.calibration_store import for_pins
from checkweigh.usecases.gate.comparability import inestimable_checks, never_pass, refuse_critical
from checkweigh.usecases.gate.inputs import Inputs, read_policy_inputs

EXPECTED_RUNS = 200
CLEARLY_WORSE = -3.0


@dataclass
class Basis:
    """What a plan rests on. ``records``: arm -> set -> a stored execution of it."""

    policy: Policy
    sets: tuple[EvalSet, ...]
    names: dict[str, str] = field(default_factory=dict)
    records: dict[str, dict[str, MeasurementSet]] = field(default_factory=dict)
    floors: tuple[str, ...] = ()
    _noises: dict[tuple[str, ...], Noise] = field(default_factory=dict)

    def noise(self, evalset: EvalSet, check: Check) -> Noise:
        """Measured between the two stored executions of the set, else assumed."""
        name = evalset.card.name
        key = (name, check.metric, check.where.get("stratum", ""))
        if key not in self._noises:
            self._noises[key] = self._measured(evalset, check) or assumed_noise(
                evalset.card.kind, check.metric
            )
        return self._noises[key]

    def _measured(self, evalset: EvalSet, check: Check) -> Noise | None:
        name = evalset.card.name
        arms = [self.records.get(role, {}) for role in ("baseline", "candidate")]
        if not all(name in arm for arm in arms):
            return None
        # A gate that stopped early has a part of the set.
        seen, records = common_items(evalset, *(arm[name] for arm in arms))
        sample = pair(check.metric, [seen], *({name: record} for record in records), where=check.where)
        day = arms[1][name].provenance.ended[:10]
        return (
            None
            if sample.problems
            else measured_noise(sample, f"measured: {' against '.join(self.names.values())}, {day}")
        )


def plan(policy: Path, baseline: Path | None, candidate: Path | None, progress: Progress) -> Plan:
    """The plan of a policy, for two manifests where they are given. Raises BadInput."""
    rules, sets = read_policy_inputs(policy, progress)
    basis = Basis(rules, sets)
    given = {"baseline": baseline, "candidate": candidate}
    arms = {role: verify(path, progress) for role, path in given.items() if path is not None}
    never = _without_estimate(policy, rules, sets, arms)
    _look_up(basis, arms)
    rows = plan_checks(rules, sets, basis.noise, basis.floors)
    minutes, cost = _minutes(basis)
    return Plan(
        policy=rules.record_digest(), policy_name=rules.name, looks=rules.looks,
        items=sum(len(s.items) for s in sets), checks=rows, joint=joint_pass_probability(rows),
        minutes=minutes, cost=cost, expected=_expected(basis, minutes, progress),
        problems=(*never, *plan_problems(rows)),
    )  # fmt: skip


def unsettled(inputs: Inputs) -> tuple[str, ...]:
    """Why a gate on these inputs is not expected to settle, before its first second of compute; empty when it is."""
    basis = Basis(inputs.policy, inputs.evalsets)
    with suppress(StoreError):  # the gate itself will say so
        _look_up(basis, {"baseline": inputs.baseline, "candidate": inputs.candidate})
    problems = plan_problems(plan_checks(basis.policy, basis.sets, basis.noise, basis.floors))
    return (*never_pass(inputs.policy, inputs.candidate.manifest.intends, inputs.inestimable), *problems)


def characteristics(policy: Path, runs: int, seed: int, progress: Progress) -> Simulation:
    """How often the policy ships, blocks and stays open, for candidates whose truth is known. Raises BadInput."""
    rules, sets = read_policy_inputs(policy, progress)
    basis = Basis(rules, sets)
    simulator = PolicySimulator(rules, sets, basis.noise)
    return Simulation(
        policy=rules.record_digest(), policy_name=rules.name, seed=seed, runs=runs, correlation=CORRELATION,
        items=simulator.items, looks=rules.looks,
        noise={f"{name} {metric}": _in_words(noise) for (name, metric, _), noise in simulator.noises.items()},
        left_out=simulator.left_out, scenarios=simulate(simulator, simulator.scenarios(), runs, seed, progress),
    )  # fmt: skip


def _without_estimate(
    path: Path, policy: Policy, sets: Sequence[EvalSet], arms: Mapping[str, Resolved]
) -> tuple[str, ...]:
    """What two tokenizers leave no estimate of; a critical check among it is BadDocument, as in the gate.

    Checks against the anchor are left to the gate, which reads it.
    """
    if len(arms) < 2:
        return ()
    candidate = arms["candidate"]
    inestimable = inestimable_checks(policy, sets, candidate, baseline=arms["baseline"])
    refuse_critical(path, policy, candidate.manifest.intends, inestimable)
    return never_pass(policy, candidate.manifest.intends, inestimable)


def _in_words(noise: Noise) -> str:
    what = f"sd {noise.sd:.3g}" if noise.flips is None else f"{noise.flips:.1%} flips"
    within = (
        f" (correlated by {noise.correlation:g} within clusters)" if noise.correlation and noise.sd else ""
    )
    return f"{what}{within}; {noise.source}"


def _look_up(basis: Basis, arms: dict[str, Resolved]) -> None:
    """Fill in what the store has of the arms, and which divergence checks have a noise floor."""
    store = Store(cache_root() / "store")
    for role, arm in arms.items():
        basis.names[role] = arm.manifest.name
        basis.records[role] = {}
        for evalset in basis.sets:
            executions = [
                r
                for r in store.find_executions(
                    pins=arm.pins.record_digest(), evalset=evalset.card.digest, scorer=evalset.card.scorer
                )
                if r.key.protocol == PROTOCOL
                and r.key.hardware == host_facts.hardware()
                and r.key.against is None
            ]
            used = {r.key.record_digest() for records in basis.records.values() for r in records.values()}
            for record in executions[:2]:  # two executions of one manifest are two arms
                if record.key.record_digest() not in used:
                    basis.records[role].setdefault(evalset.card.name, record)
    if "baseline" in arms:
        calibrations = for_pins(arms["baseline"].pins.record_digest())
        basis.floors = tuple(
            c.id
            for c in basis.policy.checks
            if METRICS[c.metric].estimator == "divergence" and floor_of(c, basis.sets, calibrations)
        )


def _minutes(basis: Basis) -> tuple[float | None, str]:
    """Minutes of both arms on all items, and what that rests on. A stored baseline costs nothing."""
    seconds = 0.0
    for evalset in basis.sets:
        name = evalset.card.name
        stored = {role: records[name].stage for role, records in basis.records.items() if name in records}
        if not stored:
            return None, f"nothing measured on {name} to tell the time by"
        rates = {role: stage.seconds / max(1, stage.items) for role, stage in stored.items()}
        for role in ("baseline", "candidate"):
            if role == "candidate" or role not in stored:
                seconds += rates.get(role, next(iter(rates.values()))) * len(evalset.items)
    timed = any(METRICS[c.metric].estimator == "blocks" for c in basis.policy.checks)
    seconds += basis.policy.timing.max_seconds if timed else 0.0
    more = f"; up to {basis.policy.timing.max_seconds:g} s of timing in it" if timed else ""
    return seconds / 60.0, f"seconds of stored measurements on this host{more}; starting engines is not"


def _expected(basis: Basis, minutes: float | None, progress: Progress) -> tuple[Expected, ...]:
    """Items that gates of an equal candidate, and of one that is clearly worse somewhere, are expected to use."""
    simulator = PolicySimulator(basis.policy, basis.sets, basis.noise)
    scenarios = [s for s in simulator.scenarios() if s.margins in (0.0, CLEARLY_WORSE)]
    equal, *worse = simulate(simulator, scenarios, EXPECTED_RUNS, 0, progress)

    def mean_of(name: str, shares: Sequence[float], items: Sequence[float]) -> Expected:
        share, mean = sum(shares) / len(shares), sum(items) / len(items)
        return Expected(candidate=name, items=mean, minutes=None if minutes is None else minutes * share)

    rows = [mean_of("equal", [equal.share], [equal.items])]
    if worse:
        rows.append(
            mean_of("worse by three margins on one check", [r.share for r in worse], [r.items for r in worse])
        )
    return tuple(rows)
