"""NVIDIA's own account of the devices, of a process's memory on them, and how busy they are."""

from __future__ import annotations

from collections.abc import Sequence


def names() -> tuple[str, ...]:
    """What the host's devices are called; empty where there is no driver."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except ImportError:
        return ()
    except pynvml.NVMLError:
        return ()
    try:
        handles = map(pynvml.nvmlDeviceGetHandleByIndex, range(pynvml.nvmlDeviceGetCount()))
        return tuple(str(pynvml.nvmlDeviceGetName(handle)) for handle in handles)
    except pynvml.NVMLError:
        return ()
    finally:
        pynvml.nvmlShutdown()


def usage(pids: Sequence[int]) -> tuple[int, float] | None:
    """(bytes that the processes hold on all devices, largest share of busy time of the devices they are on).

    None where there is no driver, or where it does not tell (a container may hide process ids; then what the devices
    hold in all would be somebody else's too).
    """
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    try:
        held, busy, seen = 0, 0.0, False
        for index in range(pynvml.nvmlDeviceGetCount()):
            device = pynvml.nvmlDeviceGetHandleByIndex(index)
            mine = [p for p in pynvml.nvmlDeviceGetComputeRunningProcesses(device) if p.pid in pids]
            if mine:
                seen = True
                held += sum(int(p.usedGpuMemory or 0) for p in mine)
                busy = max(busy, pynvml.nvmlDeviceGetUtilizationRates(device).gpu / 100)
        return (held, busy) if seen else None
    except pynvml.NVMLError:
        return None
    finally:
        pynvml.nvmlShutdown()
