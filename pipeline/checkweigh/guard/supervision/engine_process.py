"""One run of the engine process that the guard serves: kept by ``keeper``, with its log, its memory and its end."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from contextlib import suppress

import psutil

from checkweigh.engines.processes import container, keeper
from checkweigh.engines.processes.kept_process import RunLog, exit_cause
from checkweigh.engines.vllm.server_launch import LaunchPlan

_TAIL = 20  # lines
_START_S = 10.0  # for the keeper to report the process id


class EngineProcess:
    """A started process, in a group of its own; the kernel ends it and all it started when we go."""

    def __init__(self, plan: LaunchPlan, process: asyncio.subprocess.Process, log: RunLog, pid: int) -> None:
        self.plan = plan
        self.pid = pid
        self._keeper = process
        self._log = log
        self._first: psutil.Process | None = None  # of the engine's processes
        self.ended = asyncio.ensure_future(self._end())

    @classmethod
    async def start(cls, plan: LaunchPlan, grace_s: float) -> EngineProcess:
        """Start it; ``grace_s`` lies between SIGTERM and SIGKILL when it is stopped. OSError when it cannot be."""
        log = RunLog(plan.log)
        with plan.log.open("ab") as stderr:
            process = await asyncio.create_subprocess_exec(
                *keeper.command_line(plan.argv, grace_s=grace_s, cleanup=plan.cleanup),
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=stderr,
                env=dict(plan.environment), start_new_session=True,
            )  # fmt: skip
        assert process.stdout is not None
        try:
            async with asyncio.timeout(_START_S):
                message = json.loads(await process.stdout.readline())
            return cls(plan, process, log, int(message["pid"]))
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
        """Send SIGKILL: a stopped process dies of it too. The keeper ends what it started."""
        if self.alive:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)

    async def stop(self) -> None:
        """Send SIGTERM, then SIGKILL; returns when the process has ended."""
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
        return f"was {exit_cause(code)}" if code < 0 else exit_cause(code)

    def text(self) -> str:
        """All that the process has logged."""
        return self._log.text()

    def tail(self) -> str:
        """The last lines it has logged."""
        return self._log.tail(_TAIL)
