"""The divergence of a gate's two arms, through the store: measured once for a pair of executions."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from checkweigh.decision.slices import Part, merge_measurements
from checkweigh.errors import BadInput, EngineError, PinMismatch
from checkweigh.measure import host_facts
from checkweigh.measure.batching import Batch, plan_batches
from checkweigh.measure.divergence import SCORER, compare_states, write_states
from checkweigh.records.measurement import MeasurementKey, MeasurementSet, Observation, Stage
from checkweigh.usecases.gate.arms.arm_measurement import ArmMeasurement, MeasuredBatch
from checkweigh.usecases.gate.arms.engine_session import EngineSession


@dataclass
class Divergences:
    """Set -> record of what was looked at so far, and why a record that is asked for is not there; ``late``: time ran
    out."""

    records: dict[str, MeasurementSet] = field(default_factory=dict)
    why_absent: str = ""
    late: bool = False

    def with_look(self, more: Divergences) -> Divergences:
        """With another look's parts; a set is there only when all of its parts are."""
        whole = {
            name: merge_measurements([record, more.records[name]])
            for name, record in self.records.items()
            if name in more.records
        }
        return Divergences(
            records=whole, why_absent=self.why_absent or more.why_absent, late=self.late or more.late
        )


def measure_divergences(
    parts: Sequence[Part],
    arms: Mapping[str, ArmMeasurement],
    measured: Mapping[str, Mapping[str, MeasurementSet]],
) -> Divergences:
    """The divergence on every part that both arms were measured on (``measured``: role -> set -> this part's record).
    The engines run one after the other.

    What an engine cannot do (a head of an unknown kind) is a reason, not an error; a pin mismatch is one.
    """
    divergences = Divergences()
    kinds = {arm.session.resolved.manifest.engine.kind for arm in arms.values()}
    if len(kinds) > 1:
        divergences.why_absent = (
            f"it needs one kind of engine in both arms, found {' and '.join(sorted(kinds))}"
        )
        return divergences
    for part in parts:
        name = part.evalset.card.name
        if name not in measured["baseline"] or name not in measured["candidate"]:
            divergences.why_absent = "an arm was not measured on it"
            continue
        key = _key(measured["baseline"][name].key, measured["candidate"][name].key)
        try:
            record = _stored_or_measured(part, key, arms)
        except PinMismatch:
            raise
        except BadInput as error:
            divergences.why_absent = str(error)
            continue
        if record is None:
            divergences.why_absent, divergences.late = "max_minutes had passed before", True
        else:
            divergences.records[name] = record
    for arm in arms.values():
        arm.session.close()
    return divergences


def _key(baseline: MeasurementKey, candidate: MeasurementKey) -> MeasurementKey:
    return candidate.model_copy(update={"scorer": SCORER, "against": baseline.record_digest()})


def _stored_or_measured(
    part: Part, key: MeasurementKey, arms: Mapping[str, ArmMeasurement]
) -> MeasurementSet | None:
    candidate = arms["candidate"]
    name = f"{part.label} KL"
    with candidate.store.measuring(key, waiting=lambda: candidate.tell_of_waiting(name)):
        if candidate.store.exists(key):
            return candidate.read(key, arm="both", name=name)
        return _measure(part, key, arms)


def _measure(part: Part, key: MeasurementKey, arms: Mapping[str, ArmMeasurement]) -> MeasurementSet | None:
    """The part's divergences, measured now; None when the time ran out, with the batches so far in the store."""
    baseline, candidate = arms["baseline"], arms["candidate"]
    started, store, evalset = host_facts.now(), candidate.store, part.evalset
    batches = plan_batches(evalset, candidate.session.resolved.manifest.engine)
    compared: dict[int, MeasuredBatch] = {}
    for batch in batches:
        stored = candidate.read_batch(key, batch, baseline.session)
        if stored is not None:
            compared[batch.index] = stored
    missing = [batch for batch in batches if batch.index not in compared]
    with store.exchange_folder(key) as folder:
        theirs, ours = folder / "baseline", folder / "candidate"
        if not _write_states(baseline, part, missing, theirs):
            return None
        baseline.session.close()
        comparison = _Comparison(
            key=key, baseline=baseline.session, theirs=theirs, ours=ours, compared=compared
        )
        if not _write_states(candidate, part, missing, ours, comparison):
            return None
    in_order = [compared[batch.index] for batch in batches]
    observations = tuple(o for measured in in_order for o in measured[0])
    stage = Stage(
        name=f"{part.label} KL", arm="both", items=len(observations),
        tokens=sum(measured[1] for measured in in_order), seconds=sum(measured[2] for measured in in_order),
    )  # fmt: skip
    record = MeasurementSet(
        key=key, set_name=evalset.card.name, planned=len(evalset.items), identity=candidate.session.identify(),
        stage=stage, provenance=host_facts.provenance(started),
        verified=candidate.session.verification, observations=observations,
    )  # fmt: skip
    candidate.write(record, baseline.session, stored=not missing)
    return record


@dataclass(frozen=True, slots=True, kw_only=True)
class _Comparison:
    """What the candidate's engine compares: its states (``ours``) with the ``baseline``'s; filled is ``compared``."""

    key: MeasurementKey
    baseline: EngineSession
    theirs: Path
    ours: Path
    compared: dict[int, MeasuredBatch]


def _write_states(
    arm: ArmMeasurement,
    part: Part,
    batches: Sequence[Batch],
    folder: Path,
    comparison: _Comparison | None = None,
) -> bool:
    """One arm's states of all batches, each compared at once where there is a ``comparison``; False: time ran out."""
    session, label = arm.session, f"{arm.role}: {part.label} KL"
    folder.mkdir()
    for number, batch in enumerate(batches):
        session.progress(label, number, len(batches))
        if time.monotonic() > arm.deadline:
            return False
        before = time.monotonic()
        session.survive(lambda running, batch=batch: write_states(running, batch, folder))  # type: ignore[misc]
        if comparison is not None:
            observations, tokens = _compare(arm, batch, comparison)
            compared = observations, tokens, time.monotonic() - before
            comparison.compared[batch.index] = compared
            arm.write_batch(comparison.key, batch, compared, comparison.baseline)
    session.progress(label, len(batches), len(batches))
    return True


def _compare(arm: ArmMeasurement, batch: Batch, comparison: _Comparison) -> tuple[list[Observation], int]:
    """One batch compared by the candidate's engine: observations and tokens.

    What fails here is our own demand on it, two heads at once, and not its service: BadInput, a reason to have no
    divergence, and never a failure of the candidate.
    """
    theirs, ours, replicate = comparison.theirs, comparison.ours, comparison.key.replicate
    try:
        return arm.session.survive_unblamed(lambda run: compare_states(run, batch, theirs, ours, replicate))
    except EngineError as error:
        raise BadInput(f"the comparison of hidden states failed: {error}") from error
