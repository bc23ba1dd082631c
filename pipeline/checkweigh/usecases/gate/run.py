"""The main job: two manifests and a policy -> a decision, with everything behind it written down.

1. Everything was read and verified (``inputs``); outputs of an earlier gate in the same place are removed.
2. The ledger says which try of this candidate it is (``attempts``). A verdict that is known already is returned.
3. Measure a slice on both arms, look, stop or grow; time both arms against each other (``looking``).
4. Enter the verdict in the ledger, then write the reports.

A failure of the baseline, the tool or the host is an ERROR, which spends nothing; a candidate whose engine fails
twice where the baseline's did not is blocked as unservable. Bad input that only a running engine shows (a pin that is
not what is served) is raised, and leaves no decision.
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
from checkweigh.errors import BadInput, Broken, EngineError, StoreError
from checkweigh.files import disk_full
from checkweigh.measure import host_facts
from checkweigh.progress import Progress
from checkweigh.records.decision import Decision, Verdict
from checkweigh.report.worst_items import ItemPair
from checkweigh.sources.cache import cache_root
from checkweigh.store import Store
from checkweigh.usecases.gate.arm_measurement import ArmMeasurement
from checkweigh.usecases.gate.compose_decision import compose_decision
from checkweigh.usecases.gate.engine_session import EngineSession
from checkweigh.usecases.gate.inputs import Inputs
from checkweigh.usecases.gate.item_pairs import item_pairs
from checkweigh.usecases.gate.ledger import Try, attempt, taken
from checkweigh.usecases.gate.look_loop import Looking
from checkweigh.usecases.gate.measured import Evidence, nothing
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
    evidence: Evidence
    final: bool
    first: Decision | None = None
    pairs: Sequence[ItemPair] = ()


def gate(
    inputs: Inputs, out: Path, progress: Progress, timeouts: Timeouts | None = None, *, again: bool = False
) -> GateResult:
    """Measure, compare, decide; writes decision.json, report.html, junit.xml and summary.md below ``out``.

    ``again``: as for ``ledger.attempt``. Raises BadInput when ``out`` cannot be written, when ``again`` has nothing to
    repeat, and for what only a running engine shows; StoreError when ``out`` is on a full disk.
    """
    started = host_facts.now()
    _clear(out)
    arms = _arms(inputs, out, progress, timeouts)
    with ExitStack() as stack:
        for arm in arms.values():
            stack.callback(arm.session.close)
        try:
            mine = stack.enter_context(attempt(inputs, progress, again=again))
            result = _stored(inputs, mine) if mine.stored else _decided(inputs, arms, mine, progress, started)
            if result.final and not mine.stored:
                mine.finish(result.decision)
        except (Broken, OSError) as error:
            looking = Looking(inputs, arms, progress)
            judgement = Judgement(Verdict.ERROR, (f"the tool or the host failed: {error}",), ())
            decision = compose_decision(looking, judgement, started, None)
            result = GateResult(decision=decision, evidence=nothing(inputs), final=False)
        records = result.evidence.records
        pairs = item_pairs(inputs.evalsets, records["baseline"], records["candidate"])
        report.write_all(result.decision, pairs, out)
        return replace(result, pairs=pairs)


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


def _stored(inputs: Inputs, mine: Try) -> GateResult:
    """The verdict that the same digests had, with what is still there of its evidence."""
    decision = mine.stored
    assert decision is not None
    label = mine.label(decision.provenance.ended, first=decision.record_digest())
    records, lost = read_measurements(Store(cache_root() / "store"), decision)
    notes = (*decision.notes, f"no longer in the store: {', '.join(lost)}") if lost else decision.notes
    stages = tuple(stage.model_copy(update={"stored": True}) for stage in decision.stages)
    decision = decision.model_copy(update={"attempt": label, "notes": notes, "stages": stages})
    return GateResult(
        decision=decision, evidence=replace(nothing(inputs), records=records), final=True, first=mine.stored
    )


def _decided(
    inputs: Inputs, arms: Mapping[str, ArmMeasurement], mine: Try, progress: Progress, started: str
) -> GateResult:
    """Measure and look, as this try; ERROR and a full clock are nothing that the ledger keeps."""
    inputs = replace(inputs, policy=inputs.policy.model_copy(update={"attempts": mine.entry.of}))
    looking = Looking(
        inputs, arms, progress, tell=mine.look, timing=mine.before.timing if mine.before else None
    )
    if mine.refused:
        judgement = Judgement(Verdict.INCONCLUSIVE, (mine.refused,), ())
        decision = compose_decision(looking, judgement, started, mine)
        return GateResult(decision=decision, evidence=looking.evidence, final=False)
    if mine.entry.number > 1 or mine.earlier:
        progress(f"attempt {mine.entry.number} of {mine.entry.of}; {'; '.join(mine.earlier)}", 0, 0)
    mine.begin()
    final = True
    try:
        _repeat(looking, mine)
        judgement = looking.run()
        late = looking.late or looking.evidence.divergences.late
        final = not late or judgement.verdict is Verdict.BLOCK
    except EngineError as error:
        judgement = _failed(error, arms)
    except (Broken, OSError) as error:
        judgement = Judgement(Verdict.ERROR, (f"the tool or the host failed: {error}",), ())
    decision = compose_decision(looking, judgement, started, mine)
    return GateResult(
        decision=decision, evidence=looking.evidence, final=final and judgement.verdict is not Verdict.ERROR
    )


def _repeat(looking: Looking, mine: Try) -> None:
    """Choose which execution of each arm is measured.

    A candidate that is what it is compared with is executed anew, as a replicate that no gate has read yet. So is an
    endpoint, in every gate: nothing says which weights answered before.
    """
    now, candidate = time.time_ns() // 1_000_000, looking.arms["candidate"]
    for number, arm in enumerate(looking.arms.values()):
        if arm.session.resolved.manifest.engine.endpoint is not None:
            arm.repeat(now + number)
    others = [arm for role, arm in looking.arms.items() if role != "candidate"]
    if candidate.replicate or all(other.session.pins != candidate.session.pins for other in others):
        return
    candidate.repeat(mine.entry.replicate)
    if not candidate.replicate:
        candidate.repeat(taken(mine.path) + 1)
        parts = [part for of in looking.parts.values() for part in of if part.evalset.items]
        candidate.skip_complete_executions(parts)
        mine.replicate(candidate.replicate)


def _failed(error: EngineError, arms: Mapping[str, ArmMeasurement]) -> Judgement:
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
