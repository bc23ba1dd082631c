"""The main job: two manifests and a policy -> a decision, with everything behind it written down.

1. Everything was read and verified (``inputs``); outputs of an earlier gate in the same place are removed.
2. The ledger says which attempt of this candidate it is (``ledger``). A verdict that is known already is returned.
3. Measure a slice on both arms, look, stop or grow; time both arms against each other (``look_loop``).
4. Enter the verdict in the ledger, then write the reports.

A failure of the baseline, the tool or the host is an ERROR, which spends nothing; a candidate whose engine fails
twice where the baseline's did not is blocked as unservable. Bad input that only a running engine shows (a pin that is
not what is served, a file that changes meanwhile) is raised, and leaves no decision.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from checkweigh import report
from checkweigh.decision.verdict import Judgement
from checkweigh.engines.spec import Timeouts
from checkweigh.errors import BadInput, Broken, EngineError, PinMismatch, StoreError
from checkweigh.files import disk_full
from checkweigh.measure import host_facts
from checkweigh.progress import Progress
from checkweigh.records.decision import Decision, Verdict
from checkweigh.report.worst_items import ItemPair
from checkweigh.sources.cache import cache_root
from checkweigh.store import Store
from checkweigh.usecases.gate.arms.arm_measurement import ArmMeasurement
from checkweigh.usecases.gate.arms.engine_session import EngineSession
from checkweigh.usecases.gate.arms.item_pairs import item_pairs
from checkweigh.usecases.gate.compose_decision import compose_decision
from checkweigh.usecases.gate.inputs import Inputs
from checkweigh.usecases.gate.ledger import LedgerAttempt, highest_replicate, hold_attempt
from checkweigh.usecases.gate.look_loop import LookLoop
from checkweigh.usecases.gate.measured import Measured
from checkweigh.usecases.read_decision import read_measurements

OUTPUTS = (  # decision.json is the report package's to remove
    "attestation.json", "waiver.json", "weights.sig", "junit.xml", "summary.md", "report.html",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class GateResult:
    """What a gate came to: the decision, what it rests on, and whether the ledger is to keep it.

    ``first``: the decision as it was when it was reached, where this one repeats it. ``pairs``: items of both arms side
    by side, as the reports show them.
    """

    decision: Decision
    measured: Measured
    final: bool
    first: Decision | None = None
    pairs: Sequence[ItemPair] = ()


def gate(
    inputs: Inputs, out: Path, progress: Progress, timeouts: Timeouts | None = None, *, again: bool = False
) -> GateResult:
    """Measure, compare, decide; writes decision.json, report.html, junit.xml and summary.md below ``out``.

    ``again``: as for ``ledger.hold_attempt``. Raises BadInput when ``out`` cannot be written, when ``again``
    has nothing to repeat, and for what only a running engine shows; StoreError when ``out`` is on a full disk.
    """
    started = host_facts.now()
    _require_outside(out, inputs)
    _clear(out)
    arms = _arms(inputs, out, progress, timeouts)
    with ExitStack() as stack:
        for arm in arms.values():
            stack.callback(arm.session.close)
        try:
            attempt = stack.enter_context(hold_attempt(inputs, progress, again=again))
            if attempt.stored is not None:
                result = _repeat_verdict(inputs, attempt, attempt.stored)
            else:
                result = _decide(inputs, arms, attempt, progress, started)
                if result.final:
                    attempt.finish(result.decision)
        except (Broken, OSError) as error:
            loop = LookLoop(inputs, arms, progress)
            decision = compose_decision(loop, _broken(error), started, None)
            result = GateResult(decision=decision, measured=Measured.empty(inputs), final=False)
        records = result.measured.records
        pairs = item_pairs(inputs.evalsets, records["baseline"], records["candidate"])
        report.write_all(result.decision, pairs, out)
        return replace(result, pairs=pairs)


def _require_outside(out: Path, inputs: Inputs) -> None:
    """BadInput for reports in a folder whose every file is pinned: the gate would change what it measures."""
    arms = [arm for arm in (inputs.baseline, inputs.candidate, inputs.anchor) if arm is not None]
    for arm in arms:
        for folder in (arm.model_dir, arm.tokenizer_dir, arm.draft_dir):
            if folder is not None and out.resolve().is_relative_to(folder.resolve()):
                raise BadInput(
                    f"--out {out}: expected a place outside {folder}, whose every file {arm.path} pins"
                )


def _clear(out: Path) -> None:
    """From here on nothing in ``out`` is an earlier gate's: a job that publishes reports finds this one's or none."""
    try:
        report.clear(out)
        for name in OUTPUTS:
            (out / name).unlink(missing_ok=True)
    except OSError as error:
        if disk_full(error):
            raise StoreError(f"--out {out}: cannot be written ({error.strerror})") from error
        raise BadInput(f"--out {out}: expected a directory that can be written ({error.strerror})") from error


def _arms(
    inputs: Inputs, out: Path, progress: Progress, timeouts: Timeouts | None
) -> dict[str, ArmMeasurement]:
    store = Store(cache_root() / "store")
    deadline = time.monotonic() + 60 * inputs.policy.max_minutes
    resolved = {"baseline": inputs.baseline, "anchor": inputs.anchor, "candidate": inputs.candidate}
    sessions = [
        EngineSession(role=role, resolved=arm, logs=out / "logs", progress=progress, timeouts=timeouts)
        for role, arm in resolved.items()
        if arm is not None
    ]
    return {
        session.role: ArmMeasurement(session=session, store=store, deadline=deadline) for session in sessions
    }


def _repeat_verdict(inputs: Inputs, attempt: LedgerAttempt, first: Decision) -> GateResult:
    """The verdict that the same digests had, with those of its measurements that are still stored, and under which
    names it was asked for now."""
    label = attempt.label(first.provenance.ended, first=first.record_digest())
    label = label.model_copy(update={"now": inputs.names})
    records, lost = read_measurements(Store(cache_root() / "store"), first)
    notes = (*first.notes, f"no longer in the store: {', '.join(lost)}") if lost else first.notes
    stages = tuple(stage.model_copy(update={"stored": True}) for stage in first.stages)
    decision = first.model_copy(update={"attempt": label, "notes": notes, "stages": stages})
    measured = replace(Measured.empty(inputs), records=records)
    return GateResult(decision=decision, measured=measured, final=True, first=first)


def _decide(
    inputs: Inputs,
    arms: Mapping[str, ArmMeasurement],
    attempt: LedgerAttempt,
    progress: Progress,
    started: str,
) -> GateResult:
    """Measure and look, as this attempt; the ledger keeps no ERROR, and no verdict that the clock cut short."""
    inputs = replace(inputs, policy=inputs.policy.model_copy(update={"attempts": attempt.entry.of}))
    timing = attempt.before.timing if attempt.before else None
    loop = LookLoop(inputs, arms, progress, tell=attempt.enter_look, timing=timing)
    if attempt.refused:
        judgement = Judgement(Verdict.INCONCLUSIVE, (attempt.refused,), ())
        decision = compose_decision(loop, judgement, started, attempt)
        return GateResult(decision=decision, measured=loop.measured, final=False)
    if attempt.entry.number > 1 or attempt.earlier:
        progress(f"attempt {attempt.entry.number} of {attempt.entry.of}; {'; '.join(attempt.earlier)}", 0, 0)
    attempt.begin()
    final = True
    try:
        _choose_executions(loop, attempt)
        judgement = loop.run()
        late = loop.late or loop.measured.divergences.late
        final = not late or judgement.verdict is Verdict.BLOCK
    except EngineError as error:
        judgement = _engine_failed(error, arms)
    except (Broken, OSError) as error:
        judgement = _broken(error)
    except BadInput as error:
        raise _with_changed_files(error, loop) from None
    loop.settle()  # a model that was exchanged is no engine that failed
    decision = compose_decision(loop, judgement, started, attempt)
    final = final and judgement.verdict is not Verdict.ERROR
    return GateResult(decision=decision, measured=loop.measured, final=final)


def _with_changed_files(error: BadInput, loop: LookLoop) -> BadInput:
    """The error, with every file that changed on any arm; what was measured on arms whose files did not is kept."""
    try:
        loop.settle()
    except PinMismatch as more:
        others = error.problems if isinstance(error, PinMismatch) else []
        return PinMismatch(list(dict.fromkeys([*others, *more.problems])))
    return error


def _choose_executions(loop: LookLoop, attempt: LedgerAttempt) -> None:
    """Choose which execution of each arm is measured.

    A candidate that is what it is compared with is executed anew, as a replicate that no gate has read yet. So is an
    endpoint, in every gate: nothing says which weights answered before.
    """
    now, candidate = time.time_ns() // 1_000_000, loop.arms["candidate"]
    for number, arm in enumerate(loop.arms.values()):
        if arm.session.resolved.manifest.engine.endpoint is not None:
            arm.repeat(now + number)
    others = [arm for role, arm in loop.arms.items() if role != "candidate"]
    if candidate.replicate or all(other.session.pins != candidate.session.pins for other in others):
        return
    candidate.repeat(attempt.entry.replicate)
    if not candidate.replicate:
        candidate.repeat(highest_replicate(attempt.path) + 1)
        parts = [part for of_set in loop.parts.values() for part in of_set if part.evalset.items]
        candidate.skip_complete_executions(parts)
        attempt.enter_replicate(candidate.replicate)


def _broken(error: Exception) -> Judgement:
    return Judgement(Verdict.ERROR, (f"the tool or the host failed: {error}",), ())


def _engine_failed(error: EngineError, arms: Mapping[str, ArmMeasurement]) -> Judgement:
    """ERROR, except for a candidate that failed twice although it was loaded and the baseline did not fail."""
    tail = f"\n{error.log_tail}" if error.log_tail else ""
    baseline, candidate = arms["baseline"].session, arms["candidate"].session
    if error.arm == "candidate" and not candidate.unfit and not baseline.failures:
        return Judgement(
            Verdict.BLOCK, (f"candidate_unservable: its engine failed twice: {error}{tail}",), ()
        )
    who = f"the {error.arm}'s engine" if error.arm else "an engine"
    what = "does not fit into this host's memory" if error.arm and arms[error.arm].session.unfit else "failed"
    return Judgement(Verdict.ERROR, (f"{who} {what}: {error}{tail}",), ())
