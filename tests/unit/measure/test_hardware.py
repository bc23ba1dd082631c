"""What is known of the host: the hardware class of a measurement, its devices' memory, a benchmark's commit."""

from __future__ import annotations

import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from checkweigh.engines import gpu
from checkweigh.measure import host_facts


class NVMLError(Exception):
    pass


def driver(*names: str, broken: str = "", free: tuple[int, ...] = ()) -> types.ModuleType:
    """A pynvml for a host with these devices, ``free`` of 100 bytes on each, in which the function ``broken`` fails."""
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
    function("nvmlDeviceGetMemoryInfo", lambda index: SimpleNamespace(free=free[index], total=100))  # type: ignore[index]
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


def test_the_fullest_device_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    def share(module: types.ModuleType) -> float | None:
        monkeypatch.setitem(sys.modules, "pynvml", module)
        return gpu.FreeMemory().least_share()

    assert share(driver("A100", "H100", free=(80, 25))) == 0.25
    assert share(driver()) is None
    for broken in ("nvmlInit", "nvmlDeviceGetCount"):
        assert share(driver("A100", broken=broken, free=(80,))) is None
    assert share(driver("A100", broken="nvmlDeviceGetMemoryInfo", free=(80,))) == 0.0, (
        "a device that is silent is full"
    )


def test_a_benchmark_names_the_commit_and_whether_the_whole_tree_is_dirty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def found() -> tuple[str | None, bool | None]:
        provenance = host_facts.provenance_of_tree(host_facts.now())
        return provenance.commit, provenance.dirty

    assert found() == (None, None)
    identity = ("-c", "user.name=x", "-c", "user.email=x@example.org")
    subprocess.run(["git", "init", "-q"], check=True)
    assert found() == (None, None), "no commit yet"
    subprocess.run(["git", *identity, "commit", "-q", "--allow-empty", "-m", "x"], check=True)
    commit, dirty = found()
    assert (len(str(commit)), dirty) == (40, False)
    (tmp_path / "below").mkdir()
    (tmp_path / "new").write_text("")
    monkeypatch.chdir(tmp_path / "below")
    assert found() == (commit, True)
