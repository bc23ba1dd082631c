"""Directories in the cache, with real processes that race and that die."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from checkweigh.errors import HostBusy, StoreError
from checkweigh.files import lock
from checkweigh.sources import sealed_cache
from checkweigh.sources.sealed_cache import (
    SEAL,
    build_sealed,
    changed_files,
    is_intact,
)

pytestmark = pytest.mark.usefixtures("checkweigh_home")
BUILD = (
    "import os, sys, time; from pathlib import Path; from checkweigh.sources.sealed_cache import build_sealed\n"
    "def build(folder):\n"
    "    (folder / 'builder').write_text(str(os.getpid())); print('building', flush=True)\n"
    "    time.sleep(float(sys.argv[2])); (folder / 'rest').write_text('x')\n"
    "print((build_sealed(Path(sys.argv[1]), build) / 'builder').read_text(), flush=True)\n"
)


def start(target: Path, seconds: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", BUILD, str(target), str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def write(folder: Path) -> None:
    (folder / "a").write_text("whole")


def test_two_processes_build_once(tmp_path: Path) -> None:
    target = tmp_path / "thing"
    with start(target, 1) as one, start(target, 1) as other:
        said = [process.communicate(timeout=60)[0].split() for process in (one, other)]
        assert sorted(len(words) for words in said) == [1, 2]
        assert said[0][-1] == said[1][-1]  # both have the one directory
    assert sorted(p.name for p in target.iterdir()) == [SEAL, "builder", "rest"]


def test_a_killed_builder_leaves_no_directory_and_its_rest_is_swept(tmp_path: Path) -> None:
    target = tmp_path / "thing"
    (tmp_path / ".thing.keep").mkdir()  # not ours
    with start(target, 60) as builder:
        assert builder.stdout is not None
        assert builder.stdout.readline() == "building\n"
        builder.send_signal(signal.SIGKILL)
        builder.wait()
    assert not target.exists()
    assert len([p for p in tmp_path.iterdir() if p.name.startswith(".thing.")]) == 2
    assert build_sealed(target, write) == target
    assert sorted(p.name for p in tmp_path.glob("*thing*") if p.is_dir()) == [".thing.keep", "thing"]


def test_damage_is_named_with_both_digests(tmp_path: Path) -> None:
    target = build_sealed(tmp_path / "thing", write)
    assert changed_files(target) == []
    sealed = sealed_cache.file_digest(target / "a")
    (target / "a").write_text("Whole")
    (target / "b").write_text("more")
    found = [sealed_cache.file_digest(target / name) for name in ("a", "b")]
    assert changed_files(target) == [
        (target / "a", sealed, found[0]),
        (target / "b", "no such file", found[1]),
    ]
    for seal in ("{", "[]", "7", "\udcff"):
        (target / SEAL).write_text(seal, errors="surrogateescape")
        assert changed_files(target) == []
        assert not is_intact(target)
    assert changed_files(tmp_path / "nothing") == []


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError):
        build_sealed(tmp_path / "file" / "thing", write)

    def full(folder: Path) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(StoreError, match="No space left"):
        build_sealed(tmp_path / "thing", full)
    assert [p.name for p in tmp_path.iterdir() if p.is_dir() and p.name != "home"] == []


def test_waiting_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sealed_cache, "BUILD_WAIT_S", 0.1)
    with start(tmp_path / "thing", 60) as builder:
        assert builder.stdout is not None
        builder.stdout.readline()
        with pytest.raises(HostBusy, match="another checkweigh builds thing and has not finished"):
            build_sealed(tmp_path / "thing", write)
        builder.kill()
    with lock(tmp_path / "thing.lock", timeout_s=5, what="builds"):
        pass
