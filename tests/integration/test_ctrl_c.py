"""Ctrl-C anywhere in a gate: exit 4 and a word about what to do, or the verdict that was there already."""

from __future__ import annotations

import random
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path

import pytest
from tests.conftest import WriteManifest
from tests.integration.gates import Bench, wait_until

TIMES = 5


@pytest.fixture
def bench(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_manifest: WriteManifest, capfd: pytest.CaptureFixture[str]
) -> Bench:  # fmt: skip
    return Bench(tmp_path, monkeypatch, write_manifest, capfd)


def ours(process: subprocess.Popen[bytes]) -> bool:
    """Whether Python itself is up and our own code is being imported: before that, Ctrl-C is Python's to answer."""
    return "pydantic" in Path(f"/proc/{process.pid}/maps").read_text()


@pytest.mark.parametrize("twice", [False, True], ids=["once", "twice"])
def test_anywhere(bench: Bench, twice: bool) -> None:
    chance = random.Random(int(twice))
    command = bench.prepare(latency_s=0.005, token_latency_s=0.001)
    began = time.monotonic()
    assert bench.start(*command).wait(120) == 0, bench.said.read_text()
    whole = time.monotonic() - began
    reference, addresses = bench.steady(), bench.addresses()
    bench.wipe()
    bench.forget()
    answers = []
    for number in range(TIMES):
        stored, before = bench.kept(addresses), Counter(bench.diary())
        process = bench.start(*command)
        assert wait_until(process, lambda process=process: ours(process))
        time.sleep(chance.uniform(0, 1.0 if number < 2 else whole * 0.8))  # anywhere is the claim
        process.send_signal(signal.SIGINT)
        if twice:
            time.sleep(chance.uniform(0, 0.2))
            process.send_signal(signal.SIGINT)
        code = process.wait(30)
        said = bench.said.read_text()
        answers.append(code)
        assert "Traceback" not in said
        if code == 0:
            assert bench.steady() == reference
        else:
            assert code == 4, said
            assert said.rstrip().splitlines()[-1].startswith("checkweigh: interrupted"), said
        assert bench.orphans() == []
        assert not set(Counter(bench.diary()) - before) & stored
        assert not list(bench.out.rglob(".*")), "nothing half-written"
    assert answers.count(4) >= TIMES // 2
    assert bench.start(*command).wait(120) == 0, bench.said.read_text()
    assert bench.steady() == reference
    assert "0 damaged" in bench.verify()
