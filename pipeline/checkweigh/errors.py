"""Every error Checkweigh raises on purpose, and the exit codes.

::

    CheckweighError                     exit 4 unless a subclass says otherwise
    ├── BadInput                        exit 2: the user can mend it
    │   ├── BadDocument                 a manifest, policy, card or lock is not well formed
    │   ├── SourceError                 a source cannot be resolved, or is refused
    │   │   └── RefusedFiles            a folder holds what is never served; lists all of it
    │   ├── PinMismatch                 what is there is not what is pinned
    │   └── UndeclaredDrift             the arms differ where no manifest says they do
    └── Broken                          exit 4: the tool, the host or the engine
        ├── EngineError
        │   ├── EngineDied              the process ended by itself
        │   ├── EngineTimeout           no answer in time
        │   ├── EngineRefused           it answered with an HTTP error; ``status`` says which
        │   ├── EngineTruncated         an answer broke off, or ended without a reason
        │   └── EngineOutOfMemory       refused before loading, or killed for memory
        ├── ScorerError                 a scorer raised, gave no number, or its sandbox cannot be had
        ├── StoreError                  a stored record is damaged or cannot be written
        ├── SigningError                a verdict or weights cannot be signed
        ├── RegistryError               the model registry did not do, or did not keep, what was asked
        └── HostBusy                    another gate holds this host's timing lock
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class ExitCode(IntEnum):
    """What ``checkweigh`` exits with; a verdict and a crash never share a number."""

    PASS = 0
    BLOCK = 1
    BAD_INPUT = 2
    INCONCLUSIVE = 3
    BROKEN = 4

    @classmethod
    def worst(cls, *codes: ExitCode) -> ExitCode:
        """The code of several results: 2 replaces 4, which replaces 1, then 3, then 0. PASS where nothing was required.

        Nothing is decided where something broke, and nothing means anything where the input was wrong.
        """
        return max(codes, key=lambda code: code.severity, default=cls.PASS)

    @property
    def severity(self) -> int:
        """Its place in the order of ``worst``, 0 for a pass."""
        order = (self.PASS, self.INCONCLUSIVE, self.BLOCK, self.BROKEN, self.BAD_INPUT)
        return order.index(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One thing wrong with one place of one document."""

    file: str
    line: int | None
    path: str
    expected: str
    found: str
    suggestion: str | None = None

    def __str__(self) -> str:
        where = self.file if self.line is None else f"{self.file}:{self.line}"
        at = f": {self.path}" if self.path else ""
        hint = f" (did you mean '{self.suggestion}'?)" if self.suggestion else ""
        return f"{where}{at}: expected {self.expected}, found {self.found}{hint}"


class CheckweighError(Exception):
    """Root of the tree."""

    exit_code = ExitCode.BROKEN


class BadInput(CheckweighError):
    """Something the user wrote or named is wrong."""

    exit_code = ExitCode.BAD_INPUT


class BadDocument(BadInput):
    """A document with one or more problems; all of them are listed at once."""

    def __init__(self, problems: list[Problem]) -> None:
        self.problems = problems
        super().__init__("\n".join(str(problem) for problem in problems))


class SourceError(BadInput):
    """A source cannot be resolved, moves, or is of a kind that is refused."""


class RefusedFiles(SourceError):
    """A model's folder holds what is never served, or two things of which engines take another one; all at once."""

    def __init__(self, problems: list[Problem]) -> None:
        self.problems = problems
        super().__init__("\n".join(str(problem) for problem in problems))


class PinMismatch(BadInput):
    """What is there is not what is pinned; lists every mismatch with both digests."""

    def __init__(self, problems: list[Problem]) -> None:
        self.problems = problems
        super().__init__("\n".join(str(problem) for problem in problems))


class UndeclaredDrift(BadInput):
    """Two arms differ in something that neither manifest declares."""


class Broken(CheckweighError):
    """The tool, the host or an engine failed; never a verdict on the candidate."""


class EngineError(Broken):
    """An engine failed; ``cause`` names the likely reason in words, ``log_tail`` its last lines.

    ``arm`` is set where two engines run and one of them failed.
    """

    arm: str | None = None

    def __init__(self, message: str, *, cause: str = "", log_tail: str = "") -> None:
        self.cause = cause
        self.log_tail = log_tail
        super().__init__(message + (f" ({cause})" if cause else ""))


class EngineDied(EngineError):
    """The engine's process ended by itself."""


class EngineTimeout(EngineError):
    """The engine did not answer in time."""


class EngineRefused(EngineError):
    """The engine answered a request with an HTTP error. ``retry_after``: seconds it asks to wait, where it says so."""

    def __init__(
        self, message: str, *, status: int, cause: str = "", retry_after: float | None = None
    ) -> None:
        self.status = status
        self.retry_after = retry_after
        super().__init__(message, cause=cause)


class EngineTruncated(EngineError):
    """An answer broke off in the middle, or ended without saying why."""


class EngineOutOfMemory(EngineError):
    """The engine does not fit, or was killed for its memory."""


class ScorerError(Broken):
    """What scores replies failed on one: the measurement's fault, which no reply is blamed for."""


class StoreError(Broken):
    """The measurement store is damaged or cannot be written."""


class SigningError(Broken):
    """A verdict or weights that were to be signed could not be."""


class RegistryError(Broken):
    """The model registry is silent, answers junk, or does not hold what it said it took."""


class HostBusy(Broken):
    """Another gate is timing on this host."""
