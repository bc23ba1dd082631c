"""Readings of the host: memory and swap, and what is wrong with it before serving begins."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from checkweigh.engines import gpu
from checkweigh.engines.host_memory import GIB, GROUP, memory_limits, swap_activity


@dataclass(frozen=True, slots=True, kw_only=True)
class HostReading:
    """The host at one moment. Shares are from 0 to 1."""

    free_share: float  # of memory: the host's, or its limit's in a container where that is less
    gpu_free_share: float | None  # of the fullest GPU; None without one
    swap_bytes: float  # in and out since the last reading, a second


class HostGauges:
    """Reads the host, and the control group it runs in; remembers the swap counters in between."""

    def __init__(self, group: Path = GROUP) -> None:
        self._group = group
        self._swapped = swap_activity()
        self._at = time.monotonic()
        self._gpu_memory = gpu.FreeMemory()

    def read(self) -> HostReading:
        """The host now."""
        swapped, now = swap_activity(), time.monotonic()
        rate = (swapped - self._swapped) / max(1e-3, now - self._at)
        self._swapped, self._at = swapped, now
        return HostReading(
            free_share=free_share(self._group),
            gpu_free_share=self._gpu_memory.least_share(),
            swap_bytes=max(0.0, rate),
        )


def free_share(group: Path = GROUP) -> float:
    """The free share of the host's memory or of the control group's limit: the lesser."""
    return min(free / max(1, total) for free, total in memory_limits(group))


def host_warnings(headroom: float) -> list[str]:
    """What should not be so on a host that serves, in words."""
    lines = []
    swap, free = psutil.swap_memory(), free_share()
    if swap.total:
        used = f", {swap.used / GIB:.1f} GiB of it in use" if swap.used else ""
        lines.append(
            f"the host has {swap.total / GIB:.1f} GiB of swap{used}: latency spikes when it is touched (swapoff -a)"
        )
    if headroom < 0.2:
        lines.append(
            f"admission.headroom is {headroom:.0%}: below 20% a burst of long prompts preempts or kills"
        )
    if free < 0.2:
        lines.append(f"only {free:.0%} of the memory is free before anything starts")
    return lines
