"""The main job: two manifests and a policy -> a decision, with everything behind it written down.

1. Everything was read and verified (``inputs``); outputs of an earlier gate in the same place are removed.
2. Measure both arms on every set, through the store; then time them against each other.
3. Pair, compare, decide; write the reports.

A failure of the baseline, the tool or the host is an ERROR; a candidate whose engine fails twice where the
baseline's did not is blocked as unservable. Bad input that only a running engine shows (a pin that is not what
is served) is raised, and leaves no decision.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path

from checkweigh import report
from checkweigh.compare import compare, compare_blocks
from checkweigh.decide import Judgement, checks_of, decide
from checkweigh.divergence import compare_divergence, summary
from checkweigh.engines.spec import Timeouts
from checkweigh.errors import BadInput, Broken, EngineError, StoreError
from checkweigh.files import full
from checkweigh.measure import host
from checkweigh.measure.pairs import ARMS
from checkweigh.noise import floor_of
from checkweigh.pairing import pair
from checkweigh.records.calibration import Floor
from checkweigh.records.comparison import Comparison, Inestimable
from checkweigh.records.decision import Arm, Decision, DivergenceSummary, Verdict
from checkweigh.records.evalset import EvalSet, Generation, Message
from checkweigh.records.measurement import MeasurementKey, MeasurementSet, PairedRun, Scored
from checkweigh.records.metrics import METRICS
from checkweigh.records.policy import Check, Policy
from checkweigh.sinks.content import ArmEvidence, Finished
from checkweigh.sources.cache import cache_root
from checkweigh.sources.diff import changes, comparable
from checkweigh.store import Store
from checkweigh.usecases.arms import ArmRun, Progress
from checkweigh.usecases.divergence import Divergences, measure_divergences
from checkweigh.usecases.guarantees import guarantees
from checkweigh.usecases.inputs import Inputs, read_inputs
from checkweigh.usecases.items import item_pairs
from checkweigh.usecases.served import served, swapping
from checkweigh.usecases.speculation import acceptance, forks
from checkweigh.usecases.timing import Prompts, time_arms
from checkweigh.usecases.units import units

__all__ = ["Inputs", "gate", "read_inputs"]

OUTPUTS = (  # decision.json is the report package's to remove
    "attestation.json", "waiver.json", "weights.sig", "junit.xml", "summary.md", "report.html",
)  # fmt: skip
Records = dict[str, MeasurementSet]


def _nobody(found: Finished) -> None:
    """Nobody else is told."""


def gate(
    inputs: Inputs,
    out: Path,
    progress: Progress,
    timeouts: Timeouts | None = None,
    tell: Callable[[Finished], None] = _nobody,
) -> Decision:
    """Measure, compare, decide; writes decision.json, report.html, junit.xml and summary.md below ``out``.

    ``tell`` hears of the finished gate when all of that is written.
    """
    started = host.now()
    _clear(out)
    runs = _runs(inputs, out, progress, timeouts)
    records: dict[str, Records] = {"baseline": {}, "candidate": {}, "anchor": {}}
    paired: PairedRun | None = None
    divergences = Divergences()
    with ExitStack() as stack:
        for run in runs.values():
            stack.callback(run.close)
        try:
            for role, run in runs.items():
                run.measure_all(_asked(inputs, role), records[role])
                run.close()
            divergences = _diverge(inputs, runs, records)
            paired = _time(inputs, runs, records, progress)
            judgement = _judge(inputs, runs, records, divergences, paired)
        except EngineError as error:
            judgement = _failed(error, runs)
        except (Broken, OSError) as error:
            judgement = Judgement(Verdict.ERROR, (f"the tool or the host failed: {error}",), ())
    decision = _decision(inputs, runs, records, divergences, paired, judgement, started)
    pairs = item_pairs(inputs.evalsets, records["baseline"], records["candidate"])
    report.write_all(decision, pairs, out)
    arms = {
        str(role): ArmEvidence(
            manifest=runs[role].resolved.manifest, pins=runs[role].resolved.pins, records=records[role]
        )
        for role in ARMS
    }
    tell(Finished(decision=decision, arms=arms, evalsets=inputs.evalsets, pairs=pairs))
    return decision


def _clear(out: Path) -> None:
    """From here on nothing in ``out`` is an earlier gate's: a job that publishes reports finds this one's or none."""
    try:
        report.clear(out)
        for name in OUTPUTS:
            (out / name).unlink(missing_ok=True)
    except OSError as error:
        if full(error):
            raise StoreError(f"--out {out}: cannot be written ({error.strerror})") from error
        raise BadInput(f"--out {out}: expected a directory that can be written ({error.strerror})") from error


def _runs(inputs: Inputs, out: Path, progress: Progress, timeouts: Timeouts | None) -> dict[str, ArmRun]:
    store = Store(cache_root() / "store")
    deadline = time.monotonic() + 60 * inputs.policy.max_minutes
    runs = {
        role: ArmRun(
            role=role, resolved=resolved, store=store, logs=out / "logs", progress=progress,
            deadline=deadline, timeouts=timeouts,
        )
        for role, resolved in (
            ("baseline", inputs.baseline), ("anchor", inputs.anchor), ("candidate", inputs.candidate),
        )
        if resolved is not None
    }  # fmt: skip
    if any(run.pins == runs["candidate"].pins for role, run in runs.items() if role != "candidate"):
        runs["candidate"].replicate = 1
    return runs


def _asked(inputs: Inputs, role: str) -> tuple[EvalSet, ...]:
    """The sets to measure an arm on; of the anchor only those that a check against it uses."""
    names = {n for c in inputs.policy.checks if c.against == "anchor" for n in c.evalset}
    return tuple(s for s in inputs.evalsets if role != "anchor" or s.card.name in names)


def _prompts(inputs: Inputs, records: Mapping[str, Records]) -> list[tuple[Message, ...]]:
    """Conversations to time: those that both arms answered. One that fails is a failed item, not a slow one."""
    answered = {
        role: {
            (name, o.item)
            for name, r in sets.items()
            for o in r.observations
            if isinstance(o.outcome, Scored)
        }
        for role, sets in records.items()
        if role != "anchor"
    }
    return [
        item.messages
        for evalset in inputs.evalsets
        for item in evalset.items
        if isinstance(item, Generation)
        and all((evalset.card.name, item.id) in found for found in answered.values())
    ]


def _time(
    inputs: Inputs, runs: Mapping[str, ArmRun], records: Mapping[str, Records], progress: Progress
) -> PairedRun | None:
    """Interleaved timing of both arms, when a check asks for it, time is left and there are prompts to time.

    Both engines start anew: what an arm measured before, or did not because it was stored, shows in the memory of
    its process.
    """
    wanted = any(METRICS[check.metric].estimator == "blocks" for check in inputs.policy.checks)
    conversations = _prompts(inputs, records) if wanted else []
    if not conversations or any(run.late for run in runs.values()):
        return None
    return time_arms(
        inputs.policy,
        runs,
        Prompts(conversations=conversations, rows=inputs.trace, sweep=inputs.sweep),
        progress,
    )


def _diverge(inputs: Inputs, runs: Mapping[str, ArmRun], records: Mapping[str, Records]) -> Divergences:
    """The divergences that checks ask for, where the two arms can be compared so."""
    wanted = {
        name
        for check in inputs.policy.checks
        if METRICS[check.metric].estimator == "divergence"
        for name in check.evalset
    }
    if comparable(inputs.baseline.pins, inputs.candidate.pins)["kl"] != "yes" or not wanted:
        return Divergences()
    return measure_divergences([s for s in inputs.evalsets if s.card.name in wanted], runs, records)


def _judge(
    inputs: Inputs,
    runs: Mapping[str, ArmRun],
    records: Mapping[str, Records],
    divergences: Divergences,
    paired: PairedRun | None,
) -> Judgement:
    comparisons = {
        check.id: _compare(check, inputs, runs, records, divergences, paired)
        for check in checks_of(inputs.policy)
    }
    return decide(_effective(inputs, records), comparisons, inputs.candidate.manifest.intends)


def _floor(check: Check, inputs: Inputs, records: Mapping[str, Records]) -> Floor | None:
    """The check's noise floor, measured with the very engine that measured the baseline here."""
    identities = {record.key.identity for record in records["baseline"].values()}
    return floor_of(check, inputs.evalsets, [c for c in inputs.calibrations if {c.identity} == identities])


def _unfounded(inputs: Inputs, records: Mapping[str, Records]) -> list[str]:
    """Divergence checks that would gate and have no noise floor here."""
    return [
        check.id
        for check in inputs.policy.checks
        if METRICS[check.metric].estimator == "divergence"
        and check.tier != "advisory"
        and _floor(check, inputs, records) is None
    ]


def _effective(inputs: Inputs, records: Mapping[str, Records]) -> Policy:
    """The policy, with divergence checks that have no noise floor here informing only (STATISTICS, verdict rule)."""
    unfounded = _unfounded(inputs, records)
    checks = tuple(
        check.model_copy(update={"tier": "advisory"}) if check.id in unfounded else check
        for check in inputs.policy.checks
    )
    return inputs.policy.model_copy(update={"checks": checks})


def _compare(
    check: Check,
    inputs: Inputs,
    runs: Mapping[str, ArmRun],
    records: Mapping[str, Records],
    divergences: Divergences,
    paired: PairedRun | None,
) -> Comparison:
    alpha = inputs.policy.error_budget.false_pass
    other = inputs.anchor if check.against == "anchor" else inputs.baseline
    assert other is not None
    valid = comparable(other.pins, inputs.candidate.pins)[check.metric]
    if valid != "yes":
        return Inestimable(reason=valid)
    timed = METRICS[check.metric].estimator == "blocks"
    absent = _absent(check, runs, records)
    if absent or (timed and paired is None and any(run.late for run in runs.values())):
        limit = f"max_minutes ({inputs.policy.max_minutes:g}) had passed before"
        return Inestimable(reason=f"{limit} {absent or 'both arms could be timed'}")
    if timed:
        found = compare_blocks(check, paired, alpha=alpha)
        if isinstance(found, Inestimable) and paired is not None and paired.notes:
            return found.model_copy(update={"reason": "; ".join((found.reason, *paired.notes))})
        return found
    sets = [evalset for evalset in inputs.evalsets if evalset.card.name in check.evalset]
    if METRICS[check.metric].estimator == "divergence":
        return compare_divergence(
            check, sets, divergences.records, divergences.why_absent,
            floor=_floor(check, inputs, records), alpha=alpha,
        )  # fmt: skip
    sample = pair(check.metric, sets, records[check.against], records["candidate"], where=check.where)
    return compare(check, sample, alpha=alpha)


def _absent(check: Check, runs: Mapping[str, ArmRun], records: Mapping[str, Records]) -> str:
    """What the check needs and an arm had no time left to measure, in words; empty when all of it is there."""
    missing = [
        f"{name} on the {role}"
        for role, run in runs.items()
        for name in check.evalset
        if role in (check.against, "candidate") and run.late and name not in records[role]
    ]
    return f"{' and '.join(missing)} was measured" if missing else ""


def _failed(error: EngineError, runs: Mapping[str, ArmRun]) -> Judgement:
    """ERROR, except for a candidate that failed twice although it was loaded and the baseline did not fail."""
    tail = f"\n{error.log_tail}" if error.log_tail else ""
    if error.arm == "candidate" and not runs["candidate"].unfit and not runs["baseline"].failures:
        return Judgement(
            Verdict.BLOCK, (f"candidate_unservable: its engine failed twice: {error}{tail}",), ()
        )
    who = f"the {error.arm}'s engine" if error.arm else "an engine"
    what = "does not fit into this host's memory" if error.arm and runs[error.arm].unfit else "failed"
    return Judgement(Verdict.ERROR, (f"{who} {what}: {error}{tail}",), ())


def _decision(
    inputs: Inputs, runs: Mapping[str, ArmRun], records: Mapping[str, Records], divergences: Divergences,
    paired: PairedRun | None, judgement: Judgement, started: str,
) -> Decision:  # fmt: skip
    arms = {role: _arm(run, records[role]) for role, run in runs.items()}
    manifests = inputs.baseline.manifest, inputs.candidate.manifest
    return Decision(
        verdict=judgement.verdict, reasons=judgement.reasons, checks=judgement.results,
        baseline=arms["baseline"], candidate=arms["candidate"], anchor=arms.get("anchor"), changes=changes(*manifests),
        intends=manifests[1].intends, policy=inputs.policy.record_digest(), policy_name=inputs.policy.name,
        on_inconclusive=inputs.policy.on_inconclusive,
        evalsets={s.card.name: s.card.digest for s in inputs.evalsets},
        guarantees=guarantees(inputs.policy, inputs.candidate.manifest.intends), timing=paired,
        divergence=_summaries(inputs, divergences),
        notes=inputs.notes
        + tuple(
            f"{name} informs only: no noise floor of {inputs.baseline.manifest.name} is known on this host for it; "
            "checkweigh calibrate measures one"
            for name in _unfounded(inputs, records)
        )
        + forks(*manifests)
        + units(inputs.policy, inputs.baseline.pins, inputs.candidate.pins)
        + tuple(
            note
            for role, run in runs.items()
            for note in acceptance(run.resolved.manifest, records[role])
            + served(role, run.resolved.manifest, records[role], run.counted)
            + swapping(role, run.swapped)
        ),
        stages=tuple(stage for run in runs.values() for stage in run.stages), provenance=host.provenance(started),
    )  # fmt: skip


def _summaries(inputs: Inputs, divergences: Divergences) -> tuple[DivergenceSummary, ...]:
    found = (
        summary(s, divergences.records[s.card.name])
        for s in inputs.evalsets
        if s.card.name in divergences.records
    )
    return tuple(one for one in found if one is not None)


def _arm(run: ArmRun, records: Records) -> Arm:
    keys: dict[str, MeasurementKey] = {name: record.key for name, record in records.items()}
    return Arm(
        name=run.resolved.manifest.name, manifest=run.resolved.pins.manifest, pins=run.pins,
        measurements={name: key.record_digest() for name, key in keys.items()},
        identity=next((key.identity for key in keys.values()), None),
        replicate=run.replicate, unsafe=run.resolved.manifest.unsafe,
    )  # fmt: skip
