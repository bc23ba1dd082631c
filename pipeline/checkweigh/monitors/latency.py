"""Whether a candidate is slower than the baseline that serves beside it. Pure; times are arguments."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from scipy import special

from checkweigh.stats.anytime import asymptotic_sequence

_BLOCK = 5  # requests an arm, at least
_WINDOW = 80  # blocks
_PAST = 640  # blocks: with fewer the tails of t would silence it after some hours
_BEST_AT = 20  # blocks at which the bounds are tightest
_BATCHES = (1, 2, 4, 8)  # blocks
_MIN_BATCHES = 8  # batches


class LatencyMonitor:
    """Fires when the candidate is certainly slower than the baseline, and by the estimate by more than ``margin``.

    Estimand: the difference of mean log latencies, candidate less baseline, both served at the same time.
    The unit is a block of both arms, because requests that run in one engine together share what slows them. A block
    ends when each arm has five requests in it and it has lasted twice as long as a request of the faster arm takes.
    Queues remember for longer than a block. So the variance is the largest that batches of 1, 2, 4 or 8 blocks show
    (of the past; of the present window, once there is a past, only its blocks), with the tails of t.

    It fires when the one-sided confidence sequence excludes 0 *and* the estimate is at least ``margin`` (log seconds).
    Once fired it stays fired. A good time must not cover a bad one, so a new window begins after 80 blocks. The k-th
    window has the level alpha / (k (k + 1)); together they have ``alpha``.

    Assumptions: blocks are exchangeable but for what batches of eight show; a session's requests count as independent,
    which they are not. Degenerate: it never fires with fewer than ``least`` requests an arm, fewer than eight blocks,
    or no variance.
    """

    def __init__(self, *, margin: float, alpha: float, least: int) -> None:
        self._margin, self._alpha, self._least = margin, alpha, least
        self._window = 1
        self._seen = {"baseline": 0, "candidate": 0}
        self._blocks: list[float] = []
        self._past: list[float] = []
        self.fired = ""
        self._begin_block()

    def _begin_block(self) -> None:
        # requests, sum of their log seconds, sum of how long they took
        self._sums = {arm: [0.0, 0.0, 0.0] for arm in self._seen}
        self._since = math.inf

    def requests(self, arm: str) -> int:
        """Requests of one arm that were counted so far."""
        return self._seen[arm]

    def add(self, arm: str, seconds: float, *, now: float, took: float) -> bool:
        """Take one request's latency; True when this one made the monitor fire.

        ``seconds``: the latency compared; one that is not positive and finite is ignored. The request ended at ``now``
        and took ``took`` seconds in all.
        """
        if not 0 < seconds < math.inf or self.fired:
            return False
        self._seen[arm] += 1
        for i, value in enumerate((1.0, math.log(seconds), took)):
            self._sums[arm][i] += value
        self._since = min(self._since, now)
        if not self._block_is_whole(now):
            return False
        if len(self._blocks) == _WINDOW:
            self._past = (self._past + self._blocks)[-_PAST:]
            self._blocks, self._window = [], self._window + 1
        means = {name: logs / count for name, (count, logs, _) in self._sums.items()}
        self._blocks.append(means["candidate"] - means["baseline"])
        self._begin_block()
        if min(self._seen.values()) >= self._least:
            self.fired = self._slower()
        return bool(self.fired)

    def _block_is_whole(self, now: float) -> bool:
        if min(count for count, _, _ in self._sums.values()) < _BLOCK:
            return False
        return now - self._since >= 2 * min(times / count for count, _, times in self._sums.values())

    def _slower(self) -> str:
        """How much slower the candidate is, in words; empty when that is not shown."""
        n, effect = len(self._blocks), float(np.mean(self._blocks))
        if effect < self._margin:
            return ""
        level = self._alpha / (self._window * (self._window + 1))
        spreads = [*_spreads(self._past, _BATCHES), *_spreads(self._blocks, (1,) if self._past else _BATCHES)]
        bounds = (_lower(effect, math.sqrt(variance / n), n, freedom, level) for variance, freedom in spreads)
        lower = min(bounds, default=-math.inf)
        if not lower > 0:
            return ""
        base, cand = self._seen["baseline"], self._seen["candidate"]
        return (
            f"{math.expm1(effect):+.0%} against the baseline over {n} blocks, after {cand} and {base} requests "
            f"(at least {math.expm1(lower):+.0%})"
        )


def _spreads(blocks: list[float], sizes: tuple[int, ...]) -> Iterator[tuple[float, float]]:
    """(long-run variance of one block, its degrees of freedom), for each batch size of which there are enough batches.

    From successive differences of the batches' means (von Neumann, 1941), which one jump hardly widens.
    """
    for size in sizes:
        count = len(blocks) // size
        if count >= _MIN_BATCHES:
            means = np.mean(np.reshape(blocks[-count * size :], (count, size)), axis=1)
            yield size * float(np.mean(np.square(np.diff(means)))) / 2, 2 * (count - 1) / 3


def _lower(effect: float, se: float, n: int, freedom: float, alpha: float) -> float:
    """The lower bound of the sequence of normal means, with the tails of t; -inf where there is no bound."""
    normal = float(asymptotic_sequence(effect, se, n, best_at=_BEST_AT, alpha=alpha)[0])
    if not math.isfinite(normal):
        return -math.inf
    tail = float(special.stdtrit(freedom, float(special.ndtr((normal - effect) / se))))
    return effect + se * tail if math.isfinite(tail) else -math.inf  # of a tail too thin it says +inf
