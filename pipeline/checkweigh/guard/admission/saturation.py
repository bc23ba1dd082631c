"""Is the engine full, is memory critical: two signals with hysteresis. Pure; times and readings are arguments."""

from __future__ import annotations

from checkweigh.engines.vllm.server_metrics import Scrape
from checkweigh.guard.guard_policy import MemoryLimits, SaturationLimits


class Saturation:
    """Whether the engine counts as full, and why. It does before the first reading."""

    def __init__(self, limits: SaturationLimits) -> None:
        self._limits = limits
        self.last: Scrape | None = None
        self._full_reason = "no metrics yet"
        self._free_since: float | None = None
        self._tokens_passed = False  # tokens came since the last reading
        self._frozen: tuple[float, float] | None = (
            None  # from, until: tokens came and the counters stood still
        )

    def read(self, scrape: Scrape) -> None:
        """Take a reading."""
        moved = self.last is None or (scrape.steps, scrape.tokens) != (self.last.steps, self.last.tokens)
        if moved:
            self._frozen = None
        elif self._tokens_passed and self.last is not None:
            self._frozen = (self.last.at if self._frozen is None else self._frozen[0], scrape.at)
        self._tokens_passed = False
        self.last = scrape
        over = scrape.kv >= self._limits.kv_high or scrape.waiting >= self._limits.waiting_high
        under = scrape.kv <= self._limits.kv_low and scrape.waiting < self._limits.waiting_high / 2
        if over:
            self._free_since = None
            self._full_reason = f"KV cache at {scrape.kv:.0%}, {scrape.waiting:.0f} waiting in the engine"
        elif self._full_reason and under:
            first = self._full_reason == "no metrics yet"
            self._free_since = scrape.at if self._free_since is None else self._free_since
            if first or scrape.at - self._free_since >= self._limits.hold_s:
                self._full_reason, self._free_since = "", None
        elif self._full_reason:
            self._free_since = None

    def delivered(self) -> None:
        """Tokens of the engine reached a client: its counters must move, or they are frozen."""
        self._tokens_passed = True

    def reset(self) -> None:
        """A new process started: nothing is known of it."""
        self.last, self._full_reason, self._free_since = None, "no metrics yet", None
        self._tokens_passed, self._frozen = False, None

    def why(self, now: float) -> str:
        """Why the engine counts as saturated at ``now``; empty when it does not."""
        return self.blind(now) or self._full_reason

    def blind(self, now: float) -> str:
        """Why the readings are of no use at ``now``; empty when they are, and before the first one."""
        if self.last is None:
            return ""
        if now - self.last.at > self._limits.stale_s:
            return f"metrics are {now - self.last.at:.1f} s old"
        if self._frozen is not None and self._frozen[1] - self._frozen[0] >= self._limits.stale_s:
            return "metrics are frozen: they stand still while tokens come"
        return ""


class MemoryPressure:
    """Whether memory is critical, with hysteresis. Shares are of the total, from 0 to 1."""

    def __init__(self, limits: MemoryLimits) -> None:
        self._limits = limits
        self.critical = False

    def read(self, free_share: float, gpu_free_share: float | None = None) -> bool:
        """Take a reading of the free shares of the host's and the GPU's memory; returns whether it is critical now."""
        gpu = 1.0 if gpu_free_share is None else gpu_free_share
        if not (free_share >= self._limits.free_low and gpu >= self._limits.gpu_free_low):  # NaN is critical
            self.critical = True
        elif free_share >= self._limits.free_high and gpu >= 2 * self._limits.gpu_free_low:
            self.critical = False
        return self.critical
