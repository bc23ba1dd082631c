"""The divergence of a gate's two arms, through the store: measured once for a pair of executions."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from checkweigh.decision.looks import Part, merged
from checkweigh.errors import BadInput, EngineError, PinMismatch
from checkweigh.measure import host_facts
from checkweigh.measure.batching import Batch, plan_batches
from checkweigh.measure.divergence import SCORER, compare_states, write_states
from checkweigh.records.measurement import MeasurementKey, MeasurementSet, Observation, Stage
from checkweigh.usecases.gate.arm import ArmRun, Kept


@dataclass
class Divergences:
    """Set -> record of what was looked at so far, and why a record that is asked for is not there; ``late``: time ran
    out."""

    records: dict[str, MeasurementSet] = field(default_factory=dict)
    why_absent: str = ""
    late: bool = False

    def grown(self, more: Divergences) -> Divergences:
        """With another look's parts; a set is there only when all of its parts are."""
        whole = {
            name: merged([record, more.records[name]])
            for name, record in self.records.items()
            if name in more.records
        }
        return Divergences(
            records=whole, why_absent=self.why_absent or more.why_absent, late=self.late or more.late
        )


def measure_divergences(
    parts: Sequence[Part], runs: Mapping[str, ArmRun], measured: Mapping[str, Mapping[str, MeasurementSet]]
) -> Divergences:
    """The divergence on every part that both arms were measured on (``measured``: role -> set -> this part's record).
    The engines run one after the other.

    What an engine cannot do (a head of an unknown kind) is a reason, not an error; a pin mismatch is one.
    """
    found = Divergences()
    kinds = {run.resolved.manifest.engine.kind for run in runs.values()}
    if len(kinds) > 1:
        found.why_absent = f"it needs one kind of engine in both arms, found {' and '.join(sorted(kinds))}"
        return found
    for part in parts:
        name = part.evalset.card.name
        if name not in measured["baseline"] or name not in measured["candidate"]:
            found.why_absent = "an arm was not measured on it"
            continue
        key = _key(measured["baseline"][name].key, measured["candidate"][name].key)
        try:
            record = _stored_or_measured(part, key, runs)
        except PinMismatch:
            raise
        except BadInput as error:
            found.why_absent = str(error)
            continue
        if record is None:
            found.why_absent, found.late = "max_minutes had passed before", True
        else:
            found.records[name] = record
    for run in runs.values():
        run.close()
    return found


def _key(baseline: MeasurementKey, candidate: MeasurementKey) -> MeasurementKey:
    return candidate.model_copy(update={"scorer": SCORER, "against": baseline.record_digest()})


def _stored_or_measured(part: Part, key: MeasurementKey, runs: Mapping[str, ArmRun]) -> MeasurementSet | None:
    candidate = runs["candidate"]
    name = f"{part.label} KL"
    with candidate.store.measuring(key, waiting=lambda: candidate.wait_for_others(name)):
        if candidate.store.exists(key):
            record = candidate.store.read(key)
            stage = record.stage.model_copy(update={"stored": True, "arm": "both", "name": name})
            candidate.stages.append(stage)
            return record
        return _measure(part, key, runs)


def _measure(part: Part, key: MeasurementKey, runs: Mapping[str, ArmRun]) -> MeasurementSet | None:
    started, store, evalset = host_facts.now(), runs["candidate"].store, part.evalset
    batches = plan_batches(evalset, runs["candidate"].resolved.manifest.engine)
    kept: dict[int, Kept] = {}
    for batch in batches:
        done = store.read_batch(key, batch.index, batch.digest)
        if done is not None:
            kept[batch.index] = done
    missing = [batch for batch in batches if batch.index not in kept]
    with store.exchange_folder(key) as folder:
        folders = {role: folder / role for role in runs}
        if not _pass(runs["baseline"], part, missing, folders, None, key):
            return None
        runs["baseline"].close()
        if not _pass(runs["candidate"], part, missing, folders, kept, key):
            return None
    in_order = [kept[batch.index] for batch in batches]
    observations = tuple(o for part in in_order for o in part[0])
    stage = Stage(
        name=f"{part.label} KL", arm="both", items=len(observations),
        tokens=sum(part[1] for part in in_order), seconds=sum(part[2] for part in in_order),
    )  # fmt: skip
    record = MeasurementSet(
        key=key, set_name=evalset.card.name, planned=len(evalset.items),
        identity=runs["candidate"].identify(),
        stage=stage, provenance=host_facts.provenance(started), observations=observations,
    )  # fmt: skip
    store.write(record)
    runs["candidate"].stages.append(stage)
    return record


def _pass(
    run: ArmRun, part: Part, batches: Sequence[Batch], folders: Mapping[str, Path],
    kept: dict[int, Kept] | None, key: MeasurementKey,
) -> bool:  # fmt: skip
    """One arm over all batches: both write their states, the candidate (``kept``) compares; False when time ran out."""
    label, mine = f"{run.role}: {part.label} KL", folders[run.role]
    mine.mkdir()
    for number, batch in enumerate(batches):
        run.progress(label, number, len(batches))
        if time.monotonic() > run.deadline:
            return False
        before = time.monotonic()
        run.survive(lambda arm, batch=batch: write_states(arm, batch, mine))  # type: ignore[misc]
        if kept is not None:
            observations, tokens = _compare(run, batch, folders["baseline"], mine, key.replicate)
            kept[batch.index] = observations, tokens, time.monotonic() - before
            run.store.write_batch(key, batch.index, batch.digest, kept[batch.index])
    run.progress(label, len(batches), len(batches))
    return True


def _compare(
    run: ArmRun, batch: Batch, theirs: Path, mine: Path, replicate: int
) -> tuple[list[Observation], int]:
    """One batch compared by the candidate's engine. What fails here is our own demand on it, two heads at once, and not
    its service: a reason to have no divergence, never a failure of the candidate."""
    failures = run.failures
    try:
        return run.survive(lambda arm: compare_states(arm, batch, theirs, mine, replicate))
    except EngineError as error:
        run.failures = failures
        raise BadInput(f"the comparison of hidden states failed: {error}") from error
