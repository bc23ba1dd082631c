"""``WorkerEngine``: an engine in a process of its own, behind the ``Engine`` protocol."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

from pydantic import ValidationError

from checkweigh.engines.protocol import (
    Divergence,
    GenerateRequest,
    GenerateResult,
    ItemFailure,
    Messages,
    Resources,
    ScoreRequest,
    ScoreResult,
    States,
)
from checkweigh.engines.spec import EngineSpec, Timeouts
from checkweigh.engines.validation import DOES_NOT_FIT
from checkweigh.engines.worker import wire
from checkweigh.engines.worker.process import TooSlow, Worker, WorkerGone
from checkweigh.errors import BadInput, EngineDied, EngineError, EngineOutOfMemory, EngineTimeout, StoreError
from checkweigh.records.measurement import EngineIdentity

_DEFAULT = Timeouts()
T = TypeVar("T")


class WorkerEngine:
    """Starts ``checkweigh.engines.worker.main`` on entering and ends it on leaving.

    Raises on any call:

    - ``EngineDied``: the process ended; later calls say so at once;
    - ``EngineTimeout`` and ``EngineOutOfMemory``: the process is ended first;
    - ``EngineError``: an answer that cannot be read;
    - ``BadInput``: what was asked for cannot be; after the start the engine lives on;
    - ``StoreError``: the disk it writes to is full, which is the host's fault; the process is ended first.
    """

    def __init__(self, spec: EngineSpec, *, log: Path, timeouts: Timeouts = _DEFAULT) -> None:
        self.spec = spec
        self.log = log
        self.timeouts = timeouts
        self._worker: Worker | None = None
        self._identity: EngineIdentity | None = None
        self._dead = "it was not started"
        self._lock = threading.Lock()

    @property
    def identity(self) -> EngineIdentity:
        """What the running engine reports of itself. EngineDied before the start."""
        if self._identity is None:
            raise self._gone()
        return self._identity

    @property
    def pid(self) -> int | None:
        """The worker's process id; None when it does not run."""
        return None if self._worker is None else self._worker.process.pid

    def __enter__(self) -> Self:
        if self._worker is not None:
            raise EngineError("the engine is running already")
        self._worker = Worker(threads=self.spec.manifest.engine.threads, log=self.log)
        try:
            answer = self._ask("start", self.timeouts.start, spec=self.spec.to_json())
            self._identity = self._read_identity(answer)
        except BaseException:
            self._end("it did not start", grace=0)
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self._end("it was stopped", grace=3.0 if exc[:1] in ((), (None,)) else 0)

    def render(self, conversations: Sequence[Messages]) -> list[tuple[int, ...]]:
        """Prompt token ids as the engine itself renders them, generation prompt included."""
        packed = [wire.pack_messages(c) for c in conversations]
        return _read(wire.unpack_prompts, self._ask("render", self.timeouts.render, conversations=packed))

    def score(self, batch: Sequence[ScoreRequest]) -> list[ScoreResult | ItemFailure]:
        """Score one batch."""
        answer = self._ask("score", self.timeouts.call, batch=[wire.pack_score_request(r) for r in batch])
        return _read(lambda value: wire.unpack_results(value, wire.unpack_score), answer)

    def states(self, batch: Sequence[ScoreRequest], folder: Path) -> list[States | ItemFailure]:
        """Write hidden states of one batch of raw texts to ``folder``."""
        packed = [wire.pack_score_request(r) for r in batch]
        answer = self._ask("states", self.timeouts.call, batch=packed, folder=str(folder))
        return _read(lambda value: wire.unpack_results(value, wire.unpack_states), answer)

    def divergence(
        self, batch: Sequence[ScoreRequest], their_states: Path, own_states: Path
    ) -> list[Divergence | ItemFailure]:
        """Compare the hidden states in two folders."""
        packed = [wire.pack_score_request(r) for r in batch]
        answer = self._ask(
            "divergence", self.timeouts.call, batch=packed, theirs=str(their_states), mine=str(own_states)
        )
        return _read(lambda value: wire.unpack_results(value, wire.unpack_divergence), answer)

    def generate(self, batch: Sequence[GenerateRequest]) -> list[GenerateResult | ItemFailure]:
        """Generate one batch of replies with the pinned sampling."""
        answer = self._ask(
            "generate", self.timeouts.call, batch=[wire.pack_generate_request(r) for r in batch]
        )
        return _read(lambda value: wire.unpack_results(value, wire.unpack_reply), answer)

    def resources(self, *, reset_peak: bool = False) -> Resources:
        """Memory of the worker process now; afterwards the peak starts anew when asked to."""
        return _read(
            wire.unpack_resources, self._ask("resources", self.timeouts.render, reset_peak=reset_peak)
        )

    def _ask(self, call: str, seconds: float, **arguments: Any) -> Any:
        """The worker's answer to one call; every way it can fail becomes an error with its cause."""
        with self._lock:
            worker = self._worker
            if worker is None:
                raise self._gone()
            try:
                message = {"call": call, "sent": time.monotonic(), **arguments}
                answer = worker.exchange(message, seconds)
            except TooSlow:
                raise self._slow(worker, call, seconds) from None
            except WorkerGone:
                raise self._died(worker, call, worker.cause()) from None
            except wire.BrokenFrame as error:
                self._end("it answered with something that is no message", grace=0)
                raise EngineError(
                    f"{call}: {DOES_NOT_FIT}", cause=str(error), log_tail=worker.tail()
                ) from error
            except (
                BaseException
            ):  # Ctrl-C in the middle of an exchange: what comes next would answer the wrong call
                self._end(f"{call} was interrupted", grace=0)
                raise
            return self._open(worker, call, answer)

    def _open(self, worker: Worker, call: str, answer: dict[str, Any]) -> Any:
        """The result inside an answer, or the error the worker named."""
        if "result" in answer:
            return answer["result"]
        kind, text = answer.get("error"), str(answer.get("text", ""))
        if kind == "bad_input":
            raise BadInput(text)
        if kind == "disk":
            self._end(f"it could not write in {call}", grace=0)
            raise StoreError(f"{call}: {text} (the engine's log is {self.log})")
        if kind == "out_of_memory":
            tail = worker.tail()
            self._end(f"it ran out of memory in {call}: {text}", grace=0)
            raise EngineOutOfMemory(f"{call}: the engine is out of memory", cause=text, log_tail=tail)
        if kind == "engine":
            tail = worker.tail()
            self._end(text, grace=0)
            raise EngineError(f"{call}: the engine refused", cause=text, log_tail=tail)
        raise self._died(worker, call, text or "it answered with neither a result nor an error")

    def _read_identity(self, answer: Any) -> EngineIdentity:
        try:
            return EngineIdentity.model_validate_json(json.dumps(answer))
        except ValidationError as error:
            raise EngineError(DOES_NOT_FIT, cause=f"no identity: {error}") from error

    def _slow(self, worker: Worker, call: str, seconds: float) -> EngineTimeout:
        name = {"start": "start", "render": "render", "resources": "render"}.get(call, "call")
        tail = worker.tail()
        self._end(f"it was stopped after {call} took over {seconds:g} s", grace=0)
        return EngineTimeout(
            f"{call}: no answer within {seconds:g} s (timeout '{name}')",
            cause="the process was still running; it was killed",
            log_tail=tail,
        )

    def _died(self, worker: Worker, call: str, cause: str) -> EngineDied:
        self._end(cause, grace=0)
        return EngineDied(f"the engine died during {call}", cause=cause, log_tail=worker.tail())

    def _gone(self) -> EngineDied:
        return EngineDied("the engine is not running", cause=self._dead)

    def _end(self, why: str, *, grace: float) -> None:
        worker, self._worker = self._worker, None
        if worker is not None:
            self._dead = why
            worker.stop(grace)


def _read(unpack: Callable[[Any], T], answer: Any) -> T:
    """The answer as objects. EngineError: it holds something else."""
    try:
        return unpack(answer)
    except (KeyError, TypeError, ValueError) as error:
        raise EngineError(DOES_NOT_FIT, cause=str(error)) from error
