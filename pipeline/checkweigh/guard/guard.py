"""The guard put together: arms, request handler, HTTP surface and monitors; from start to drained."""

from __future__ import annotations

import asyncio
import math
import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from socket import socket

import aiohttp

from checkweigh.engines.http.client import Endpoint
from checkweigh.engines.vllm.server_launch import LaunchPlan
from checkweigh.guard.app import GuardApp
from checkweigh.guard.arm import GuardedArm
from checkweigh.guard.breaker import BreakerState
from checkweigh.guard.guard_metrics import GuardMetrics
from checkweigh.guard.guard_policy import PRIORITY_TIERS, GuardPolicy
from checkweigh.guard.host_gauges import HostGauges, HostReading
from checkweigh.guard.http.client_keys import ClientKeys
from checkweigh.guard.http.listener import listener
from checkweigh.guard.http.request_schema import Bounds
from checkweigh.guard.request_handler import RequestHandler
from checkweigh.guard.routing import ArmName, Router
from checkweigh.guard.traffic_log import TrafficLog
from checkweigh.monitors.absence import AbsenceMonitor, ArmsState
from checkweigh.monitors.arm_comparison import ArmComparison
from checkweigh.monitors.exceedance import ExceedanceMonitor
from checkweigh.monitors.finished_request import FinishedRequest
from checkweigh.progress import Say

ArmSource = Callable[[], LaunchPlan] | Endpoint
_BREAKER = {BreakerState.CLOSED: 0, BreakerState.HALF_OPEN: 1, BreakerState.OPEN: 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardSetup:
    """What is served, and how. A ``candidate`` gets ``share`` (0 to 1) of sessions or, with ``shadow``, copies."""

    policy: GuardPolicy
    bounds: Bounds
    slots: int  # requests that an engine computes together
    baseline: ArmSource
    candidate: ArmSource | None = None
    share: float = 0.0
    shadow: bool = False
    norm_p99_s: float | None = None  # time to first token that the gate stored
    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    read_host: Callable[[], HostReading] | None = None  # a fake one, in tests


class Guard:
    """One guarded service: its arms, the way of requests through them, and what watches both."""

    def __init__(self, setup: GuardSetup, say: Say) -> None:
        policy = setup.policy
        self._setup = setup
        self._say = say
        self.arms: dict[ArmName, GuardedArm] = {"baseline": self._arm("baseline", setup.baseline)}
        if setup.candidate is not None:
            self.arms["candidate"] = self._arm("candidate", setup.candidate)
        self.router = Router(candidate_share=setup.share, shadow=setup.shadow, salt=policy.routing.salt)
        self.metrics = GuardMetrics()
        self.log = TrafficLog(policy.traffic)
        self.handler = RequestHandler(
            policy, self.arms, self.router, setup.bounds, self.metrics, self.log, self._on_finished
        )
        self.app = GuardApp(self.handler, ClientKeys(policy.surface, setup.environment), self._gauges, say)
        routing = policy.routing
        self.comparison = ArmComparison(
            share=0.5 if setup.shadow else setup.share,
            margin=routing.margin,
            alpha=routing.alpha,
            least=routing.min_requests,
        )
        self._absence = AbsenceMonitor(long_s=policy.breaker.open_max_s)
        self._revivals = self.router.revivals  # that the monitors know of
        norm = policy.monitor.ttft_p99_s or setup.norm_p99_s
        self.exceedance = None if norm is None else ExceedanceMonitor(
            threshold_s=norm * policy.monitor.ratio, alpha=policy.monitor.alpha
        )  # fmt: skip
        self._hooks: set[asyncio.Task[None]] = set()
        self._read_host = setup.read_host or HostGauges().read
        self._tasks: list[asyncio.Task[None]] = []
        self._writing: asyncio.Future[None] | None = None
        self.draining = asyncio.Event()

    def _arm(self, name: ArmName, source: ArmSource) -> GuardedArm:
        def say(line: str) -> None:
            self._say(line if self._setup.candidate is None else f"{name}: {line}")

        return GuardedArm(name, self._setup.policy, source, say, slots=self._setup.slots)

    async def run(self, bound: socket) -> None:
        """Serve until ``drain`` is called, then finish what has begun, stop the engines and return."""
        server = listener(self.app, self._setup.policy.surface)
        self._tasks = [asyncio.ensure_future(arm.run()) for arm in self.arms.values()]
        self._tasks += [asyncio.ensure_future(self._watch_host()), asyncio.ensure_future(self._flush())]
        serving = asyncio.ensure_future(server.serve(sockets=[bound]))
        drain_asked = asyncio.ensure_future(self.draining.wait())
        try:
            await asyncio.wait((drain_asked, serving, *self._tasks), return_when=asyncio.FIRST_COMPLETED)
            for task in self._tasks:
                if task.done() and not task.cancelled() and task.exception() is not None:
                    task.result()  # a watcher that died is a fault of the guard: never serve unwatched
            await self._drained()
        finally:
            drain_asked.cancel()
            server.should_exit = True
            await self._close()
            await serving

    def drain(self) -> None:
        """Refuse new requests with 503 from now on, and let ``run`` end."""
        if not self.draining.is_set():
            self._say("draining: new requests get 503, running ones are finished")
        self.handler.draining = True
        for arm in self.arms.values():
            arm.draining = True
        self.draining.set()

    async def _drained(self) -> None:
        """Wait for requests that are inside, at most the policy's time; not for shadows."""
        await self.handler.close()
        end = time.monotonic() + self._setup.policy.supervision.drain_s
        while (
            any(arm.admission.inside or len(arm.admission.queues) for arm in self.arms.values())
            and time.monotonic() < end
        ):
            await asyncio.sleep(0.05)
        left = sum(arm.admission.inside for arm in self.arms.values())
        self._say("drained" if not left else f"{left} requests were still running after the drain's time")

    async def _close(self) -> None:
        await self.handler.close()
        await asyncio.gather(*(arm.close() for arm in self.arms.values()), return_exceptions=True)
        for task in (*self._tasks, *self._hooks):
            task.cancel()
        await asyncio.gather(*self._tasks, *self._hooks, return_exceptions=True)
        if self._writing is not None:
            await self._writing
        self.log.write(self.log.take())

    async def _watch_host(self) -> None:
        swapping = False
        while True:
            reading = await asyncio.to_thread(self._read_host)
            for arm in self.arms.values():
                arm.read_memory(reading.free_share, reading.gpu_free_share)
            gpu = reading.gpu_free_share
            self.metrics.free.set(reading.free_share)
            self.metrics.gpu_free.set(math.nan if gpu is None else gpu)
            self.metrics.swap_rate.set(reading.swap_bytes)
            if (swaps := reading.swap_bytes > 0) and not swapping:
                self._say(f"the host swaps ({reading.swap_bytes / 1e6:.1f} MB/s): latency will spike")
            swapping = swaps
            self._look_for_candidate(time.monotonic())
            await asyncio.sleep(0.5)

    async def _flush(self) -> None:
        while True:
            await asyncio.sleep(0.2)
            if not (lines := self.log.take()):
                continue
            before = self.log.error
            self._writing = asyncio.ensure_future(asyncio.to_thread(self.log.write, lines))
            await asyncio.shield(
                self._writing
            )  # a disk that hangs holds back no request, a stop loses no line
            if (error := self.log.error) and not before:
                self._say(f"the traffic log cannot be written ({error}): lines are lost until it can")
            elif before and not error:
                self._say(f"the traffic log is written again; {self.log.lost} lines were lost so far")

    def _on_finished(self, request: FinishedRequest) -> None:
        """Show the monitors a request that is over, and do what they ask for."""
        if (
            self._compares(request.finished)
            and request.revivals == self._revivals
            and (why := self.comparison.add(request, trips=self.handler.trips()))
        ):
            self._switch_off(why)
        exceedance = self.exceedance
        if exceedance is not None and exceedance.add_first_token(request):
            self._alarm(
                f"p99 deviates from the gated baseline: {exceedance.deviating}"
                if exceedance.deviating else "p99 is within the gated baseline again"
            )  # fmt: skip

    def _compares(self, now: float) -> bool:
        """Whether there is a candidate that gets requests. One that was revived is compared from the start."""
        if (candidate := self.arms.get("candidate")) is None:
            return False
        if self._revivals != self.router.revivals:
            self._revivals = self.router.revivals
            self.comparison.restart()
            self._absence.restart()
            candidate.breaker.again(now)
        return not self.router.killed

    def _look_for_candidate(self, now: float) -> None:
        """A candidate that takes nobody for long, while the baseline does, gets no session and no copy any more."""
        if not self._compares(now):
            return
        candidate, baseline = self.arms["candidate"], self.arms["baseline"]
        state = ArmsState(
            gave_up=candidate.supervisor is not None and candidate.supervisor.gave_up,
            blind=candidate.saturation.blind(now),
            breaker_lasts=candidate.breaker.lasting,
            breaker_reason=candidate.breaker.reason,
            baseline_ready=baseline.ready_at(now),
            baseline_opened=baseline.breaker.opened,
        )
        if why := self._absence.look(state, now):
            self._switch_off(why)

    def _switch_off(self, why: str) -> None:
        self.router.kill(why)
        self._alarm(f"candidate switched off: {why}")

    def _alarm(self, line: str) -> None:
        """Say it, and post it to the webhook where there is one. The metric is read from the state."""
        self._say(f"ALARM: {line}")
        variable = self._setup.policy.monitor.webhook_env
        if variable is not None and (url := self._setup.environment.get(variable)):
            task = asyncio.ensure_future(self._post(url, line))
            self._hooks.add(task)
            task.add_done_callback(self._hooks.discard)

    async def _post(self, url: str, line: str) -> None:
        body = {"text": f"checkweigh: {line}", "candidate_weight": self.router.weight}
        timeout = aiohttp.ClientTimeout(total=5)
        for _ in range(3):
            with suppress(aiohttp.ClientError, TimeoutError, ValueError):
                async with (
                    aiohttp.ClientSession(timeout=timeout) as session,
                    session.post(url, json=body) as answer,
                ):
                    if answer.status < 300:
                        return
            await asyncio.sleep(0.5)
        self._say("the webhook could not be reached")

    def _gauges(self) -> None:
        metrics, now = self.metrics, time.monotonic()
        metrics.weight.set(self.router.weight)
        metrics.lost_lines.set(self.log.lost)
        metrics.alarm.set(bool(self.router.killed))
        metrics.deviation.set(self.exceedance is not None and bool(self.exceedance.deviating))
        for name, arm in self.arms.items():
            admission, supervisor = arm.admission, arm.supervisor
            metrics.inside.labels(name).set(admission.inside)
            metrics.tokens.labels(name).set(admission.tokens)
            metrics.budget.labels(name).set(admission.budget)
            metrics.oldest_s.labels(name).set(admission.queues.oldest(now))
            metrics.ready.labels(name).set(arm.ready)
            metrics.saturated.labels(name).set(bool(arm.saturation.why(now)))
            metrics.breaker.labels(name).set(_BREAKER[arm.breaker.state])
            metrics.trips.labels(name).set(arm.breaker.trips)
            metrics.restarts.labels(name).set(0 if supervisor is None else supervisor.restarts)
            metrics.resident.labels(name).set(0 if supervisor is None else supervisor.resident)
            if arm.saturation.last is not None:
                metrics.kv.labels(name).set(arm.saturation.last.kv)
            for tier in PRIORITY_TIERS:
                metrics.waiting.labels(name, tier).set(admission.queues.length(tier))
