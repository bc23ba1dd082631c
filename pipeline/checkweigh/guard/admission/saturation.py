"""Saturation and memory: two signals with hysteresis. Pure; times and readings are arguments."""

from __future__ import annotations

from checkweigh.engines.vllm.server_metrics import Scrape
from checkweigh.guard.guard_policy import Memory as MemoryLimits
from checkweigh.guard.guard_policy import Saturation as SaturationLimits


class Saturation:
    """Whether the engine counts as full, and why. Before the first reading it does."""

    def __init__(self, limits: SaturationLimits) -> None:
        self._limits = limits
        self.last: Scrape | None = None
        self._full = "no metrics yet"
        self._free_since: float | None = None
        self._passed = False  # tokens came since the last reading
        self._still: tuple[float, float] | None = (
            None  # tokens came from, until, and the counters stood still
        )

    def read(self, scrape: Scrape) -> None:
        """Take a reading."""
        moved = self.last is None or (scrape.steps, scrape.tokens) != (self.last.steps, self.last.tokens)
        if moved:
            self._still = None
        elif self._passed and self.last is not None:
            self._still = (self.last.at if self._still is None else self._still[0], scrape.at)
        self._passed = False
        self.last = scrape
        over = scrape.kv >= self._limits.kv_high or scrape.waiting >= self._limits.waiting_high
        under = scrape.kv <= self._limits.kv_low and scrape.waiting < self._limits.waiting_high / 2
        if over:
            self._free_since = None
            self._full = f"KV cache at {scrape.kv:.0%}, {scrape.waiting:.0f} waiting in the engine"
        elif self._full and under:
            first = self._full == "no metrics yet"
            self._free_since = scrape.at if self._free_since is None else self._free_since
            if first or scrape.at - self._free_since >= self._limits.hold_s:
                self._full, self._free_since = "", None
        elif self._full:
            self._free_since = None

    def delivered(self) -> None:
        """We passed tokens of the engine on: its counters must move, or they are frozen."""
        self._passed = True

    def reset(self) -> None:
        """A new process: nothing is known of it."""
        self.last, self._full, self._free_since = None, "no metrics yet", None
        self._passed, self._still = False, None

    def why(self, now: float) -> str:
        """Why it counts as saturated; empty when it does not."""
        return self.blind(now) or self._full

    def blind(self, now: float) -> str:
        """Why nothing can be known of it any more; empty when it can, and before the first reading."""
        if self.last is None:
            return ""
        if now - self.last.at > self._limits.stale_s:
            return f"metrics are {now - self.last.at:.1f} s old"
        if self._still is not None and self._still[1] - self._still[0] >= self._limits.stale_s:
            return "metrics are frozen: they stand still while tokens come"
        return ""


class Memory:
    """Whether memory is critical."""

    def __init__(self, limits: MemoryLimits) -> None:
        self._limits = limits
        self.critical = False

    def read(self, free_share: float, gpu_free_share: float | None = None) -> bool:
        """Take a reading of what is free; returns whether it is critical now."""
        gpu = 1.0 if gpu_free_share is None else gpu_free_share
        if not (free_share >= self._limits.free_low and gpu >= self._limits.gpu_free_low):  # NaN is critical
            self.critical = True
        elif free_share >= self._limits.free_high and gpu >= 2 * self._limits.gpu_free_low:
            self.critical = False
        return self.critical
