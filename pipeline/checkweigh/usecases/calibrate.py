"""A/A: one manifest executed several times, in other batches, on other threads, each on an engine of its own.

1. Measure every set of the policy in each execution, through the store; keep the hidden states of raw texts.
2. Compare every pair of executions on every check.
3. The 95th percentile of a check's contrasts is its noise floor; three times that its smallest honest margin.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

import numpy as np

from checkweigh.decision.compare import compare
from checkweigh.decision.noise_floor import difference_floor, divergence_floor
from checkweigh.decision.pairing import pair
from checkweigh.decision.verdict import all_checks
from checkweigh.errors import BadInput
from checkweigh.measure import host_facts
from checkweigh.measure.batching import plan_batches
from checkweigh.measure.divergence import compare_states, write_states
from checkweigh.progress import Progress
from checkweigh.records.calibration import Calibration, Execution, Floor
from checkweigh.records.comparison import Comparison
from checkweigh.records.evalset import EvalSet
from checkweigh.records.measurement import PROTOCOL, MeasurementSet, Scored
from checkweigh.records.metrics import METRICS
from checkweigh.records.policy import Check, Policy
from checkweigh.sources.cache import cache_root
from checkweigh.sources.pin import Resolved
from checkweigh.stats.arrays import Floats
from checkweigh.store import Store
from checkweigh.usecases.calibration_store import save
from checkweigh.usecases.gate.arms.arm_measurement import ArmMeasurement
from checkweigh.usecases.gate.arms.engine_session import EngineSession
from checkweigh.usecases.gate.inputs import read_calibration_inputs

# (seed of the batch plan, on another number of threads): five executions are ten contrasts
EXECUTIONS = ((0, False), (1, False), (0, True), (2, True), (3, False))
Records = dict[str, MeasurementSet]


@dataclass(frozen=True, slots=True)
class _Executed:
    """One execution: set -> record, and the folder with the hidden states of its raw texts."""

    arm: ArmMeasurement
    records: Records
    states: Path


def calibrate(
    manifest: Path, policy_path: Path, logs: Path, progress: Progress
) -> tuple[Calibration, Policy]:
    """The noise floors of a manifest under a policy's checks, stored for gates to read; and that policy.

    Engines write below ``logs``. Raises BadInput for anything wrong that is read, when a file changes meanwhile, and
    when the policy's time does not suffice.
    """
    resolved, policy, evalsets = read_calibration_inputs(manifest, policy_path, progress)
    store, deadline = Store(cache_root() / "store"), time.monotonic() + 60 * policy.max_minutes
    with tempfile.TemporaryDirectory(prefix="checkweigh-states-") as folder:
        executed = []
        executions = []
        for number, (seed, other) in enumerate(EXECUTIONS):
            before = time.monotonic()
            session = _session(resolved, other, number, logs, progress)
            arm = ArmMeasurement(session=session, store=store, deadline=deadline, batches=seed)
            executed.append(_execute(arm, policy, evalsets, Path(folder) / str(number)))
            threads = session.resolved.manifest.engine.threads
            executions.append(Execution(threads=threads, batches=seed, seconds=time.monotonic() - before))
        floors, unmeasured = _floors(policy, evalsets, executed)
        executed[0].arm.session.settle()
    key = next(iter(executed[0].records.values())).key
    calibration = Calibration(
        name=resolved.manifest.name, pins=key.pins, identity=key.identity, hardware=host_facts.hardware(),
        protocol=PROTOCOL, made=host_facts.now(), executions=tuple(executions), floors=tuple(floors),
        unmeasured=unmeasured,
    )  # fmt: skip
    save(calibration)
    return calibration, policy


def _session(resolved: Resolved, other: bool, number: int, logs: Path, progress: Progress) -> EngineSession:
    """The engine of one execution; ``other``: on another number of threads than the manifest's."""
    manifest = resolved.manifest
    threads = manifest.engine.threads
    if other:
        threads = 1 if threads > 1 else 2
    engine = manifest.engine.model_copy(update={"threads": threads})
    served = replace(resolved, manifest=manifest.model_copy(update={"engine": engine}))
    return EngineSession(role=f"execution {number + 1}", resolved=served, logs=logs, progress=progress)


def _execute(arm: ArmMeasurement, policy: Policy, evalsets: Sequence[EvalSet], states: Path) -> _Executed:
    """One execution of every set; its engine is ended, so that the next one starts anew."""
    records: Records = {}
    session = arm.session
    try:
        arm.measure_all(evalsets, records)
        states.mkdir()
        for evalset in _diverging(policy, evalsets):
            batches = plan_batches(evalset, session.resolved.manifest.engine, arm.batches)
            for number, batch in enumerate(batches):
                session.progress(f"{arm.role}: states of {evalset.card.name}", number, len(batches))
                session.survive(lambda running, batch=batch: write_states(running, batch, states))  # type: ignore[misc]
        session.settle()
    finally:
        session.close()
    if arm.late:
        raise BadInput(
            f"max_minutes: {arm.role} of {len(EXECUTIONS)} did not end in the policy's max_minutes"
        )
    return _Executed(arm, records, states)


def _diverging(policy: Policy, evalsets: Sequence[EvalSet]) -> list[EvalSet]:
    names = {n for c in policy.checks if METRICS[c.metric].estimator == "divergence" for n in c.evalset}
    return [s for s in evalsets if s.card.name in names]


def _floors(
    policy: Policy, evalsets: Sequence[EvalSet], executed: Sequence[_Executed]
) -> tuple[list[Floor], dict[str, str]]:
    """The floors that could be measured, and for the other checks: check -> why not."""
    floors: list[Floor] = []
    unmeasured: dict[str, str] = {}
    divergences = _divergences(_diverging(policy, evalsets), executed)
    for check in all_checks(policy):
        estimator = METRICS[check.metric].estimator
        sets = [s for s in evalsets if s.card.name in check.evalset]
        digests = {s.card.name: s.card.digest for s in sets}
        if estimator == "blocks":
            floor: Floor | str = "both arms of a gate are timed in one run"
        elif check.kind == "absolute":
            floor = "an absolute limit compares with no baseline"
        elif estimator == "divergence":
            contrasts = [np.concatenate([by_set[s.card.name] for s in sets]) for by_set in divergences]
            floor = divergence_floor(check, digests, contrasts)
        else:
            floor = difference_floor(
                check, digests, [_contrast(check, policy, sets, a, b) for a, b in combinations(executed, 2)]
            )
        if isinstance(floor, Floor):
            floors.append(floor)
        else:
            unmeasured[check.id] = floor
    return floors, unmeasured


def _contrast(
    check: Check, policy: Policy, sets: Sequence[EvalSet], first: _Executed, second: _Executed
) -> Comparison:
    sample = pair(check.metric, sets, first.records, second.records, where=check.where)
    return compare(check, sample, alpha=policy.error_budget.false_pass)


def _divergences(sets: Sequence[EvalSet], executed: Sequence[_Executed]) -> list[dict[str, Floats]]:
    """Set -> (documents,) divergences, for every pair of executions; a document without one is NaN."""
    divergences: list[dict[str, Floats]] = []
    session, pairs = executed[0].arm.session, list(combinations(executed, 2)) if sets else []
    for number, (first, second) in enumerate(pairs):
        session.progress("comparing executions", number, len(pairs))
        divergences.append({s.card.name: _contrast_kl(session, s, first.states, second.states) for s in sets})
    return divergences


def _contrast_kl(session: EngineSession, evalset: EvalSet, first: Path, second: Path) -> Floats:
    values = []
    for batch in plan_batches(evalset, session.resolved.manifest.engine):
        observations, _ = session.survive(
            lambda arm, batch=batch: compare_states(arm, batch, first, second, 0)  # type: ignore[misc]
        )
        values += [o.outcome.values["kl"] if isinstance(o.outcome, Scored) else np.nan for o in observations]
    return np.array(values)
