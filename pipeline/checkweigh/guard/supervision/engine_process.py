"""One run of an engine's process: kept by ``engines.keeper``, with its log, its memory and its end."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from checkweigh.engines.http.client import Endpoint
from checkweigh.engines.processes import container, keeper

_TAIL = 20
_START_S = 10.0


async def _unchecked(endpoint: Endpoint, log: str) -> None:
    """Nothing is asked of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How one run is started and where it then answers. ``env`` is all it sees of the environment.

    ``check`` is called once it is healthy, with what it has logged; it raises PinMismatch for what is not as pinned.
    """

    argv: tuple[str, ...]
    env: Mapping[str, str]
    endpoint: Endpoint
    log: Path
    check: Callable[[Endpoint, str], Awaitable[None]] = _unchecked
    last: tuple[str, ...] = ()  # run after its end: a container outlives its client
    container: str | None = None  # its name; ``argv`` is then the client's


class Child:
    """A started process, in a group of its own; the kernel ends it and all it started when we go."""

    def __init__(self, plan: Plan, process: asyncio.subprocess.Process, log_from: int, pid: int) -> None:
        self.plan = plan
        self.pid = pid
        self._keeper = process
        self._log_from = log_from
        self._first: psutil.Process | None = None  # of the engine's processes
        self.ended = asyncio.ensure_future(self._end())

    @classmethod
    async def start(cls, plan: Plan, grace_s: float) -> Child:
        """Start it; ``grace_s`` lies between SIGTERM and SIGKILL when it is stopped. OSError when it cannot be."""
        plan.log.parent.mkdir(parents=True, exist_ok=True)
        with plan.log.open("ab") as log:
            at = log.tell()
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-I", keeper.__file__, str(grace_s), json.dumps(plan.last), *plan.argv,
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=log, env=dict(plan.env),
                start_new_session=True,
            )  # fmt: skip
        assert process.stdout is not None
        try:
            async with asyncio.timeout(_START_S):
                said = json.loads(await process.stdout.readline())
            return cls(plan, process, at, int(said["pid"]))
        except (TimeoutError, ValueError, KeyError) as error:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()
            raise OSError("its command cannot be run") from error

    async def _end(self) -> int | None:
        """The exit code, once it and everything it started has ended; None when that was not seen."""
        assert self._keeper.stdout is not None
        code: int | None = None
        while line := await self._keeper.stdout.readline():
            with suppress(ValueError):
                code = json.loads(line).get("code", code)
        await self._keeper.wait()
        return code

    @property
    def alive(self) -> bool:
        """Whether it has not ended."""
        return not self.ended.done()

    def kill(self) -> None:
        """SIGKILL: a stopped process dies of it too. The keeper sees to what it started."""
        if self.alive:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)

    async def stop(self) -> None:
        """SIGTERM, then SIGKILL; returns when it has ended."""
        assert self._keeper.stdin is not None
        self._keeper.stdin.close()
        await asyncio.wait((self.ended,))

    def resident(self) -> int:
        """Bytes of memory of the engine's process and all below it; 0 before it is seen and once it has ended."""
        total = 0
        with suppress(psutil.Error):
            for process in self._processes():
                with suppress(psutil.Error):
                    total += process.memory_info().rss
        return total

    def _processes(self) -> list[psutil.Process]:
        """The engine's. A container's are not below its client. psutil.Error: they have ended."""
        name = self.plan.container
        if self._first is None:  # asked once: that costs a process
            self._first = (
                psutil.Process(self.pid) if name is None else next(iter(container.processes(name)), None)
            )
        return [] if self._first is None else [self._first, *self._first.children(recursive=True)]

    def cause(self) -> str:
        """In words, how it ended."""
        if not self.ended.done():
            return "still runs"
        code = self.ended.result()
        if code is None:
            return "ended unseen"
        if code < 0:
            hint = ", likely out of memory" if -code == signal.SIGKILL else ""
            return f"was killed by signal {-code} ({signal.Signals(-code).name}){hint}"
        return f"exited with code {code}" + (" although nobody asked it to" if code == 0 else "")

    def text(self) -> str:
        """All it has logged."""
        with suppress(OSError), self.plan.log.open("rb") as file:
            file.seek(self._log_from)
            return file.read().decode("utf-8", "replace")
        return ""

    def tail(self) -> str:
        """Its last words."""
        return "\n".join(deque(self.text().splitlines(), maxlen=_TAIL))
