"""The log of requests that ``canary`` reads: one JSON object a line, rotated by size.

A line is written for every request that named a served path, sheds included: an analysis by assigned arm must see
them. Lines wait in memory for a moment; what cannot be written is counted, and the next line says how many are gone.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Literal

from checkweigh.guard.policy import Tier as TierName
from checkweigh.guard.policy import Traffic
from checkweigh.guard.routing import Arm
from checkweigh.records.base import Record

Outcome = Literal["ok", "shed", "refused", "upstream_error", "timeout", "client_gone"]


class Request(Record):
    """One line. Times are seconds; ``at`` is the Unix time of arrival; None where it never came to that."""

    at: float
    id: str
    session: str  # hash of the session's key
    tier: TierName
    assigned: Arm
    served: Arm
    shadow: bool  # a copy whose answer nobody sees, beside the client's own line of the same id
    stream: bool
    outcome: Outcome
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
    """A digest that says nothing of the text but whether it is the same."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


class Log:
    """An append-only file and its rotated elders ``PATH.1`` (the youngest) to ``PATH.keep``."""

    def __init__(self, limits: Traffic) -> None:
        self._limits = limits
        self._path = None if limits.path is None else Path(limits.path)
        self._waiting: list[Request] = []
        self.lost = 0

    @property
    def wanted(self) -> bool:
        """Whether anything is logged."""
        return self._path is not None

    @property
    def texts(self) -> bool:
        """Whether prompts and replies are kept as they are."""
        return self.wanted and self._limits.prompts == "text"

    def add(self, request: Request) -> None:
        """Remember a line until the next ``flush``."""
        if self._path is not None:
            self._waiting.append(request)

    def flush(self) -> None:
        """Write what waits. A disk that refuses costs the lines, not the service."""
        if self._path is None or not self._waiting:
            return
        lines, self._waiting = self._waiting, []
        first = lines[0].model_copy(update={"lost_before": self.lost}) if self.lost else lines[0]
        data = "".join(json.dumps(line.model_dump()) + "\n" for line in (first, *lines[1:]))
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            if self._path.exists() and self._path.stat().st_size + len(data) > self._limits.max_bytes:
                self._rotate(self._path)
            with self._path.open("a", encoding="utf-8") as file:
                file.write(data)
        except OSError:
            self.lost += len(lines)
        else:
            self.lost = 0

    def _rotate(self, path: Path) -> None:
        for i in range(self._limits.keep, 0, -1):
            older = path.with_name(f"{path.name}.{i}")
            younger = path if i == 1 else path.with_name(f"{path.name}.{i - 1}")
            if younger.exists():
                younger.replace(older)
