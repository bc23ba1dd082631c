"""One arm measured through the store: part by part, batch by batch, until the time is over."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

from checkweigh import canonical
from checkweigh.decision.slices import Part
from checkweigh.errors import HostBusy
from checkweigh.measure import host_facts
from checkweigh.measure.batching import Batch, plan_batches
from checkweigh.measure.quality import run_batch
from checkweigh.measure.served_arm import ServedArm
from checkweigh.records.evalset import EvalSet
from checkweigh.records.measurement import MeasurementKey, MeasurementSet, Observation, Stage
from checkweigh.scorers.score_items import ScoreItem, item_scorer
from checkweigh.store import Store
from checkweigh.usecases.gate.arms.engine_session import EngineSession, Provisional, hold

MeasuredBatch = tuple[list[Observation], int, float]  # a batch's observations, tokens and seconds
LOCK_WAIT_S = 5.0  # for a measurement's lock when no time is left: a stored record can still be read


@dataclass(kw_only=True)
class ArmMeasurement:
    """What one arm was measured on so far, and the engine session that measures it.

    ``deadline``: monotonic seconds. ``batches``: seed of the batch plan. ``replicate``: which execution this is, 0 the
    first. ``late``: the deadline passed before everything that was asked was measured. ``stages``: one for each record
    that was read or measured.
    """

    session: EngineSession
    store: Store
    deadline: float
    batches: int = 0
    replicate: int = field(default=0, init=False)
    late: bool = field(default=False, init=False)
    stages: list[Stage] = field(default_factory=list, init=False)

    @property
    def role(self) -> str:
        """Which arm of the gate it is."""
        return self.session.role

    def repeat(self, replicate: int) -> None:
        """Measure as execution ``replicate`` from now on; nothing that another execution measured is read for it."""
        self.replicate = replicate

    def skip_complete_executions(self, parts: Sequence[Part]) -> None:
        """Raise the replicate to the first that is not complete yet; an interrupted execution goes on.

        Replicate 0 stays: it is no repetition.
        """
        if self.replicate:
            identity = self.session.identify().record_digest()
            while all(self.store.exists(self.key(part, identity)) for part in parts):
                self.replicate += 1

    def measure_all(self, evalsets: Sequence[EvalSet], records: dict[str, MeasurementSet]) -> None:
        """Fill ``records`` (set -> record) with whole sets until the time runs out."""
        for evalset in evalsets:
            record = self.measure(Part(evalset=evalset, look=1, of=1))
            if record is not None:
                records[evalset.card.name] = record

    def measure(self, part: Part) -> MeasurementSet | None:
        """The part's record, from the store or measured now; None when the time ran out (``late``).

        Raises HostBusy when another gate measures the same for longer than there is time, EngineError as
        ``EngineSession.survive`` does, and PinMismatch for an engine that is not what is pinned.
        """
        key = self.key(part, self.session.identify().record_digest())
        try:
            with self.store.measuring(
                key, wait_s=max(LOCK_WAIT_S, self.deadline - time.monotonic()),
                waiting=lambda: self.tell_of_waiting(part.label),
            ):  # fmt: skip
                record = self._read_part(part, key) if self.store.exists(key) else self._measure(part, key)
        except HostBusy:
            if time.monotonic() < self.deadline:
                raise
            record = None
        self.late = self.late or record is None
        return record

    def key(self, part: Part, identity: str) -> MeasurementKey:
        """Where the part's record of this arm lives in the store."""
        card = part.evalset.card
        return MeasurementKey(
            pins=self.session.pins, identity=identity, evalset=card.digest, scorer=card.scorer,
            hardware=host_facts.hardware(), replicate=self.replicate, batches=part.batches or self.batches,
        )  # fmt: skip

    def tell_of_waiting(self, name: str) -> None:
        """Say that another gate is measuring the very same."""
        self.session.progress(
            f"{self.role}: {name}: another checkweigh is measuring the same; waiting for it", 0, 0
        )

    def read(self, key: MeasurementKey, *, arm: str, name: str) -> MeasurementSet:
        """A stored record, and a stage of this name that says so. Raises StoreError for a damaged one."""
        record = self.store.read(key)
        self.stages.append(record.stage.model_copy(update={"stored": True, "arm": arm, "name": name}))
        return record

    def write(self, record: MeasurementSet, *others: EngineSession, stored: bool = False) -> None:
        """Store a record that was measured now, once the files of this arm and of ``others`` were read again.

        ``stored``: all of its batches were in the store.
        """

        def keep() -> None:
            self.store.write(record.model_copy(update={"verified": self.session.verification}))

        hold(Provisional(keep=keep), self.session, *others)
        self.stages.append(record.stage.model_copy(update={"stored": stored}))

    def read_batch(self, key: MeasurementKey, batch: Batch, *others: EngineSession) -> MeasuredBatch | None:
        """A batch that an interrupted gate measured with the very files of this arm and of ``others``; else None."""
        witness = self._witness(others)
        measured = self.store.read_batch(key, batch.index, batch.digest, witness)
        if measured is not None:
            self._hold_batch(key, batch, witness, others)
        return measured

    def write_batch(
        self, key: MeasurementKey, batch: Batch, measured: MeasuredBatch, *others: EngineSession
    ) -> None:
        """Keep a batch that was measured now. Raises PinMismatch when a file changed meanwhile."""
        for session in (self.session, *others):
            session.check_stats()
        witness = self._witness(others)
        self._hold_batch(key, batch, witness, others)
        self.store.write_batch(key, batch.index, batch.digest, witness, measured)

    def _witness(self, others: Sequence[EngineSession]) -> str:
        return canonical.digest([session.files.witness for session in (self.session, *others)])

    def _hold_batch(
        self, key: MeasurementKey, batch: Batch, witness: str, others: Sequence[EngineSession]
    ) -> None:
        """Remove the batch again where the files turn out to be others."""
        drop = partial(self.store.drop_batch, key, batch.index, witness)
        hold(Provisional(drop=drop), self.session, *others)

    def _read_part(self, part: Part, key: MeasurementKey) -> MeasurementSet:
        record = self.read(key, arm=self.role, name=part.label)
        self.session.progress(f"{self.role}: {part.label} (stored)", record.planned, record.planned)
        return record

    def _measure(self, part: Part, key: MeasurementKey) -> MeasurementSet | None:
        started, evalset, session = host_facts.now(), part.evalset, self.session
        batches = plan_batches(evalset, session.resolved.manifest.engine, self.batches)
        score = item_scorer(evalset)
        label = f"{self.role}: {part.label}"
        observations: list[Observation] = []
        tokens, seconds, stored = 0, 0.0, True
        for batch in batches:
            session.progress(label, len(observations), len(evalset.items))
            measured = self.read_batch(key, batch)
            if measured is None:
                if time.monotonic() > self.deadline:
                    return None
                measured = session.survive(lambda arm, batch=batch: self._run(arm, batch, score))  # type: ignore[misc]
                self.write_batch(key, batch, measured)
                stored = False
            observations += measured[0]
            tokens += measured[1]
            seconds += measured[2]
        session.progress(label, len(observations), len(evalset.items))
        stage = Stage(name=part.label, arm=self.role, items=len(observations), tokens=tokens, seconds=seconds)
        record = MeasurementSet(
            key=key, set_name=evalset.card.name, planned=len(evalset.items), identity=session.running().engine.identity,
            stage=stage, provenance=host_facts.provenance(started),
            verified=session.verification, observations=tuple(observations),
        )  # fmt: skip
        self.write(record, stored=stored)
        return record

    def _run(self, arm: ServedArm, batch: Batch, score: ScoreItem) -> MeasuredBatch:
        started = time.monotonic()
        observations, tokens = run_batch(arm, batch, self.replicate, score)
        return observations, tokens, time.monotonic() - started
