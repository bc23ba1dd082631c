"""The engine of one arm: started, held against its pins, used, and started again once when it fails.

What an engine measures is provisional until its files were read in full after its end, or after its next start:
``settle``. What has changed by then is bad input, and nothing that was measured since the last reading is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from checkweigh.engines import host_memory
from checkweigh.engines.protocol import Engine, Telemetry
from checkweigh.engines.spec import Timeouts
from checkweigh.errors import (
    BadDocument,
    BadInput,
    Broken,
    CheckweighError,
    EngineError,
    EngineOutOfMemory,
    PinMismatch,
    Problem,
)
from checkweigh.measure.served_arm import ServedArm, check_identity
from checkweigh.progress import Progress, no_progress
from checkweigh.records.manifest import SERVER_KINDS
from checkweigh.records.measurement import EngineIdentity, Verification
from checkweigh.sources.model.render import Renderer
from checkweigh.sources.model.render_probes import probes
from checkweigh.sources.pin import Resolved
from checkweigh.sources.pinned_files import PinnedFiles
from checkweigh.sources.private_copy import PrivateCopy, private_copy
from checkweigh.usecases.gate.arms.open_engine import engine_spec, open_protected

T = TypeVar("T")
MOST_FAILURES = 2  # the second one is raised
LONG = 2 << 30  # bytes that take seconds to read: their reading is told of


def _nothing() -> None:
    """There is nothing to do."""


@dataclass(kw_only=True, eq=False)
class Provisional:
    """What was measured and does not count yet: ``keep`` publishes it, ``drop`` removes what is left of it.

    ``waits_for``: roles of the arms whose files have to be read in full before.
    """

    keep: Callable[[], None] = _nothing
    drop: Callable[[], None] = _nothing
    waits_for: set[str] = field(default_factory=set)

    def settled(self, role: str) -> None:
        """The files of an arm are what they were; the last one that was waited for publishes."""
        if role in self.waits_for:
            self.waits_for.remove(role)
            if not self.waits_for:
                self.keep()

    def spoilt(self) -> None:
        """The files of an arm are not what they were."""
        if self.waits_for:
            self.waits_for.clear()
            self.drop()


@dataclass(kw_only=True)
class EngineSession:
    """The engine of one arm over a whole gate, in one process or several.

    ``role`` is baseline, candidate or anchor. ``failures`` counts engines that died; ``unfit``: one was refused for the
    host's memory before it answered anything. ``telemetry``: what each server had counted when it was stopped.
    ``swapped``: bytes that the host moved to and from swap while an engine of this arm ran. ``verification``: the last
    readings of the pinned files after an engine's start and after its end.
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
    verification: Verification = field(init=False)
    unsettled: bool = field(default=False, init=False)
    _readings: list[float] = field(default_factory=list, init=False)
    _identity: EngineIdentity | None = field(default=None, init=False)
    _arm: ServedArm | None = field(default=None, init=False)
    _files: PinnedFiles | None = field(default=None, init=False)
    _copy: PrivateCopy | None = field(default=None, init=False)
    _held: ExitStack = field(default_factory=ExitStack, init=False)
    provisional: list[Provisional] = field(default_factory=list, init=False)

    @property
    def pins(self) -> str:
        """Digest of everything that is pinned."""
        return self.resolved.pins.record_digest()

    @property
    def files(self) -> PinnedFiles:
        """The pinned files as they were before the first engine was launched."""
        if self._files is None:
            self._files = PinnedFiles.of(self.resolved)
        return self._files

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
        """Stop the engine, if one runs; its next use starts a new one. What it measured stays provisional."""
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
            self._end(engine)

    def settle(self) -> None:
        """Stop the engine, read its files in full once more, and let count what was measured since the last reading.

        Raises PinMismatch when a file changed meanwhile: nothing of that is kept.
        """
        self.close()
        if self.unsettled:
            self.read_files()
            self.unsettled = False

    def require_settled(self) -> None:
        """Raise Broken when an engine has run whose files were not read in full since."""
        if self.unsettled:
            raise Broken(f"the {self.role}'s files were not read again after its engine had measured")

    def check_stats(self) -> None:
        """Raise PinMismatch when a file has changed since the engine was launched; then nothing measured is kept."""
        try:
            self.files.check_stats()
        except BadInput:
            self._drop()
            raise

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
            except CheckweighError as error:
                self._name_own_files(error)
                raise

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
        self._name_own_files(error)
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
        """An engine on private copies of the files, which are read in full once it is up."""
        self.progress(f"{self.role}: starting the engine", 0, 1)
        self._swap_at_start = host_memory.swap_activity()
        resolved = self.resolved
        self.check_stats()
        copy = self._copy = self._held.enter_context(private_copy(self.files))
        spec = engine_spec(resolved, copy)
        engine = None
        try:
            renderer = Renderer(spec.tokenizer_dir, spec.chat_template)
            log = self.logs / f"{self.role}.log"
            engine = self.launch(spec, log=log, timeouts=self.timeouts).__enter__()
            arm = ServedArm(resolved.manifest, engine, renderer.render, renderer.encode, renderer.prefix_id)
            check_identity(arm)
            _check_probes(arm, resolved)
            self._check_unchanged(engine.identity)
            self.read_files()
        except BaseException as error:
            self._name_own_files(error)
            self._end(engine)
            raise
        self.unsettled = True
        self.progress(f"{self.role}: starting the engine", 1, 1)
        return arm

    def _end(self, engine: Engine | None) -> None:
        """Stop an engine; its private copies go with it."""
        held, self._held, self._copy = self._held, ExitStack(), None
        with held:
            if engine is not None:
                engine.__exit__(None, None, None)

    def read_files(self) -> None:
        """Read every file in full: what was measured since the last reading counts now, or is dropped (PinMismatch)."""
        told = self.progress if self.files.bytes > LONG else no_progress
        try:
            found = self.files.check_digests(told, f"{self.role}: reading its files again (MB)")
        except BadInput:
            self._drop()
            raise
        self._readings = [*self._readings[-1:], found.seconds]
        self.verification = found.model_copy(update={"seconds": sum(self._readings)})
        provisional, self.provisional = self.provisional, []
        for measured in provisional:
            measured.settled(self.role)

    def _drop(self) -> None:
        provisional, self.provisional = self.provisional, []
        for measured in provisional:
            measured.spoilt()

    def _name_own_files(self, error: BaseException) -> None:
        """Put the user's folders in the place of the private ones in an engine's words."""
        if self._copy is None:
            return
        own = self._copy.with_own_names
        error.args = tuple(own(arg) if isinstance(arg, str) else arg for arg in error.args)
        if isinstance(error, EngineError):
            error.cause, error.log_tail = own(error.cause), own(error.log_tail)
        if isinstance(error, BadDocument | PinMismatch):
            error.problems = [
                replace(p, file=own(p.file), expected=own(p.expected), found=own(p.found))
                for p in error.problems
            ]

    def _check_unchanged(self, identity: EngineIdentity) -> None:
        """An engine that was started again must be the one that measured before. Raises Broken."""
        if self._identity is not None and self._identity != identity:
            raise Broken(
                f"the {self.role}'s engine changed while the gate ran: it reports another identity than before"
            )
        self._identity = identity


def hold(measured: Provisional, *sessions: EngineSession) -> None:
    """Hold what was measured on the engines of these sessions until all of them are settled."""
    measured.waits_for = {session.role for session in sessions}
    for session in sessions:
        session.provisional.append(measured)


def settle_all(sessions: Iterable[EngineSession]) -> None:
    """Settle every session, whatever becomes of the others. Raises PinMismatch with all that changed on any arm."""
    problems: list[Problem] = []
    for session in sessions:
        try:
            session.settle()
        except PinMismatch as error:
            problems += error.problems
    if problems:
        raise PinMismatch(list(dict.fromkeys(problems)))


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
