"""The traffic log behind a guard under load: rotated, on a disk that is full, on one that hangs."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.conftest import small_disk
from tests.faults.harness import Reply, Running, body, guarded, open_loop, policy

from checkweigh.engines.mock.mock_knobs import MockKnobs
from checkweigh.engines.mock.serve import in_thread


def load(run: Running, rate: float, seconds: float, kind: str) -> list[Reply]:
    return asyncio.run(
        open_loop(
            run.url, rate, seconds, lambda i: body(f"box {i}", 2), lambda i: {"x-request-id": f"{kind}-{i}"}
        )
    )


def lost(run: Running) -> float:
    text = urllib.request.urlopen(run.url + "/metrics", timeout=5).read().decode()
    found = re.search(r"^checkweigh_traffic_lines_lost (\S+)$", text, re.M)
    assert found
    return float(found[1])


def test_under_load_every_request_has_one_line_across_rotations(tmp_path: Path) -> None:
    log = tmp_path / "traffic.jsonl"
    limits = policy(f"traffic: {{path: '{log}', max_bytes: 10000, keep: 90}}")
    with in_thread(MockKnobs()) as (endpoint, _), guarded(endpoint, limits) as run:
        run.ready()
        replies = load(run, 100, 3, "r")
    files = list(tmp_path.glob("traffic.jsonl*"))
    assert len(files) > 10
    found = [json.loads(line)["id"] for file in files for line in file.read_text().splitlines()]
    assert sorted(found) == sorted(f"r-{i}" for i in range(len(replies)))
    assert all(r.ok for r in replies)


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    with small_disk(tmp_path / "small", 64 << 10) as folder:
        yield folder


def test_on_a_full_disk_it_serves_says_so_and_goes_on_when_there_is_room(small: Path) -> None:
    log = small / "traffic.jsonl"
    with (
        in_thread(MockKnobs()) as (endpoint, _),
        guarded(endpoint, policy(f"traffic: {{path: '{log}'}}")) as run,
    ):
        run.ready()
        assert all(r.ok for r in load(run, 50, 0.2, "before"))
        run.until(log.exists)
        ballast = small / "ballast"
        with ballast.open("wb", buffering=0) as file:
            while shutil.disk_usage(small).free:
                file.write(bytes(4096))
        full = load(run, 50, 2, "full")
        assert all(r.ok for r in full), "served all the same"
        run.until(lambda: lost(run) > 0)
        said = [line for line in run.said if line.startswith("the traffic log cannot be written")]
        assert set(said) == {
            "the traffic log cannot be written (No space left on device): lines are lost until it can"
        }
        ballast.unlink()
        assert all(r.ok for r in load(run, 50, 0.5, "after"))
        run.until(lambda: run.said[-1].startswith("the traffic log is written again"))
        sent = 10 + 100 + 25
        run.until(lambda: log.read_bytes().count(b"\n") + lost(run) == sent)
        gone = lost(run)
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert sum(line["lost_before"] for line in lines) == gone > 0
    assert len(lines) + gone == sent
    assert len({line["id"] for line in lines}) == len(lines)


def test_a_disk_that_hangs_holds_back_no_request(tmp_path: Path) -> None:
    log = tmp_path / "traffic.jsonl"
    os.mkfifo(log)  # whoever opens it to write hangs until somebody reads
    with (
        in_thread(MockKnobs()) as (endpoint, _),
        guarded(endpoint, policy(f"traffic: {{path: '{log}'}}")) as run,
    ):
        run.ready()
        replies = load(run, 20, 1.5, "hang")
        reader = os.open(log, os.O_RDWR | os.O_NONBLOCK)
    assert all(r.ok for r in replies)
    assert max(r.total_s for r in replies) < 1
    assert os.read(reader, 1 << 16).count(b"\n") == len(replies)
    os.close(reader)
