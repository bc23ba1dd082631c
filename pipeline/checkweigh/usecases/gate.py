"""The main job: two manifests and a policy -> a decision, with everything behind it written down.

1. Read and verify: documents, pins, evaluation sets; nothing is computed before all of them hold.
2. Refuse arms that differ where no manifest says so.
3. Measure both arms on every set, through the store; then time them against each other.
4. Pair, compare, decide; write the reports.

A failure of the baseline, the tool or the host is an ERROR; a candidate whose engine fails twice where the
baseline's did not is blocked as unservable.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from checkweigh import report
from checkweigh.compare import compare, compare_blocks
from checkweigh.decide import Judgement, checks_of, decide
from checkweigh.errors import Broken, EngineError, UndeclaredDrift
from checkweigh.files import lock
from checkweigh.measure import host
from checkweigh.measure.timing import run_pairs
from checkweigh.pairing import pair
from checkweigh.records.comparison import Comparison, Inestimable
from checkweigh.records.decision import Arm, Decision, Verdict
from checkweigh.records.evalset import EvalSet, Generation
from checkweigh.records.measurement import MeasurementKey, MeasurementSet, PairedRun
from checkweigh.records.metrics import METRICS
from checkweigh.records.policy import Check, Policy
from checkweigh.sources.cache import cache_root
from checkweigh.sources.diff import changes, comparable, undeclared
from checkweigh.sources.documents import read_policy
from checkweigh.sources.evalsets import find_evalset
from checkweigh.sources.pin import Resolved, verify
from checkweigh.store import Store
from checkweigh.usecases.arms import ArmRun, Progress
from checkweigh.usecases.guarantees import guarantees
from checkweigh.usecases.items import item_pairs

TIMING_WAIT_S = 1800
Records = dict[str, MeasurementSet]


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Everything that was read and verified before the first second of compute."""

    baseline: Resolved
    candidate: Resolved
    policy: Policy
    evalsets: tuple[EvalSet, ...]


def read_inputs(baseline: Path, candidate: Path, policy: Path, progress: Progress) -> Inputs:
    """Steps 1 and 2. Raises BadInput with everything that is wrong."""
    rules = read_policy(policy)
    sets = tuple(find_evalset(name) for name in rules.evalsets())
    _check_kinds(policy, rules, sets)
    inputs = Inputs(
        baseline=verify(baseline, progress), candidate=verify(candidate, progress), policy=rules, evalsets=sets
    )
    drift = undeclared(inputs.baseline.manifest, inputs.baseline.pins, inputs.candidate.manifest, inputs.candidate.pins)
    if drift:
        raise UndeclaredDrift("the arms differ where neither manifest says so:\n" + "\n".join(drift))
    return inputs


def gate(inputs: Inputs, out: Path, progress: Progress) -> Decision:
    """Steps 3 and 4; writes decision.json, report.html, junit.xml and summary.md below ``out``."""
    started = host.now()
    report.clear(out)
    runs = _runs(inputs, out, progress)
    records: dict[str, Records] = {"baseline": {}, "candidate": {}}
    paired: PairedRun | None = None
    with ExitStack() as stack:
        for run in runs.values():
            stack.callback(run.close)
        try:
            for role, run in runs.items():
                _measure(run, inputs.evalsets, records[role])
            paired = _time(inputs, runs, progress)
            judgement = _judge(inputs, records, paired)
        except EngineError as error:
            judgement = _failed(error)
        except Broken as error:
            judgement = Judgement(Verdict.ERROR, (str(error),), ())
    decision = _decision(inputs, runs, records, paired, judgement, started)
    pairs = item_pairs(inputs.evalsets, records["baseline"], records["candidate"])
    report.write_all(decision, pairs, out)
    return decision


def _check_kinds(path: Path, policy: Policy, sets: Sequence[EvalSet]) -> None:
    """A check may only name sets that measure its metric, and strata that exist."""
    from checkweigh.errors import BadDocument, Problem

    by_name = {s.card.name: s.card for s in sets}
    prompts = any(card.kind == "generation" for card in by_name.values())
    problems = []
    for i, check in enumerate(policy.checks):
        if METRICS[check.metric].estimator == "blocks" and not prompts:
            found = ", ".join(by_name) or "no set at all"
            problems.append((f"checks[{i}].metric", "some check on a generation set, whose prompts are timed", found))
        for name in check.evalset:
            card = by_name[name]
            if card.kind not in METRICS[check.metric].kinds:
                kinds = " or ".join(METRICS[check.metric].kinds)
                problems.append((f"checks[{i}].evalset", f"a set of kind {kinds} for {check.metric}", f"{name} ({card.kind})"))
            stratum = check.where.get("stratum")
            if stratum is not None and stratum not in card.strata:
                problems.append((f"checks[{i}].where.stratum", f"one of {', '.join(card.strata)}", stratum))
    if problems:
        raise BadDocument([Problem(file=str(path), line=None, path=p, expected=e, found=f) for p, e, f in problems])


def _runs(inputs: Inputs, out: Path, progress: Progress) -> dict[str, ArmRun]:
    store = Store(cache_root() / "store")
    deadline = time.monotonic() + 60 * inputs.policy.max_minutes
    runs = {
        role: ArmRun(
            role=role, resolved=resolved, store=store, logs=out / "logs", progress=progress, deadline=deadline
        )
        for role, resolved in (("baseline", inputs.baseline), ("candidate", inputs.candidate))
    }
    if runs["baseline"].pins == runs["candidate"].pins:
        runs["candidate"].replicate = 1
    return runs


def _measure(run: ArmRun, evalsets: Sequence[EvalSet], records: Records) -> None:
    if run.replicate:
        identity = run.survive(lambda arm: arm.engine.identity).record_digest()
        while all(run.store.exists(run.key(evalset, identity)) for evalset in evalsets):
            run.replicate += 1
    for evalset in evalsets:
        record = run.measure(evalset)
        if record is not None:
            records[evalset.card.name] = record


def _time(inputs: Inputs, runs: Mapping[str, ArmRun], progress: Progress) -> PairedRun | None:
    """Interleaved timing of both arms, when a check asks for it and there are prompts to time."""
    wanted = any(METRICS[check.metric].estimator == "blocks" for check in inputs.policy.checks)
    conversations = [
        item.messages for evalset in inputs.evalsets for item in evalset.items if isinstance(item, Generation)
    ]
    if not wanted or not conversations:
        return None
    with lock(cache_root() / "timing.lock", timeout_s=TIMING_WAIT_S, what="is timing on this host"):
        while True:
            arms = {role: run.survive(lambda arm: arm) for role, run in runs.items()}
            try:
                return run_pairs(
                    arms, conversations, inputs.policy.timing, inputs.policy.seed,
                    lambda done, total: progress("timing, both arms", done, total),
                )  # fmt: skip
            except EngineError as error:
                failed = runs[error.arm or "baseline"]
                failed.close()
                failed.failures += 1
                if failed.failures >= 2:
                    raise


def _judge(inputs: Inputs, records: Mapping[str, Records], paired: PairedRun | None) -> Judgement:
    comparisons = {check.id: _compare(check, inputs, records, paired) for check in checks_of(inputs.policy)}
    return decide(inputs.policy, comparisons, inputs.candidate.manifest.intends)


def _compare(
    check: Check, inputs: Inputs, records: Mapping[str, Records], paired: PairedRun | None
) -> Comparison:
    alpha = inputs.policy.error_budget.false_pass
    arms = inputs.baseline, inputs.candidate
    valid = comparable(arms[0].pins, arms[1].pins)[check.metric]
    if valid != "yes":
        return Inestimable(reason=valid)
    if METRICS[check.metric].estimator == "blocks":
        return compare_blocks(check, paired, alpha=alpha)
    sets = [evalset for evalset in inputs.evalsets if evalset.card.name in check.evalset]
    sample = pair(check.metric, sets, records["baseline"], records["candidate"], where=check.where)
    return compare(check, sample, alpha=alpha)


def _failed(error: EngineError) -> Judgement:
    """ERROR, except for a candidate that failed twice although it fits and the baseline did not."""
    from checkweigh.errors import EngineOutOfMemory

    tail = f"\n{error.log_tail}" if error.log_tail else ""
    if error.arm == "candidate" and not isinstance(error, EngineOutOfMemory):
        return Judgement(Verdict.BLOCK, (f"candidate_unservable: its engine failed twice: {error}{tail}",), ())
    return Judgement(Verdict.ERROR, (f"{error.arm or 'the'} engine failed: {error}{tail}",), ())


def _decision(
    inputs: Inputs, runs: Mapping[str, ArmRun], records: Mapping[str, Records], paired: PairedRun | None,
    judgement: Judgement, started: str,
) -> Decision:  # fmt: skip
    arms = {role: _arm(run, records[role]) for role, run in runs.items()}
    manifests = inputs.baseline.manifest, inputs.candidate.manifest
    return Decision(
        verdict=judgement.verdict, reasons=judgement.reasons, checks=judgement.results,
        baseline=arms["baseline"], candidate=arms["candidate"], changes=changes(*manifests),
        intends=manifests[1].intends, policy=inputs.policy.record_digest(), policy_name=inputs.policy.name,
        on_inconclusive=inputs.policy.on_inconclusive,
        evalsets={s.card.name: s.card.digest for s in inputs.evalsets},
        guarantees=guarantees(inputs.policy), timing=paired,
        stages=tuple(stage for run in runs.values() for stage in run.stages), provenance=host.provenance(started),
    )  # fmt: skip


def _arm(run: ArmRun, records: Records) -> Arm:
    keys: dict[str, MeasurementKey] = {name: record.key for name, record in records.items()}
    return Arm(
        name=run.resolved.manifest.name, manifest=run.resolved.pins.manifest, pins=run.pins,
        measurements={name: key.record_digest() for name, key in keys.items()},
        identity=next((key.identity for key in keys.values()), None),
        replicate=run.replicate, unsafe=run.resolved.manifest.unsafe,
    )  # fmt: skip
