"""One arm of a gate: its engine started, checked, measured through the store, and restarted once."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from checkweigh.engines.launch import open_engine
from checkweigh.engines.protocol import Engine
from checkweigh.engines.spec import EngineSpec
from checkweigh.errors import EngineError, EngineOutOfMemory, PinMismatch, Problem
from checkweigh.measure import host
from checkweigh.measure.plan import Batch, plan
from checkweigh.measure.quality import Arm, check_identity, run_batch
from checkweigh.records.evalset import EvalSet
from checkweigh.records.measurement import MeasurementKey, MeasurementSet, Observation, Stage
from checkweigh.sources.pin import Resolved
from checkweigh.sources.probes import probes
from checkweigh.sources.render import Renderer
from checkweigh.store import Store

T = TypeVar("T")
Progress = Callable[[str, int, int], None]
ATTEMPTS = 2


@dataclass(kw_only=True)
class ArmRun:
    """One arm while it is measured. ``role`` is baseline or candidate; ``failures`` counts dead engines."""

    role: str
    resolved: Resolved
    store: Store
    logs: Path
    progress: Progress
    deadline: float
    replicate: int = 0
    failures: int = 0
    arm: Arm | None = None
    stages: list[Stage] = field(default_factory=list)

    @property
    def pins(self) -> str:
        """Digest of everything that is pinned."""
        return self.resolved.pins.record_digest()

    def running(self) -> Arm:
        """The arm with a started and checked engine."""
        if self.arm is None:
            self.arm = self._start()
        return self.arm

    def close(self) -> None:
        """Stop the engine, if one runs."""
        if self.arm is not None:
            engine, self.arm = self.arm.engine, None
            engine.__exit__(None, None, None)

    def survive(self, work: Callable[[Arm], T]) -> T:
        """``work`` on the running arm, tried again on a new engine when the first one fails.

        Raises the EngineError of the last attempt with ``arm`` set. An engine that does not fit into the
        host's memory is refused before it loads and is not tried again.
        """
        while True:
            starting = self.arm is None
            try:
                return work(self.running())
            except EngineError as error:
                self.close()
                error.arm = self.role
                self.failures += 1
                if self.failures >= ATTEMPTS or (starting and isinstance(error, EngineOutOfMemory)):
                    raise

    def measure(self, evalset: EvalSet) -> MeasurementSet | None:
        """The set's record, from the store or measured now; None when the time ran out."""
        identity = self.survive(lambda arm: arm.engine.identity)
        key = self.key(evalset, identity.record_digest())
        with self.store.measuring(key):
            if self.store.exists(key):
                record = self.store.read(key)
                self.stages.append(record.stage.model_copy(update={"stored": True, "arm": self.role}))
                return record
            return self._measure(evalset, key)

    def key(self, evalset: EvalSet, identity: str) -> MeasurementKey:
        """Where the set's record of this arm lives in the store."""
        card = evalset.card
        return MeasurementKey(
            pins=self.pins, identity=identity, evalset=card.digest, scorer=card.scorer,
            hardware=host.hardware(), replicate=self.replicate,
        )  # fmt: skip

    def _measure(self, evalset: EvalSet, key: MeasurementKey) -> MeasurementSet | None:
        started = host.now()
        batches = plan(evalset, self.resolved.manifest.engine)
        label = f"{self.role}: {evalset.card.name}"
        observations: list[Observation] = []
        tokens, seconds = 0, 0.0
        for batch in batches:
            self.progress(label, len(observations), len(evalset.items))
            kept = self.store.read_batch(key, batch.index, batch.digest)
            if kept is None:
                if time.monotonic() > self.deadline:
                    return None
                kept = self.survive(lambda arm, batch=batch: self._run(arm, batch))  # type: ignore[misc]
                self.store.write_batch(key, batch.index, batch.digest, kept)
            observations += kept[0]
            tokens += kept[1]
            seconds += kept[2]
        self.progress(label, len(observations), len(evalset.items))
        stage = Stage(name=evalset.card.name, arm=self.role, items=len(observations), tokens=tokens, seconds=seconds)
        record = MeasurementSet(
            key=key, set_name=evalset.card.name, planned=len(evalset.items), identity=self.running().engine.identity,
            stage=stage, provenance=host.provenance(started), observations=tuple(observations),
        )  # fmt: skip
        self.store.write(record)
        self.stages.append(stage)
        return record

    def _run(self, arm: Arm, batch: Batch) -> tuple[list[Observation], int, float]:
        started = time.monotonic()
        observations, tokens = run_batch(arm, batch, self.replicate)
        return observations, tokens, time.monotonic() - started

    def _start(self) -> Arm:
        self.progress(f"{self.role}: starting the engine", 0, 1)
        resolved = self.resolved
        spec = EngineSpec(
            manifest=resolved.manifest, model_dir=resolved.model_dir,
            tokenizer_dir=resolved.tokenizer_dir, chat_template=resolved.chat_template,
        )  # fmt: skip
        renderer = Renderer(resolved.tokenizer_dir, resolved.chat_template)
        engine = open_engine(spec, log=self.logs / f"{self.role}.log").__enter__()
        arm = Arm(resolved.manifest, engine, renderer.render, renderer.prefix_id)
        try:
            check_identity(arm)
            _check_probes(engine, resolved)
        except BaseException:
            engine.__exit__(None, None, None)
            raise
        self.progress(f"{self.role}: starting the engine", 1, 1)
        return arm


def _check_probes(engine: Engine, resolved: Resolved) -> None:
    """The probe conversations, rendered by the engine itself, must give the pinned ids."""
    conversations = probes(resolved.manifest)
    found = engine.render(conversations)
    problems = [
        Problem(
            file=str(resolved.path), line=None, path=f"probe conversation {i}",
            expected=f"{len(pinned)} pinned token ids", found=f"{len(ids)} other ids, rendered by the engine",
        )
        for i, (pinned, ids) in enumerate(zip(resolved.pins.probes, found, strict=True))
        if tuple(ids) != tuple(pinned)
    ]  # fmt: skip
    if problems:
        raise PinMismatch(problems)
