"""One arm: an engine's endpoint with its admission, breaker, saturation and supervisor."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from contextlib import suppress

import aiohttp

from checkweigh.engines.http.client import Endpoint
from checkweigh.engines.vllm.server_launch import LaunchPlan
from checkweigh.engines.vllm.server_metrics import read_scrape
from checkweigh.guard.admission.kv_admission import KvAdmission
from checkweigh.guard.admission.queueing import QueueEntry, Shed
from checkweigh.guard.admission.saturation import MemoryPressure, Saturation
from checkweigh.guard.breaker import Breaker, BreakerState, Permit
from checkweigh.guard.guard_policy import GuardPolicy, PriorityTier
from checkweigh.guard.http.request_schema import ValidatedRequest
from checkweigh.guard.http.upstream import UpstreamError
from checkweigh.guard.routing import ArmName
from checkweigh.guard.supervision.supervisor import Phase, Supervisor
from checkweigh.monitors.decaying_mean import DecayingMean
from checkweigh.progress import Say

KEEPALIVE_S = 2.0  # below the five seconds after which uvicorn, and so vLLM, closes an idle connection
_DEFAULT_KV = 16_384  # until the engine says, where nothing else does


class GuardedArm:
    """Admission, and everything that watches the engine behind it. Run ``run`` as a task, and ``close`` at the end."""

    def __init__(
        self, name: ArmName, policy: GuardPolicy, plan: Callable[[], LaunchPlan] | Endpoint, say: Say,
        *, slots: int,
    ) -> None:  # fmt: skip
        limits = policy.admission
        self.name = name
        self.policy = policy
        self.admission = KvAdmission(
            limits, budget=self._budget(policy, limits.kv_tokens or _DEFAULT_KV), slots=limits.slots or slots
        )
        self.breaker = Breaker(policy.breaker)
        self.saturation = Saturation(policy.saturation)
        self.memory = MemoryPressure(policy.memory)
        self.endpoint: Endpoint | None = plan if isinstance(plan, Endpoint) else None
        self.supervisor = None if isinstance(plan, Endpoint) else Supervisor(plan, self, policy, say)
        self.degraded = False
        self.per_update = DecayingMean()  # tokens in an update of a stream: speculation sends several at once
        self.draining = False
        self._say = say
        self._silent: set[QueueEntry] = set()  # inside, without a token yet
        self._prompts: dict[QueueEntry, int] = {}
        self._session: aiohttp.ClientSession | None = None
        if self.supervisor is not None:
            self.breaker.hold("process", "the engine is starting")

    @staticmethod
    def _budget(policy: GuardPolicy, kv_tokens: int) -> int:
        return max(1, int(kv_tokens * (1 - policy.admission.headroom)))

    # What the supervisor reports and asks.

    def up(self, endpoint: Endpoint) -> None:
        """Take requests at ``endpoint``. No probe is needed: the engine was warmed up."""
        self.endpoint = endpoint
        self.saturation.reset()
        self.breaker.reset("process")

    def down(self, why: str) -> None:
        """Refuse everything, and answer those who wait."""
        self.breaker.hold("process", why)
        self.admission.flush(Shed(503, "the engine is down", self.breaker.retry_after(time.monotonic())))

    def longest_prompt(self) -> int:
        """Tokens of the longest prompt that has brought no token yet."""
        return max((self._prompts[entry] for entry in self._silent), default=0)

    # What the request path reports and asks.

    @property
    def session(self) -> aiohttp.ClientSession:
        """The connections to the engine."""
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEPALIVE_S),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=self.policy.timeouts.connect_s),
                auto_decompress=False, trust_env=False, read_bufsize=1 << 18,
            )  # fmt: skip
        return self._session

    @property
    def ready(self) -> bool:
        """Whether a request sent now has a chance."""
        return self.ready_at(time.monotonic())

    def ready_at(self, now: float) -> bool:
        """Whether a request has a chance at ``now``, of the clock that the breaker was given."""
        up = self.supervisor is None or self.supervisor.phase is Phase.READY
        return up and not self.draining and not self.breaker.shut(now)

    def why_not(self) -> str:
        """Why the arm is not ready; empty when it is."""
        if self.draining:
            return "draining"
        if self.supervisor is not None and self.supervisor.phase is not Phase.READY:
            return f"the engine is {self.supervisor.phase.value}"
        return "" if self.ready else f"the breaker is open: {self.breaker.reason}"

    async def admit(
        self, entry_of: Callable[[Callable[[Shed | None], None]], QueueEntry]
    ) -> tuple[QueueEntry, Shed | None]:
        """Wait for a place; returns the entry, with the refusal where it got none. Once let in, ``leave`` must follow.

        Cancelled while it waits, the entry is withdrawn.
        """
        settled: asyncio.Future[Shed | None] = asyncio.get_running_loop().create_future()

        def settle(shed: Shed | None) -> None:
            if not settled.done():
                settled.set_result(shed)

        entry = entry_of(settle)
        self.admission.offer(entry, time.monotonic())
        try:
            return entry, await settled
        except asyncio.CancelledError:
            # It may have been let in between the cancellation and this line: only the books know.
            self.admission.withdraw(entry, time.monotonic())
            raise

    def sent(self, entry: QueueEntry, prompt_tokens: int) -> None:
        """Note that a request goes to the engine."""
        self._silent.add(entry)
        self._prompts[entry] = prompt_tokens

    def delivered(self, entry: QueueEntry, tokens: int) -> None:
        """Note tokens that came back."""
        self._silent.discard(entry)
        self.admission.produced(entry, tokens)
        self.saturation.delivered()
        if self.supervisor is not None:
            self.supervisor.watch.delivered(time.monotonic())

    def leave(self, entry: QueueEntry, *, whole: bool) -> None:
        """Give back the place. ``whole``: the reply ended by itself, so that its length counts."""
        self._silent.discard(entry)
        self._prompts.pop(entry, None)
        self.admission.leave(entry, time.monotonic(), whole=whole)

    def takes(self, tier: PriorityTier, request: ValidatedRequest) -> bool:
        """Whether a request would be sent at once and as it is."""
        expected = self.admission.outputs.expected(request.max_tokens)
        entry = QueueEntry(
            tier=tier, cost=request.prompt_tokens + expected, scoring=request.scoring, asked=0.0, deadline=math.inf,
            settle=lambda shed: None, expected=expected,
        )  # fmt: skip
        well = self.ready and self.breaker.state is BreakerState.CLOSED
        return well and not self.degraded and self.admission.takes(entry)

    def permit(self) -> Permit | None:
        """The breaker's permit to send one request; None: it is open."""
        return self.breaker.allow(time.monotonic())

    def failed(self, permit: Permit, error: UpstreamError) -> None:
        """Note that the engine failed a request. Unless it was only late, its supervisor looks at it now."""
        self.breaker.failed(permit, time.monotonic(), str(error))
        if self.supervisor is not None and error.status != 504:
            self.supervisor.doubt()

    # Watching.

    async def run(self) -> None:
        """Supervise, scrape and turn the queues until cancelled."""
        work = [self._scrape(), self._tick()]
        if self.supervisor is not None:
            work.append(self.supervisor.run())
        await asyncio.gather(*work)

    async def close(self) -> None:
        """Stop the engine and drop its connections."""
        if self.supervisor is not None:
            await self.supervisor.stop()
        if self._session is not None:
            await self._session.close()

    def read_memory(self, free_share: float, gpu_free_share: float | None) -> None:
        """Hold the breaker open while memory is critical."""
        was = self.memory.critical
        if self.memory.read(free_share, gpu_free_share):
            if not was:
                self._say(f"memory is critical ({free_share:.1%} of the host free): no new requests")
            self.breaker.hold("memory", "memory is critical")
            self.admission.flush(Shed(503, "memory is critical", 5))
        elif was:
            self._say("memory is no longer critical")
            self.breaker.release("memory", time.monotonic())

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(0.05)
            now = time.monotonic()
            full = bool(self.saturation.why(now))
            if full != self.admission.paused:
                self._say(f"saturated: {self.saturation.why(now)}" if full else "no longer saturated")
                self.admission.paused = full
            self.admission.turn(now)
            limits, share = self.policy.degradation, self.admission.share()
            if limits.max_tokens is not None:
                known = self.saturation.last is not None  # before the first look there is no pressure to see
                self.degraded = (full and known) or share >= (limits.leave if self.degraded else limits.enter)

    async def _scrape(self) -> None:
        limits = self.policy.saturation
        while True:
            await asyncio.sleep(limits.scrape_s)
            if (endpoint := self.endpoint) is None:
                continue
            timeout = aiohttp.ClientTimeout(total=limits.stale_s)
            with suppress(aiohttp.ClientError, TimeoutError, ValueError):
                async with self.session.get(endpoint.root + "/metrics", timeout=timeout) as reply:
                    if reply.status != 200:
                        continue
                    scrape = read_scrape(await reply.read(), time.monotonic())
                self.saturation.read(scrape)
                if self.supervisor is not None:
                    self.supervisor.watch.scraped(scrape.at, scrape.steps, inside=self.admission.inside)
                if self.policy.admission.kv_tokens is None and scrape.kv_tokens:
                    self.admission.budget = self._budget(self.policy, scrape.kv_tokens)
