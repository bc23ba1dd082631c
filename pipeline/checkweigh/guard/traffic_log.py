"""The log of requests, for a later A/B report: one JSON object a line, rotated by size.

A line is written for every request that named a served path, refusals for load included: an analysis by assigned arm
must see them. Lines wait in memory for a moment. What cannot be written is counted, and the next line says how many
are gone.
A file holds whole lines only: what a full disk cut off, or a killed guard, is taken back before anything is added.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal

from checkweigh.guard.guard_policy import PriorityTier, Traffic
from checkweigh.guard.routing import ArmName
from checkweigh.records.base import Record

_MOST = 10_000  # lines that wait; a disk that hangs must not fill the memory
RequestOutcome = Literal["ok", "shed", "refused", "upstream_error", "timeout", "client_gone"]


class TrafficLine(Record):
    """One line. Times are seconds; ``at`` is the Unix time of arrival; None where it never came to that."""

    at: float
    id: str
    session: str  # hash of the session's key
    tier: PriorityTier
    assigned: ArmName
    served: ArmName
    shadow: bool  # a copy whose answer nobody sees, beside the client's own line of the same id
    stream: bool
    outcome: RequestOutcome
    status: int
    reason: str
    degraded: str  # what was given up; empty: nothing
    queue_s: float
    ttft_s: float | None
    tpot_s: float | None
    total_s: float
    prompt_tokens: int
    output_tokens: int
    max_tokens: int
    finish: str | None
    prompt: str  # sha256 of it, or the text where the policy says so
    reply: str | None = None
    lost_before: int = 0  # lines that could not be written before this one


def hashed(text: str) -> str:
    """A digest of ``text``, 32 hex digits, for finding equal texts."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


class TrafficLog:
    """An append-only file and its rotated predecessors ``PATH.1`` (the youngest) to ``PATH.keep``.

    One thread calls ``add`` and ``take``; any calls ``write``.
    """

    def __init__(self, limits: Traffic) -> None:
        self._limits = limits
        self._path = None if limits.path is None else Path(limits.path)
        self._waiting: list[TrafficLine] = []
        self._writing = threading.Lock()
        self._whole = False  # the file's last line is known to be
        self._spilled = self._failed = self._reported = 0  # lines lost: for want of room, of a disk; said
        self.error = ""  # why nothing can be written; empty: it can

    @property
    def wanted(self) -> bool:
        """Whether anything is logged."""
        return self._path is not None

    @property
    def texts(self) -> bool:
        """Whether prompts and replies are kept as they are."""
        return self.wanted and self._limits.prompts == "text"

    @property
    def lost(self) -> int:
        """Lines that could not be written, ever."""
        return self._spilled + self._failed

    def add(self, request: TrafficLine) -> None:
        """Remember a line until it is taken."""
        if self._path is None:
            return
        if len(self._waiting) < _MOST:
            self._waiting.append(request)
        else:
            self._spilled += 1

    def take(self) -> list[TrafficLine]:
        """Take the lines that wait, to be written."""
        lines, self._waiting = self._waiting, []
        return lines

    def write(self, lines: Sequence[TrafficLine]) -> None:
        """Write lines. A disk that refuses costs the lines, not the service: see ``error`` and ``lost``."""
        if self._path is None:
            return
        with self._writing:
            done = 0
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                while done < len(lines):
                    done += self._append(self._path, lines[done:])
            except OSError as error:
                self._failed += len(lines) - done
                self.error = error.strerror or type(error).__name__
            else:
                self.error = ""

    def _append(self, path: Path, lines: Sequence[TrafficLine]) -> int:
        """Write the lines that the file has room for, all or none; returns how many. Without room it is rotated."""
        with path.open("ab", buffering=0) as file:
            if not self._whole:
                self._mend(path, file.fileno())
            size = full = os.fstat(file.fileno()).st_size
            lost, kept = self.lost, list[bytes]()
            for line in lines:
                gone = 0 if kept else lost - self._reported
                data = json.dumps(line.model_dump() | {"lost_before": gone}).encode() + b"\n"
                if full and full + len(data) > self._limits.max_bytes:
                    break
                kept.append(data)
                full += len(data)
            if kept:
                self._put(file.fileno(), b"".join(kept), size)
                self._reported = lost
        if not kept:
            self._rotate(path)
        return len(kept)

    def _put(self, file: int, data: bytes, size: int) -> None:
        """Write all of ``data`` or nothing: what a full disk took of it is cut off again."""
        left = memoryview(data)
        try:
            while left:
                left = left[os.write(file, left) :]
        except OSError:
            self._whole = False
            with suppress(OSError):
                os.ftruncate(file, size)
            raise

    def _mend(self, path: Path, file: int) -> None:
        """Cut off half a line that a killed guard left."""
        status = os.fstat(file)
        if stat.S_ISREG(status.st_mode) and status.st_size:
            with path.open("rb") as written:
                written.seek(-1, os.SEEK_END)
                if written.read() != b"\n":
                    written.seek(0)
                    os.ftruncate(file, written.read().rfind(b"\n") + 1)
                    self._failed += 1
        self._whole = True

    def _rotate(self, path: Path) -> None:
        for i in range(self._limits.keep, 0, -1):
            older = path.with_name(f"{path.name}.{i}")
            younger = path if i == 1 else path.with_name(f"{path.name}.{i - 1}")
            if younger.exists():
                younger.replace(older)
