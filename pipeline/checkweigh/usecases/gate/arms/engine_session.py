"""The engine of one arm: started, held against its pins, used, and started again once when it fails."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from checkweigh.engines import host_memory
from checkweigh.engines.protocol import Engine, Telemetry
from checkweigh.engines.spec import Timeouts
from checkweigh.errors import Broken, EngineError, EngineOutOfMemory, PinMismatch, Problem
from checkweigh.measure.served_arm import ServedArm, check_identity
from checkweigh.progress import Progress
from checkweigh.records.manifest import SERVER_KINDS
from checkweigh.records.measurement import EngineIdentity, Verification
from checkweigh.sources.model.render import Renderer
from checkweigh.sources.model.render_probes import probes
from checkweigh.sources.pin import Resolved
from checkweigh.usecases.gate.arms.open_engine import engine_spec, open_protected

T = TypeVar("T")
MOST_FAILURES = 2  # the second one is raised


@dataclass(kw_only=True)
class EngineSession:
    """The engine of one arm over a whole gate, in one process or several.

    ``role`` is baseline, candidate or anchor. ``failures`` counts engines that died; ``unfit``: one was refused for the
    host's memory before it answered anything. ``telemetry``: what each server had counted when it was stopped.
    ``swapped``: bytes that the host moved to and from swap while an engine of this arm ran.
    """

    role: str
    resolved: Resolved
    logs: Path
    progress: Progress
    timeouts: Timeouts | None = None
    launch: Callable[..., Engine] = open_protected
    failures: int = field(default=0, init=False)
    unfit: bool = field(default=False, init=False)
    telemetry: list[Telemetry] = field(default_factory=list, init=False)
    swapped: int = field(default=0, init=False)
    _swap_at_start: int = field(default=0, init=False)
    _identity: EngineIdentity | None = field(default=None, init=False)
    _arm: ServedArm | None = field(default=None, init=False)

    @property
    def pins(self) -> str:
        """Digest of everything that is pinned."""
        return self.resolved.pins.record_digest()

    @property
    def verification(self) -> Verification:
        """What was found when the pinned files were read again."""
        return Verification(files=self.pins, bytes=0, seconds=0.0)  # TODO: nothing is read again yet

    def identify(self) -> EngineIdentity:
        """What the arm's engine says of itself; it is started for that once."""
        if self._identity is None:
            self.survive(lambda arm: arm.engine.identity)
        assert self._identity is not None
        return self._identity

    def running(self) -> ServedArm:
        """The arm with a started and checked engine. Raises what a start raises; no failure is counted."""
        if self._arm is None:
            self._arm = self._start()
        return self._arm

    def close(self) -> None:
        """Stop the engine, if one runs; its next use starts a new one."""
        if self._arm is None:
            return
        engine, self._arm = self._arm.engine, None
        self.swapped += host_memory.swap_activity() - self._swap_at_start
        try:
            if engine.identity.kind in SERVER_KINDS and (counters := engine.resources().telemetry):
                self.telemetry.append(counters)
        except EngineError:
            pass  # its failure was told when it failed; its counters are gone
        finally:
            engine.__exit__(None, None, None)

    def survive(self, work: Callable[[ServedArm], T]) -> T:
        """``work`` on the running arm, tried again on a new engine when the first one fails.

        Raises the EngineError of the last failure with ``arm`` set. An engine that does not fit into the host's memory
        is refused before it loads and is not tried again.
        """
        while True:
            starting = self._arm is None
            try:
                return work(self.running())
            except EngineError as error:
                self.count_failure(error, starting=starting and self._arm is None)

    def survive_unblamed(self, work: Callable[[ServedArm], T]) -> T:
        """As ``survive``, for work that is not the engine's service: where it fails for good, no failure is counted."""
        failures = self.failures
        try:
            return self.survive(work)
        except EngineError:
            self.failures = failures
            raise

    def count_failure(self, error: EngineError, *, starting: bool = False) -> None:
        """Count an engine that failed and stop it, so that the next use starts a new one. Raises the last ``error``.

        ``starting`` says that it failed before it was up.
        """
        self.close()
        error.arm = self.role
        self.failures += 1
        self.unfit = starting and isinstance(error, EngineOutOfMemory)
        if self.unfit or self.failures >= MOST_FAILURES:
            raise error
        self.progress(f"{self.role}: its engine failed and is started again: {error}", 0, 0)

    def forgive_lack_of_memory(self) -> None:
        """Stop the engine; being refused for memory while another one ran is no failure of this one."""
        self.close()
        if self.unfit:
            self.unfit = False
            self.failures -= 1

    def _start(self) -> ServedArm:
        self.progress(f"{self.role}: starting the engine", 0, 1)
        self._swap_at_start = host_memory.swap_activity()
        resolved = self.resolved
        renderer = Renderer(resolved.tokenizer_dir, resolved.chat_template)
        log = self.logs / f"{self.role}.log"
        engine = self.launch(engine_spec(resolved), log=log, timeouts=self.timeouts).__enter__()
        arm = ServedArm(resolved.manifest, engine, renderer.render, renderer.encode, renderer.prefix_id)
        try:
            check_identity(arm)
            _check_probes(arm, resolved)
            self._check_unchanged(engine.identity)
        except BaseException:
            engine.__exit__(None, None, None)
            raise
        self.progress(f"{self.role}: starting the engine", 1, 1)
        return arm

    def _check_unchanged(self, identity: EngineIdentity) -> None:
        """An engine that was started again must be the one that measured before. Raises Broken."""
        if self._identity is not None and self._identity != identity:
            raise Broken(
                f"the {self.role}'s engine changed while the gate ran: it reports another identity than before"
            )
        self._identity = identity


def start_together(sessions: Collection[EngineSession]) -> bool:
    """Start the engines of all sessions; False, with none running, where the host's memory does not hold them all.

    Raises EngineError for an engine that fails otherwise, as ``survive`` does.
    """
    try:
        for session in sessions:
            session.survive(lambda arm: arm)
    except EngineOutOfMemory:
        if not any(session.unfit for session in sessions):
            raise
        for session in sessions:
            session.forgive_lack_of_memory()
        return False
    return True


def _check_probes(arm: ServedArm, resolved: Resolved) -> None:
    """The probe conversations, rendered by the engine itself, must give the pinned ids. Raises PinMismatch."""
    rendered = arm.engine_prompts(probes(resolved.manifest))
    problems = [
        Problem(
            file=str(resolved.path), line=None, path=f"probe conversation {i}",
            expected=f"{len(pinned)} pinned token ids", found=_rendering(tuple(pinned), tuple(ids)),
        )
        for i, (pinned, ids) in enumerate(zip(resolved.pins.probes, rendered, strict=True))
        if tuple(ids) != tuple(pinned)
    ]  # fmt: skip
    if problems:
        raise PinMismatch(problems)


def _rendering(pinned: tuple[int, ...], ids: tuple[int, ...]) -> str:
    """What an engine made of a conversation, in words; a prompt that lost an end is named."""
    count = len(ids)
    if 0 < count < len(pinned):
        for end, kept in (("last", pinned[-count:]), ("first", pinned[:count])):
            if ids == kept:
                return f"a prompt that the engine cut to its {end} {count}"
    return f"{count} other ids, rendered by the engine"
