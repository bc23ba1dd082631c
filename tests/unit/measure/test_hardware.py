"""The hardware class of a measurement."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable

import pytest

from checkweigh.engines import gpu
from checkweigh.measure import host_facts


class NVMLError(Exception):
    pass


def driver(*names: str, broken: str = "") -> types.ModuleType:
    """A pynvml for a host with these devices, in which the function ``broken`` fails."""
    found = types.ModuleType("pynvml")

    def function(name: str, work: Callable[..., object]) -> None:
        def called(*args: object) -> object:
            if name == broken:
                raise NVMLError(name)
            return work(*args)

        setattr(found, name, called)

    found.NVMLError = NVMLError  # type: ignore[attr-defined]
    function("nvmlInit", lambda: None)
    function("nvmlShutdown", lambda: None)
    function("nvmlDeviceGetCount", lambda: len(names))
    function("nvmlDeviceGetHandleByIndex", lambda index: index)
    function("nvmlDeviceGetName", lambda index: names[index])  # type: ignore[index]
    return found


@pytest.fixture
def hardware(monkeypatch: pytest.MonkeyPatch) -> Callable[[types.ModuleType], str]:
    def of(module: types.ModuleType) -> str:
        monkeypatch.setitem(sys.modules, "pynvml", module)
        return host_facts.hardware.__wrapped__()

    return of


def test_numbers_of_another_gpu_are_of_another_class(hardware: Callable[[types.ModuleType], str]) -> None:
    without = hardware(driver())
    assert without.endswith("cores")
    assert (
        hardware(driver("NVIDIA H100", "NVIDIA A100", "NVIDIA H100"))
        == f"{without}, 1 NVIDIA A100, 2 NVIDIA H100"
    )


@pytest.mark.parametrize("broken", ["nvmlInit", "nvmlDeviceGetCount", "nvmlDeviceGetName"])
def test_without_a_driver_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", driver("NVIDIA H100", broken=broken))
    assert gpu.names() == ()
