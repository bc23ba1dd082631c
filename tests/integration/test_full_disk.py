"""Gates on file systems that are really full: exit 4 in a sentence, nothing damaged, and the same command goes on."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.conftest import WriteManifest, small_disk
from tests.integration.gates import Bench

from checkweigh.records.decision import Verdict

KIB = 1 << 10
ROOM = 8 * KIB * KIB  # of the small file system


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of a few megabytes."""
    with small_disk(tmp_path / "small", ROOM) as folder:
        yield folder


@pytest.fixture
def bench(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_manifest: WriteManifest, capfd: pytest.CaptureFixture[str]
) -> Bench:  # fmt: skip
    return Bench(tmp_path, monkeypatch, write_manifest, capfd)


def leave(folder: Path, room: int) -> None:
    """Fill the file system until only that many bytes are free."""
    with (folder / "ballast").open("wb") as ballast:
        free = shutil.disk_usage(folder).free
        ballast.write(bytes(max(0, free - room)))
    assert shutil.disk_usage(folder).free <= room + 4 * KIB


def used(folder: Path) -> int:
    return ROOM - shutil.disk_usage(folder).free


def refused(bench: Bench, command: list[str], folder: Path) -> str:
    """Run the gate, which must end with 4 and one sentence that names the folder; what it said."""
    assert bench.start(*command).wait(120) == 4, bench.said.read_text()
    said = bench.said.read_text()
    assert "Traceback" not in said
    said = " ".join(said.split())  # as a terminal that is wide enough would show it
    assert "No space left on device" in said or "Not enough disk space" in said, said
    assert f"{folder}/" in said.replace(" ", "") or f"{folder}:" in said, said
    assert bench.orphans() == []
    return said


def test_a_full_store_anywhere(bench: Bench, small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = bench.prepare()
    assert bench.start(*command).wait(120) == 0, bench.said.read_text()
    reference, addresses = bench.steady(), bench.addresses()
    bench.forget()
    shutil.move(bench.home / "digests", small / "digests")
    before = used(small)
    bench.home = small
    monkeypatch.setenv("CHECKWEIGH_HOME", str(small))
    chance = random.Random(5)
    shutil.copytree(bench.folder / "home", small / "whole")
    needed = used(small) - before
    shutil.rmtree(small / "whole")

    # Room for a random part of the rest, again and again: the first time for almost nothing.
    for part in (0.0, *sorted(chance.uniform(0, 1) for _ in range(5))):
        held = used(small) - before
        leave(small, int(max(0, part * needed - held)))
        stored, earlier = bench.kept(addresses), Counter(bench.diary())
        said = refused(bench, command, small)
        if f"{small}/datasets" not in said:  # else it failed before the gate began
            assert bench.decision.verdict is Verdict.ERROR
            assert bench.run("report", str(bench.out)) == 4
        assert not list((small / "store").rglob(".*")), "nothing half-written"
        assert not set(Counter(bench.diary()) - earlier) & stored
        bench.verify()
        (small / "ballast").unlink()
    stored, earlier = bench.kept(addresses), Counter(bench.diary())
    assert stored
    assert bench.start(*command).wait(120) == 0, bench.said.read_text()
    assert bench.steady() == reference
    assert not set(Counter(bench.diary()) - earlier) & stored
    assert "7 measurements, 0 damaged" in bench.verify()


def test_a_full_place_for_the_report(bench: Bench, small: Path) -> None:
    """Never exit 0, never a decision that is not whole, and no other report without one."""
    bench.out = small / "out"
    command = bench.prepare()
    assert bench.start(*command).wait(120) == 0, bench.said.read_text()
    reference = bench.steady()
    size = sum(path.stat().st_size for path in bench.out.iterdir() if path.is_file())
    for room in (0, 4 * KIB, size // 4, size // 2, size - 8 * KIB):
        shutil.rmtree(bench.out)
        bench.out.mkdir()
        leave(small, room)
        refused(bench, command, small)
        assert [path.name for path in bench.out.iterdir()] in ([], ["logs"])
        (small / "ballast").unlink()
    shutil.rmtree(bench.out)
    assert bench.start(*command).wait(120) == 0, bench.said.read_text()
    assert bench.steady() == reference
    assert json.loads((bench.out / "decision.json").read_bytes())["verdict"] == "pass"


def test_an_engine_that_cannot_write_its_log(bench: Bench, small: Path) -> None:
    """The host's failure: a candidate that dies of it twice is not blocked for it."""
    bench.out = small / "out"
    bench.out.mkdir()
    command = bench.prepare(prints=True)
    leave(small, 0)
    said = refused(bench, command, small)
    assert "unservable" not in said
    assert os.listdir(bench.out) in ([], ["logs"])
