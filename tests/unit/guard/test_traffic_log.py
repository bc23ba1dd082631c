"""The traffic log: no line lost or torn by a rotation, whole lines only after a full disk or a killed guard."""

from __future__ import annotations

import json
import random
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from checkweigh.guard.guard_policy import Traffic
from checkweigh.guard.traffic_log import TrafficLine, TrafficLog

LEAST = 10_000  # bytes; about 20 lines


def request(number: int, prompt: str = "0" * 32) -> TrafficLine:
    return TrafficLine(
        at=1.0, id=f"{number:06}", session="s" * 32, tier="standard", assigned="baseline", served="baseline",
        shadow=False, stream=False, outcome="ok", status=200, reason="", degraded="", queue_s=0.1, ttft_s=0.2,
        tpot_s=0.01, total_s=0.5, prompt_tokens=7, output_tokens=9, max_tokens=16, finish="stop", prompt=prompt,
    )  # fmt: skip


def log_of(path: Path, keep: int = 5, max_bytes: int = LEAST) -> TrafficLog:
    return TrafficLog(Traffic(path=str(path), max_bytes=max_bytes, keep=keep))


def put(log: TrafficLog, *lines: TrafficLine) -> None:
    for line in lines:
        log.add(line)
    log.write(log.take())


def files(path: Path) -> list[Path]:
    """The oldest first."""
    return sorted(path.parent.glob(path.name + "*"), key=lambda p: -int(p.suffix[1:]) if p != path else 1)


def read(path: Path) -> list[TrafficLine]:
    return [
        TrafficLine.model_validate_json(line)
        for file in files(path)
        for line in file.read_text().splitlines()
    ]


@pytest.mark.parametrize("seed", range(5))
def test_a_rotation_loses_tears_and_doubles_nothing(seed: int, tmp_path: Path) -> None:
    path, rng, number = tmp_path / "own" / "traffic.jsonl", random.Random(seed), 0
    log = log_of(path, keep=100)
    while number < 500:
        batch = rng.choice((1, 2, 19, 20, 21, 60))  # less than a file, a file, more than two
        put(log, *(request(number + i, "é\n" * rng.randint(0, 60)) for i in range(batch)))
        number += batch
    assert [line.id for line in read(path)] == [f"{i:06}" for i in range(number)]
    assert len(files(path)) > 10
    assert all(file.stat().st_size <= LEAST for file in files(path)), "no file outgrows its bound"
    assert (log.lost, {line.lost_before for line in read(path)}) == (0, {0})


def test_only_the_oldest_go_and_a_giant_has_a_file_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "traffic.jsonl"
    log = log_of(path, keep=2)
    put(log, *(request(i) for i in range(200)))
    kept = [int(line.id) for line in read(path)]
    assert kept == list(range(kept[0], 200))
    assert {file.name for file in files(path)} == {"traffic.jsonl", "traffic.jsonl.1", "traffic.jsonl.2"}
    put(log, request(200), request(201, "x" * 3 * LEAST), request(202))
    assert [line.id for line in read(path)][-2:] == ["000201", "000202"]
    assert len((tmp_path / "traffic.jsonl.1").read_text().splitlines()) == 1


@contextmanager
def room(size: int) -> Iterator[None]:
    """Files end at ``size`` bytes: what is beyond is refused, after what fits was written."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_what_a_full_disk_cuts_off_is_counted_and_tears_nothing(tmp_path: Path) -> None:
    path = tmp_path / "traffic.jsonl"
    log = log_of(path)
    put(log, *(request(i) for i in range(5)))
    before = path.read_bytes()
    with room(len(before) + 300):
        put(log, *(request(i) for i in range(5, 9)))
        assert path.read_bytes() == before, "half a line is no line"
        assert log.error == "File too large"
        put(log, request(9))
    put(log, request(10), request(11))
    assert (log.error, log.lost) == ("", 5)
    assert [(line.id, line.lost_before) for line in read(path)[4:]] == [
        ("000004", 0), ("000010", 5), ("000011", 0)
    ]  # fmt: skip


def test_half_a_line_of_a_killed_guard_is_taken_back(tmp_path: Path) -> None:
    path = tmp_path / "traffic.jsonl"
    put(log_of(path), request(0), request(1))
    path.write_bytes(path.read_bytes() + json.dumps(request(2).model_dump())[:100].encode())
    put(log_of(path), request(3))
    assert [(line.id, line.lost_before) for line in read(path)] == [
        ("000000", 0),
        ("000001", 0),
        ("000003", 1),
    ]


def test_a_directory_that_cannot_be_rotated_costs_lines_and_not_the_others(tmp_path: Path) -> None:
    path = tmp_path / "traffic.jsonl"
    log = log_of(path, keep=1)
    (tmp_path / "traffic.jsonl.1").mkdir()
    (tmp_path / "traffic.jsonl.1" / "held").touch()
    put(log, *(request(i) for i in range(50)))
    assert log.error
    assert len(path.read_text().splitlines()) + log.lost == 50
    (tmp_path / "traffic.jsonl.1" / "held").unlink()
    (tmp_path / "traffic.jsonl.1").rmdir()
    put(log, request(50))
    assert [(line.id, line.lost_before) for line in read(path)][-1] == ("000050", log.lost)


def test_a_disk_that_hangs_does_not_fill_the_memory(tmp_path: Path) -> None:
    log = log_of(tmp_path / "traffic.jsonl", max_bytes=50_000_000)
    one = request(0)
    for _ in range(10_050):
        log.add(one)
    lines = log.take()
    assert (len(lines), log.lost) == (10_000, 50)
    log.write(lines)
    assert read(tmp_path / "traffic.jsonl")[0].lost_before == 50
