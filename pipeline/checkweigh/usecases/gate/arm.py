"""One arm of a gate: its engine started, checked, measured through the store, and restarted once."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from checkweigh.decision.compare_divergence import SERVED
from checkweigh.decision.looks import Part
from checkweigh.engines.protocol import Engine, Telemetry
from checkweigh.engines.spec import EngineSpec, Timeouts
from checkweigh.errors import Broken, EngineError, EngineOutOfMemory, HostBusy, PinMismatch, Problem
from checkweigh.measure import host_facts
from checkweigh.measure.batching import Batch, plan_batches
from checkweigh.measure.quality import run_batch
from checkweigh.measure.served_arm import ServedArm, check_identity
from checkweigh.progress import Progress
from checkweigh.records.evalset import EvalSet
from checkweigh.records.measurement import EngineIdentity, MeasurementKey, MeasurementSet, Observation, Stage
from checkweigh.scorers.score_items import ScoreItem, item_scorer
from checkweigh.sources.model.render import Renderer
from checkweigh.sources.model.render_probes import probes
from checkweigh.sources.pin import Resolved
from checkweigh.store import Store
from checkweigh.usecases.gate.open_engine import open_protected

T = TypeVar("T")
Kept = tuple[list[Observation], int, float]  # a batch's observations, tokens and seconds
ATTEMPTS = 2
LOCK_WAIT_S = 5.0  # for a measurement's lock when no time is left: a stored record can still be read


@dataclass(kw_only=True)
class ArmRun:
    """One arm while it is measured. ``role`` is baseline or candidate; ``failures`` counts dead engines.

    ``deadline`` is a monotonic time; ``late`` says that it passed before everything was measured, ``unfit``
    that the engine was refused for the host's memory before it answered anything.
    """

    role: str
    resolved: Resolved
    store: Store
    logs: Path
    progress: Progress
    deadline: float
    timeouts: Timeouts | None = None
    launch: Callable[..., Engine] = open_protected
    replicate: int = 0
    batches: int = 0
    failures: int = 0
    late: bool = False
    unfit: bool = False
    identity: EngineIdentity | None = None
    arm: ServedArm | None = None
    stages: list[Stage] = field(default_factory=list)
    counted: list[Telemetry] = field(default_factory=list)
    swap_before: int = 0
    swapped: int = 0  # bytes that the host moved to and from swap while an engine of this arm ran

    @property
    def pins(self) -> str:
        """Digest of everything that is pinned."""
        return self.resolved.pins.record_digest()

    def running(self) -> ServedArm:
        """The arm with a started and checked engine."""
        if self.arm is None:
            self.arm = self._start()
        return self.arm

    def close(self) -> None:
        """Stop the engine, if one runs."""
        if self.arm is not None:
            engine, self.arm = self.arm.engine, None
            self.swapped += host_facts.swap_activity() - self.swap_before
            try:
                if engine.identity.kind in SERVED and (found := engine.resources().telemetry):
                    self.counted.append(found)
            except EngineError:
                pass  # it has failed before, which was told then; its counters are gone
            finally:
                engine.__exit__(None, None, None)

    def survive(self, work: Callable[[ServedArm], T]) -> T:
        """``work`` on the running arm, tried again on a new engine when the first one fails.

        Raises the EngineError of the last attempt with ``arm`` set. An engine that does not fit into the
        host's memory is refused before it loads and is not tried again.
        """
        while True:
            starting = self.arm is None
            try:
                return work(self.running())
            except EngineError as error:
                self.failed(error, starting=starting and self.arm is None)

    def failed(self, error: EngineError, *, starting: bool = False) -> None:
        """Count a failed engine and end it, so that the next use starts a new one. Raises ``error`` when that is over.

        ``starting`` says that it failed before it was up.
        """
        self.close()
        error.arm = self.role
        self.failures += 1
        self.unfit = starting and isinstance(error, EngineOutOfMemory)
        if self.unfit or self.failures >= ATTEMPTS:
            raise error
        self.progress(f"{self.role}: its engine failed and is started again: {error}", 0, 0)

    def forgive(self) -> None:
        """Being refused for memory while the other arm ran is no failure: it fitted when it ran alone."""
        self.close()
        if self.unfit:
            self.unfit = False
            self.failures -= 1

    def measure_all(self, evalsets: Sequence[EvalSet], records: dict[str, MeasurementSet]) -> None:
        """Fill ``records`` (set -> record) with whole sets until the time runs out."""
        for evalset in evalsets:
            record = self.measure(Part(evalset=evalset, look=1, of=1))
            if record is not None:
                records[evalset.card.name] = record

    def execute_anew(self, parts: Sequence[Part]) -> None:
        """A replicate above 0 is a repeated execution: raise it to the first that is not complete yet.

        Nothing of an execution that was measured whole is read for it, and an interrupted one goes on.
        """
        if self.replicate:
            identity = self.identify().record_digest()
            while all(self.store.exists(self.key(part, identity)) for part in parts):
                self.replicate += 1

    def identify(self) -> EngineIdentity:
        """What the arm's engine says of itself; it is started for that once."""
        if self.identity is None:
            self.survive(lambda arm: arm.engine.identity)
        assert self.identity is not None
        return self.identity

    def measure(self, part: Part) -> MeasurementSet | None:
        """The part's record, from the store or measured now; None when the time ran out (``late``)."""
        key = self.key(part, self.identify().record_digest())
        try:
            with self.store.measuring(
                key, wait_s=max(LOCK_WAIT_S, self.deadline - time.monotonic()),
                waiting=lambda: self.wait_for_others(part.label),
            ):  # fmt: skip
                record = self._stored(part, key) if self.store.exists(key) else self._measure(part, key)
        except HostBusy:
            if time.monotonic() < self.deadline:
                raise
            record = None
        self.late = self.late or record is None
        return record

    def wait_for_others(self, name: str) -> None:
        """Say that another gate is measuring the very same."""
        self.progress(f"{self.role}: {name}: another checkweigh is measuring the same; waiting for it", 0, 0)

    def _stored(self, part: Part, key: MeasurementKey) -> MeasurementSet:
        record = self.store.read(key)
        stage = record.stage.model_copy(update={"stored": True, "arm": self.role, "name": part.label})
        self.stages.append(stage)
        self.progress(f"{self.role}: {part.label} (stored)", record.planned, record.planned)
        return record

    def key(self, part: Part, identity: str) -> MeasurementKey:
        """Where the part's record of this arm lives in the store."""
        card = part.evalset.card
        return MeasurementKey(
            pins=self.pins, identity=identity, evalset=card.digest, scorer=card.scorer,
            hardware=host_facts.hardware(), replicate=self.replicate, batches=part.batches or self.batches,
        )  # fmt: skip

    def _measure(self, part: Part, key: MeasurementKey) -> MeasurementSet | None:
        started, evalset = host_facts.now(), part.evalset
        batches = plan_batches(evalset, self.resolved.manifest.engine, self.batches)
        score = item_scorer(evalset)
        label = f"{self.role}: {part.label}"
        observations: list[Observation] = []
        tokens, seconds = 0, 0.0
        for batch in batches:
            self.progress(label, len(observations), len(evalset.items))
            kept = self.store.read_batch(key, batch.index, batch.digest)
            if kept is None:
                if time.monotonic() > self.deadline:
                    return None
                kept = self.survive(lambda arm, batch=batch: self._run(arm, batch, score))  # type: ignore[misc]
                self.store.write_batch(key, batch.index, batch.digest, kept)
            observations += kept[0]
            tokens += kept[1]
            seconds += kept[2]
        self.progress(label, len(observations), len(evalset.items))
        stage = Stage(name=part.label, arm=self.role, items=len(observations), tokens=tokens, seconds=seconds)
        record = MeasurementSet(
            key=key, set_name=evalset.card.name, planned=len(evalset.items), identity=self.running().engine.identity,
            stage=stage, provenance=host_facts.provenance(started), observations=tuple(observations),
        )  # fmt: skip
        self.store.write(record)
        self.stages.append(stage)
        return record

    def _run(self, arm: ServedArm, batch: Batch, score: ScoreItem) -> Kept:
        started = time.monotonic()
        observations, tokens = run_batch(arm, batch, self.replicate, score)
        return observations, tokens, time.monotonic() - started

    def _start(self) -> ServedArm:
        self.progress(f"{self.role}: starting the engine", 0, 1)
        self.swap_before = host_facts.swap_activity()
        resolved = self.resolved
        spec = spec_of(resolved)
        renderer = Renderer(resolved.tokenizer_dir, resolved.chat_template)
        engine = self.launch(spec, log=self.logs / f"{self.role}.log", timeouts=self.timeouts).__enter__()
        arm = ServedArm(resolved.manifest, engine, renderer.render, renderer.encode, renderer.prefix_id)
        try:
            check_identity(arm)
            _check_probes(engine, resolved)
            self._same(engine.identity)
        except BaseException:
            engine.__exit__(None, None, None)
            raise
        self.progress(f"{self.role}: starting the engine", 1, 1)
        return arm

    def _same(self, identity: EngineIdentity) -> None:
        """An engine that was started again must be the one that measured before."""
        if self.identity is not None and self.identity != identity:
            raise Broken(
                f"the {self.role}'s engine changed while the gate ran: it reports another identity than before"
            )
        self.identity = identity


def spec_of(resolved: Resolved) -> EngineSpec:
    """What the engine of a verified manifest is started with."""
    packages = resolved.packages
    return EngineSpec(
        manifest=resolved.manifest, model_dir=resolved.model_dir, tokenizer_dir=resolved.tokenizer_dir,
        chat_template=resolved.chat_template, draft_dir=resolved.draft_dir,
        lock=None if packages is None else packages.lock, python=None if packages is None else packages.python,
        image=None if packages is None else packages.image,
        packages={} if packages is None else packages.computing,
    )  # fmt: skip


def _check_probes(engine: Engine, resolved: Resolved) -> None:
    """The probe conversations, rendered by the engine itself, must give the pinned ids."""
    conversations = probes(resolved.manifest)
    found = engine.render(conversations)
    problems = [
        Problem(
            file=str(resolved.path), line=None, path=f"probe conversation {i}",
            expected=f"{len(pinned)} pinned token ids", found=_rendered(tuple(pinned), tuple(ids)),
        )
        for i, (pinned, ids) in enumerate(zip(resolved.pins.probes, found, strict=True))
        if tuple(ids) != tuple(pinned)
    ]  # fmt: skip
    if problems:
        raise PinMismatch(problems)


def _rendered(pinned: tuple[int, ...], ids: tuple[int, ...]) -> str:
    """What an engine made of a conversation, in words; a prompt that lost an end is named."""
    count = len(ids)
    if 0 < count < len(pinned):
        for end, kept in (("last", pinned[-count:]), ("first", pinned[:count])):
            if ids == kept:
                return f"a prompt that the engine cut to its {end} {count}"
    return f"{count} other ids, rendered by the engine"
