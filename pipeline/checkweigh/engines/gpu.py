"""NVIDIA's own account of the devices: their names, their memory, a process's share of it, how busy they are."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any


def names() -> tuple[str, ...]:
    """What the host's devices are called; empty where there is no driver."""
    nvml = _open_driver()
    if nvml is None:
        return ()
    try:
        return tuple(str(nvml.nvmlDeviceGetName(device)) for device in _devices(nvml))
    except nvml.NVMLError:
        return ()
    finally:
        nvml.nvmlShutdown()


def usage(pids: Sequence[int]) -> tuple[int, float] | None:
    """(bytes that the processes hold on all devices, largest share of busy time of the devices they are on).

    None where there is no driver, or where it does not tell (a container may hide process ids; then what the devices
    hold in all would be somebody else's too).
    """
    nvml = _open_driver()
    if nvml is None:
        return None
    try:
        held, busy, seen = 0, 0.0, False
        for device in _devices(nvml):
            processes = [p for p in nvml.nvmlDeviceGetComputeRunningProcesses(device) if p.pid in pids]
            if processes:
                seen = True
                held += sum(int(p.usedGpuMemory or 0) for p in processes)
                busy = max(busy, nvml.nvmlDeviceGetUtilizationRates(device).gpu / 100)
        return (held, busy) if seen else None
    except nvml.NVMLError:
        return None
    finally:
        nvml.nvmlShutdown()


class FreeMemory:
    """Free memory of the host's devices, read again and again while the driver stays open."""

    def __init__(self) -> None:
        self._nvml = _open_driver()
        self._handles: list[Any] = []
        if self._nvml is not None:
            with suppress(self._nvml.NVMLError):
                self._handles = _devices(self._nvml)

    def least_share(self) -> float | None:
        """The free share of the fullest device; 0 when none of them tells, None without a device."""
        nvml = self._nvml
        if nvml is None or not self._handles:
            return None
        shares = []
        for device in self._handles:
            with suppress(nvml.NVMLError):
                info = nvml.nvmlDeviceGetMemoryInfo(device)
                shares.append(float(info.free) / float(info.total))
        return min(shares, default=0.0)


def _open_driver() -> Any | None:
    """``pynvml``, initialised; None where it or the driver is missing."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    return pynvml


def _devices(nvml: Any) -> list[Any]:
    """A handle for each device."""
    return [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
