"""A gate that is killed twenty times decides what an undisturbed one decides, and measures nothing twice."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.conftest import WriteManifest
from tests.integration.gates import Bench, kill, wait_until

SEED = 20
KILLS = 20
LATE = ("summary.md", "report.html", "junit.xml")  # files that are there when reports are being written
Trigger = Callable[[], bool]


@pytest.fixture
def bench(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_manifest: WriteManifest, capfd: pytest.CaptureFixture[str]
) -> Bench:  # fmt: skip
    return Bench(tmp_path, monkeypatch, write_manifest, capfd)


def triggers(bench: Bench, chance: random.Random, calls: int) -> list[Callable[[], Trigger]]:
    """When to kill, one for each life: after some time, after some calls, while reports are written.

    Each is made when its life begins.
    """

    def clock(seconds: float) -> Callable[[], Trigger]:
        def begin() -> Trigger:
            deadline = time.monotonic() + seconds
            return lambda: time.monotonic() > deadline

        return begin

    def work(more: int, pause: float) -> Callable[[], Trigger]:
        def begin() -> Trigger:
            wanted = bench.calls() + more

            def due() -> bool:
                if bench.calls() < wanted:
                    return False
                time.sleep(pause)  # anywhere between a call and what becomes of its answer
                return True

            return due

        return begin

    def file(name: str) -> Callable[[], Trigger]:
        return lambda: lambda: (bench.out / name).exists()

    def comparing() -> Trigger:
        diary = bench.folder / "candidate.diary"
        return lambda: diary.exists() and b"divergence " in diary.read_bytes()

    early = [clock(chance.uniform(0, 2)) for _ in range(3)]
    early += [work(chance.randint(1, 2 * calls // 13), chance.uniform(0, 0.04)) for _ in range(13)]
    chance.shuffle(early)
    return [*early, comparing, *(file(name) for name in chance.sample(LATE, 3))]


def test_twenty_kills(bench: Bench) -> None:
    chance = random.Random(SEED)
    command = bench.prepare(latency_s=0.005, token_latency_s=0.001)
    assert bench.start(*command).wait(120) == 0, bench.said.read_text()
    reference, addresses, calls = bench.steady(), bench.addresses(), bench.calls()
    once = Counter(bench.diary())
    assert set(once.values()) == {1}
    assert set(once) == bench.kept(addresses) & set(once), "every item is found in the store"
    bench.wipe()
    bench.forget()

    killed = lives = 0
    for begin in triggers(bench, chance, calls):
        everyone = chance.random() < 0.5
        while not _killed(bench, command, begin(), everyone=everyone, addresses=addresses):
            assert bench.steady() == reference, "it was quicker than we were"
            lives += 1
            assert lives < KILLS
        if (bench.out / "decision.json").exists():
            assert bench.steady() == reference, "what is there is whole"
        killed += 1
    assert killed == KILLS
    assert bench.start(*command).wait(120) == 0, bench.said.read_text()
    assert bench.steady() == reference
    assert set(bench.diary()) == set(once)
    assert bench.orphans() == []
    assert "7 measurements, 0 damaged" in bench.verify()


def _killed(
    bench: Bench, command: list[str], due: Trigger, *, everyone: bool, addresses: dict[str, tuple[str, str]]
) -> bool:
    """One start of the gate, killed when it is ``due``, unless it ended before; nothing stored is measured in it."""
    stored = bench.kept(addresses) if (bench.home / "store").exists() else set()
    before = Counter(bench.diary())
    process = bench.start(*command)
    due_in_time = wait_until(process, due)
    if due_in_time:
        kill(process, everyone=everyone)
    else:
        assert process.returncode == 0, bench.said.read_text()
    assert bench.orphans() == []
    assert not set(Counter(bench.diary()) - before) & stored
    return due_in_time
