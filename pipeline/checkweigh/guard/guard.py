"""The parts put together: arms, desk, surface, alarms; and their life from start to drained."""

from __future__ import annotations

import asyncio
import math
import os
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from socket import socket

import aiohttp

from checkweigh.engines.http.client import Endpoint
from checkweigh.guard.app import GuardApp
from checkweigh.guard.arm import Arm
from checkweigh.guard.breaker import State
from checkweigh.guard.guard_metrics import Metrics
from checkweigh.guard.guard_policy import TIERS, GuardPolicy
from checkweigh.guard.host_gauges import Host, Reading
from checkweigh.guard.http.client_keys import Keys
from checkweigh.guard.http.listener import listener
from checkweigh.guard.http.request_schema import Bounds
from checkweigh.guard.request_handler import Desk, Visit
from checkweigh.guard.routing import Arm as ArmName
from checkweigh.guard.routing import Router
from checkweigh.guard.supervision.engine_process import Plan
from checkweigh.guard.traffic_log import Log
from checkweigh.monitors.decaying_mean import DecayingMean
from checkweigh.monitors.exceedance import ExceedanceMonitor
from checkweigh.monitors.failures import FailureMonitor
from checkweigh.monitors.latency import LatencyMonitor
from checkweigh.progress import Say

Source = Callable[[], Plan] | Endpoint
_SETTLED_S = 5.0  # after a failure it is known whether the engine has died of it
_APART_S = 1.0  # failures within are one
_BREAKER = {State.CLOSED: 0, State.HALF_OPEN: 1, State.OPEN: 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What is served, and how. With a ``candidate``, ``share`` of sessions or, with ``shadow``, copies go to it."""

    policy: GuardPolicy
    bounds: Bounds
    slots: int
    baseline: Source
    candidate: Source | None = None
    share: float = 0.0
    shadow: bool = False
    norm_p99_s: float | None = None  # time to first token that the gate stored
    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    read_host: Callable[[], Reading] | None = None  # a fake one, in tests


class Guard:
    """One guarded service."""

    def __init__(self, setup: Setup, say: Say) -> None:
        policy = setup.policy
        self._setup = setup
        self._say = say
        self.arms: dict[ArmName, Arm] = {"baseline": self._arm("baseline", setup.baseline)}
        if setup.candidate is not None:
            self.arms["candidate"] = self._arm("candidate", setup.candidate)
        self.router = Router(candidate_share=setup.share, shadow=setup.shadow, salt=policy.routing.salt)
        self.metrics = Metrics()
        self.log = Log(policy.traffic)
        self.desk = Desk(policy, self.arms, self.router, setup.bounds, self.metrics, self.log, self._heard)
        self.app = GuardApp(self.desk, Keys(policy.surface, setup.environment), self._gauges, say)
        self._begin_comparison()
        self._usual_pace = DecayingMean()  # of the baseline, as are the first tokens: streams, in one piece
        self._usual = {stream: DecayingMean() for stream in (True, False)}
        norm = policy.monitor.ttft_p99_s or setup.norm_p99_s
        self.beyond = None if norm is None else ExceedanceMonitor(
            threshold_s=norm * policy.monitor.ratio, alpha=policy.monitor.alpha
        )  # fmt: skip
        self._hooks: set[asyncio.Task[None]] = set()
        self._read_host = setup.read_host or Host().read
        self._tasks: list[asyncio.Task[None]] = []
        self._writing: asyncio.Future[None] | None = None
        self.draining = asyncio.Event()

    def _begin_comparison(self) -> None:
        """Of the arms, anew: what was found before a revival is forgotten."""
        own, share = self._setup.policy.routing, 0.5 if self._setup.shadow else self._setup.share
        self._revivals = self.router.revivals
        # What failed: at, arm, session, trips of the breakers when it was sent.
        self._failed: deque[tuple[float, ArmName, str, int]] = deque()
        self._counted = -math.inf  # when the last that counted did
        self._blind: float | None = None  # since when nothing is known of the candidate
        self._fails = FailureMonitor(share=share, margin=own.margin, alpha=own.alpha)
        self._slower = {
            name: LatencyMonitor(margin=own.margin, alpha=own.alpha / 2, least=own.min_requests)
            for name in ("ttft", "tpot")
        }
        if (candidate := self.arms.get("candidate")) is not None:
            candidate.breaker.again(time.monotonic())

    def _arm(self, name: ArmName, source: Source) -> Arm:
        def say(line: str) -> None:
            self._say(line if self._setup.candidate is None else f"{name}: {line}")

        return Arm(name, self._setup.policy, source, say, slots=self._setup.slots)

    async def run(self, bound: socket) -> None:
        """Serve until ``drain`` is called, then finish what has begun, stop the engines and return."""
        server = listener(self.app, self._setup.policy.surface)
        self._tasks = [asyncio.ensure_future(arm.run()) for arm in self.arms.values()]
        self._tasks += [asyncio.ensure_future(self._watch_host()), asyncio.ensure_future(self._flush())]
        serving = asyncio.ensure_future(server.serve(sockets=[bound]))
        asked = asyncio.ensure_future(self.draining.wait())
        try:
            await asyncio.wait((asked, serving, *self._tasks), return_when=asyncio.FIRST_COMPLETED)
            for task in self._tasks:
                if task.done() and not task.cancelled() and task.exception() is not None:
                    task.result()  # a watcher that died is a fault of the guard: never serve unwatched
            await self._drained()
        finally:
            asked.cancel()
            server.should_exit = True
            await self._close()
            await serving

    def drain(self) -> None:
        """New requests get 503 from now on."""
        if not self.draining.is_set():
            self._say("draining: new requests get 503, running ones are finished")
        self.desk.draining = True
        for arm in self.arms.values():
            arm.draining = True
        self.draining.set()

    async def _drained(self) -> None:
        """Wait for what is inside, at most the policy's time; not for shadows."""
        await self.desk.close()
        end = time.monotonic() + self._setup.policy.supervision.drain_s
        while (
            any(arm.gate.inside or len(arm.gate.queues) for arm in self.arms.values())
            and time.monotonic() < end
        ):
            await asyncio.sleep(0.05)
        left = sum(arm.gate.inside for arm in self.arms.values())
        self._say("drained" if not left else f"{left} requests were still running after the drain's time")

    async def _close(self) -> None:
        await self.desk.close()
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
            if (now := reading.swap_bytes > 0) and not swapping:
                self._say(f"the host swaps ({reading.swap_bytes / 1e6:.1f} MB/s): latency will spike")
            swapping = now
            self._gone()
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

    def _heard(self, visit: Visit) -> None:
        """Every finished visit: the alarms."""
        if "candidate" in self.arms:
            self._compare(visit)
        # The norm is of first tokens: a reply in one piece has none.
        if self.beyond is not None and visit.route.served == "baseline" and visit.asked.stream:
            self._deviates(self.beyond, visit)

    def _compare(self, visit: Visit) -> None:
        """What both arms' engines failed, and what they let clients wait."""
        if self._revivals != self.router.revivals:
            self._begin_comparison()
        if self.router.killed or visit.route.revivals != self._revivals:
            return
        if visit.route.shadow and visit.shadow is None:
            return  # it has no copy: copies are of quiet times only
        if visit.route.served != visit.route.assigned:
            return  # its own arm was away
        arm, now = visit.route.served, time.monotonic()
        self._count(visit, now)
        if self._failing(now):
            self._switch_off(self._fails.fired)
            return
        first, paced = visit.waits_s
        usual_first, usual_pace = self._usual[visit.asked.stream], self._usual_pace
        if first is not None and visit.first is None:
            # Who leaves before there could be a token says nothing. Else more than the margin, or a patience just above
            # what the baseline takes would hide any slowness.
            beyond = first * math.exp(1.5 * self._setup.policy.routing.margin)
            first = beyond if usual_first.less_than(first) else None
        elif first is not None and arm == "baseline":
            usual_first.add(first)
        if paced is not None and visit.given_up and visit.tokens < 2:
            paced = paced if usual_pace.less_than(paced) else None  # nor who leaves with the first
        elif paced is not None and arm == "baseline":
            usual_pace.add(paced)
        for (name, watch), value in zip(self._slower.items(), (first, paced), strict=True):
            if value is not None and watch.add(arm, value, now=now, took=now - visit.arrived):
                self._switch_off(f"{name} {watch.fired}")
                return

    def _count(self, visit: Visit, now: float) -> None:
        """What was failed; of a request and its copy, what one of them was."""
        both = (visit, visit.twin) if visit.twin is not None else (visit,)
        if not all(one.over and (one.failed or one.outcome == "ok") and not one.degraded for one in both):
            return
        failed = [one for one in both if one.failed]
        if len(failed) == 1 and (visit.quiet or len(both) == 2):
            (one,) = failed
            self._failed.append((now, one.route.served, one.session, one.trips))
        elif not failed:
            self._fails.add(visit.route.served, visit.session, failed=False)

    def _failing(self, now: float) -> bool:
        """Whether what failed some time ago is reason to switch the candidate off.

        An engine that dies takes all with it that is inside: no independent failures, and the breaker's part, which has
        opened since. Of what fails within a second one counts, whichever arm's it is.
        """
        while self._failed and self._failed[0][0] + _SETTLED_S <= now:
            at, arm, session, trips = self._failed.popleft()
            if trips != self.desk.trips() or at - self._counted < _APART_S:
                continue
            self._counted = at
            if self._fails.add(arm, session, failed=True):
                return True
        return False

    def _gone(self) -> None:
        """A candidate that takes nobody for long, while the baseline does, gets no session and no copy any more."""
        arm, now = self.arms.get("candidate"), time.monotonic()
        if arm is None or self.router.killed:
            return
        baseline, long_s = self.arms["baseline"], self._setup.policy.breaker.open_max_s
        if self._revivals != self.router.revivals:
            self._begin_comparison()
        if not (blind := arm.saturation.blind(now)):
            self._blind = None
        elif self._blind is None:
            self._blind = now
        if arm.supervisor is not None and arm.supervisor.gave_up:
            self._switch_off("its engine stays down")
        elif not baseline.ready or now - baseline.breaker.opened < long_s:
            return  # for a cause that both may have
        elif arm.breaker.lasting:
            self._switch_off(f"its breaker stays open ({arm.breaker.reason})")
        elif self._blind is not None and now - self._blind >= long_s:
            self._switch_off(f"its {blind}")

    def _switch_off(self, why: str) -> None:
        self.router.kill(why)
        self._alarm(f"candidate switched off: {why}")

    def _deviates(self, beyond: ExceedanceMonitor, visit: Visit) -> None:
        """The baseline's first token, from the request's arrival; given up after the threshold, it was late."""
        if not (visit.outcome == "ok" or visit.given_up):
            return
        first = time.monotonic() - visit.arrived if visit.ttft_s is None else visit.ttft_s
        if visit.first is None and first <= beyond.threshold_s:
            return
        if beyond.add(first):
            self._alarm(
                f"p99 deviates from the gated baseline: {beyond.deviating}"
                if beyond.deviating else "p99 is within the gated baseline again"
            )  # fmt: skip

    def _alarm(self, line: str) -> None:
        """A log line, and the webhook where there is one; the metric is read from the state."""
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
        metrics.deviation.set(self.beyond is not None and bool(self.beyond.deviating))
        for name, arm in self.arms.items():
            gate, supervisor = arm.gate, arm.supervisor
            metrics.inside.labels(name).set(gate.inside)
            metrics.tokens.labels(name).set(gate.tokens)
            metrics.budget.labels(name).set(gate.budget)
            metrics.oldest_s.labels(name).set(gate.queues.oldest(now))
            metrics.ready.labels(name).set(arm.ready)
            metrics.saturated.labels(name).set(bool(arm.saturation.why(now)))
            metrics.breaker.labels(name).set(_BREAKER[arm.breaker.state])
            metrics.trips.labels(name).set(arm.breaker.trips)
            metrics.restarts.labels(name).set(0 if supervisor is None else supervisor.restarts)
            metrics.resident.labels(name).set(0 if supervisor is None else supervisor.resident)
            if arm.saturation.last is not None:
                metrics.kv.labels(name).set(arm.saturation.last.kv)
            for tier in TIERS:
                metrics.waiting.labels(name, tier).set(gate.queues.length(tier))
