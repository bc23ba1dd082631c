"""Keeps one engine running: start, check, warm up, watch, restart after any exit that nobody asked for, stop."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from enum import Enum
from typing import Protocol

import aiohttp

from checkweigh.engines.host_memory import GIB
from checkweigh.engines.http.client import Endpoint
from checkweigh.engines.vllm.server_launch import LaunchPlan
from checkweigh.errors import CheckweighError, EngineError, PinMismatch
from checkweigh.guard.guard_policy import GuardPolicy
from checkweigh.guard.supervision.engine_process import EngineProcess
from checkweigh.guard.supervision.warmup import WarmupFailed, complete, warm_up
from checkweigh.guard.supervision.watchdog import HeartbeatWatch, RestartBackoff
from checkweigh.progress import Say

_POLL_S = 0.25  # between two looks at a running process
_MEMORY_S = 1.0  # between two looks at its memory and its /health, which cost some milliseconds
_HEALTH_S = 2.0
_CHECK_S = 30.0  # to say what it is, once it is healthy
_END_S = 2.0  # for a process that refuses connections to have ended, so that its exit code is the cause
_REFUSES = "refuses connections"


class Phase(Enum):
    """The state of an engine's process. Only READY takes requests."""

    STARTING = "starting"
    WARMING = "warming up"
    READY = "ready"
    DOWN = "down, to be restarted"
    FAILED = "failed, it stays down"
    STOPPING = "stopping"
    STOPPED = "stopped"


class SupervisedArm(Protocol):
    """The arm whose engine is supervised: it is told of the engine's state, and asked what runs in it."""

    def up(self, endpoint: Endpoint) -> None:
        """The engine is warm and ready at ``endpoint``."""

    def down(self, why: str) -> None:
        """The engine is not ready any more; called at once when the process ends or hangs."""

    def longest_prompt(self) -> int:
        """Tokens of the longest prompt in the engine that has brought no token yet."""


class Supervisor:
    """Runs until ``stop``. ``plan`` is called again for every start, so that a port or key is never reused."""

    def __init__(
        self,
        plan: Callable[[], LaunchPlan],
        arm: SupervisedArm,
        policy: GuardPolicy,
        say: Say,
        *,
        seed: int = 0,
    ) -> None:
        self._plan = plan
        self._arm = arm
        self._limits = policy.supervision
        self._policy = policy
        self._say = say
        self._backoff = RestartBackoff(policy.supervision, random.Random(seed))
        self._stopping = asyncio.Event()
        self._doubted = asyncio.Event()
        self.watch = HeartbeatWatch(policy.supervision)
        self.phase = Phase.STARTING
        self.process: EngineProcess | None = None
        self.resident = 0
        self._memory_read_at = 0.0
        self.last_cause = ""
        self._was_ready = False
        self._ready_s = 0.0  # of all processes that have ended
        self.gave_up = False

    @property
    def restarts(self) -> int:
        """Restarts so far."""
        return self._backoff.restarts

    async def run(self) -> None:
        """Start, watch, restart; returns after ``stop`` or when it gave up.

        PinMismatch: the first engine that came up is not what is pinned.
        """
        while not self._stopping.is_set():
            try:
                self.last_cause = await self._run_once()
            except PinMismatch as error:  # another start would serve the same
                if not self._was_ready:
                    raise
                self._give_up(f"is not what is pinned: {error}")
                return
            if self._stopping.is_set():
                break
            self._arm.down(f"the engine is down: {self.last_cause}")
            wait = self._backoff.crashed(self._ready_s)
            tail = "" if self.process is None else self.process.tail()
            if wait is None:
                times = f"{self._limits.crashes} times within {self._limits.crash_window_s:g} s of readiness"
                self._give_up(f"{self.last_cause}; {times}: it stays down\n{tail}")
                return
            self.phase = Phase.DOWN
            self._say(f"the engine {self.last_cause}; restart in {wait:.1f} s\n{tail}")
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), wait)
        self.phase = Phase.STOPPED

    async def stop(self) -> None:
        """End the process: SIGTERM, then SIGKILL to its group. Draining is the caller's."""
        self._stopping.set()
        self.phase = Phase.STOPPING
        if self.process is not None:
            await self.process.stop()
        self.phase = Phase.STOPPED

    def doubt(self) -> None:
        """A request failed: look at the engine now, not in a while."""
        self._doubted.set()

    def _give_up(self, why: str) -> None:
        self.phase, self.gave_up = Phase.FAILED, True
        self.last_cause = why
        self._arm.down(f"the engine {why}")
        self._say(f"the engine {why}")

    async def _run_once(self) -> str:
        """Run one process from start to end; returns how it ended."""
        self.phase = Phase.STARTING
        try:
            plan = await asyncio.to_thread(self._plan)  # it may ask a docker, or a Python that imports vLLM
            if self._stopping.is_set():
                return "was stopped before it was started"
            self.process = process = await EngineProcess.start(plan, self._limits.kill_s)
        except PinMismatch:
            raise
        except (OSError, CheckweighError) as error:
            self.process = None
            return f"cannot be started ({error})"
        try:
            why = await self._serve(process)
            if self.phase is Phase.READY:  # told before it has ended, which takes a while: send nobody there
                self.phase = Phase.DOWN
                self._arm.down(f"the engine is down: {why}")
            if why == _REFUSES:
                await asyncio.wait((process.ended,), timeout=_END_S)
            return why if process.alive or why != _REFUSES else process.cause()
        finally:
            self.phase = Phase.DOWN
            process.kill()
            await asyncio.wait((process.ended,))

    async def _serve(self, process: EngineProcess) -> str:
        """Bring the process up and watch it; returns why it must end, or how it ended."""
        endpoint = process.plan.endpoint
        if (
            (why := await self._within(process, self._healthy(endpoint), self._limits.start_s, "to become healthy"))
            or (why := await self._checked(process))
            or (why := await self._warmed(process))
        ):  # fmt: skip
            return why
        self.phase, self._was_ready = Phase.READY, True
        self.watch.started(began := time.monotonic())
        self._arm.up(endpoint)
        self._say("the engine is ready")
        try:
            while True:
                await self._pause(process)
                if not process.alive:
                    return process.cause()
                if why := await self._failure(process):
                    return why
        finally:
            self._ready_s += time.monotonic() - began

    async def _pause(self, process: EngineProcess) -> None:
        """Until the next look: at once when it ends or is doubted."""
        doubt = asyncio.ensure_future(self._doubted.wait())
        try:
            await asyncio.wait((process.ended, doubt), timeout=_POLL_S, return_when=asyncio.FIRST_COMPLETED)
        finally:
            doubt.cancel()

    async def _checked(self, process: EngineProcess) -> str:
        """How it failed to say what it is, empty when it did not fail. PinMismatch: it is not what is pinned."""
        check = process.plan.check(process.plan.endpoint, process.text())
        try:
            return await self._within(process, check, _CHECK_S, "to say what it is")
        except EngineError as error:
            return f"does not say what it is: {error}"

    async def _warmed(self, process: EngineProcess) -> str:
        """How it failed to warm up; empty when it did not."""
        self.phase = Phase.WARMING
        limits = self._policy.warmup
        try:
            return await self._within(
                process, warm_up(process.plan.endpoint, limits), limits.timeout_s, "to warm up"
            )
        except WarmupFailed as error:
            return f"did not warm up: {error}"

    async def _within(self, process: EngineProcess, work: Awaitable[None], seconds: float, what: str) -> str:
        """Wait for ``work``; how the process failed otherwise, empty when it did not."""
        task = asyncio.ensure_future(work)
        await asyncio.wait((task, process.ended), timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        try:
            if task.done():
                task.result()
                return ""
            return process.cause() if not process.alive else f"took more than {seconds:g} s {what}"
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError, WarmupFailed):
                await task

    async def _healthy(self, endpoint: Endpoint) -> None:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=2)) as session:
            while True:
                with suppress(aiohttp.ClientError, TimeoutError):
                    async with session.get(endpoint.root + "/health") as answer:
                        if answer.status == 200:
                            return
                await asyncio.sleep(0.1)

    async def _failure(self, process: EngineProcess) -> str:
        """Why a living process must end: it says so itself, a hang that a probe confirms, or too much memory."""
        due = (now := time.monotonic()) - self._memory_read_at >= _MEMORY_S
        if due or self._doubted.is_set():
            self._doubted.clear()
            if why := await health_failure(process.plan.endpoint):
                return why
        if due:
            self._memory_read_at, self.resident = now, await asyncio.to_thread(process.resident)
        ceiling = self._policy.memory.ceiling_gib
        if ceiling is not None and self.resident > ceiling * GIB:
            return f"held {self.resident / GIB:.2f} GiB, above its ceiling of {ceiling:g}"
        if not self.watch.suspect(time.monotonic(), longest_prompt=self._arm.longest_prompt()):
            return ""
        if await probe(process.plan.endpoint, self._limits.probe_s):
            self.watch.delivered(time.monotonic())
            return ""
        if not process.alive:
            return process.cause()
        if not self.watch.suspect(time.monotonic(), longest_prompt=0):
            return ""  # it moved while the probe waited its turn: busy, not hung
        return f"hung: no step for {self._limits.heartbeat_s:g} s and no answer to a probe"


async def health_failure(endpoint: Endpoint) -> str:
    """Why the engine will never serve again, as /health shows it.

    Empty when it may serve, or does not answer in time: it may be busy.

    vLLM answers 503 once its engine core has died, and for up to five seconds goes on to take requests, which all fail.
    """
    timeout = aiohttp.ClientTimeout(total=_HEALTH_S)
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.get(endpoint.root + "/health") as answer,
        ):
            return "reports that it is dead (503 at /health)" if answer.status == 503 else ""
    except aiohttp.ClientConnectorError as error:
        return _REFUSES if isinstance(error.os_error, ConnectionRefusedError) else ""
    except (aiohttp.ClientError, TimeoutError):
        return ""


async def probe(endpoint: Endpoint, seconds: float) -> bool:
    """Whether one token comes in time."""
    try:
        await complete(endpoint, 8, 1, seconds)
    except WarmupFailed:
        return False
    return True
