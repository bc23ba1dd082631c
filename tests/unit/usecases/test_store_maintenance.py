"""Store ls, verify and gc on what real gates left, and on what went wrong with it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from tests.builders import age
from tests.unit.usecases.gate_bench import CONSOLE, ENDINGS, PERPLEXITY, GateBench
from tests.waiting import until

from checkweigh.usecases.store_maintenance import list_entries


@pytest.fixture
def gated(bench: GateBench) -> GateBench:
    bench.policy(PERPLEXITY, ENDINGS)
    assert bench.gate() == 0, bench.stderr
    return bench


def store(bench: GateBench, *arguments: str, code: int = 0) -> list[dict[str, Any]]:
    assert bench.run("store", *arguments, "--json") == code, bench.stderr
    return json.loads(bench.stdout)  # type: ignore[no-any-return]


def spoil(folder: Path, how: str) -> None:
    record, table = folder / "record.json", folder / "observations.parquet"
    if how == "cut parquet":
        table.write_bytes(table.read_bytes()[:-7])
    elif how == "no parquet":
        table.unlink()
    elif how == "changed record":
        record.write_text(record.read_text().replace('"planned":320', '"planned":319'))
    elif how == "no json":
        record.write_bytes(b"\x00" * 100)
    elif how == "not an object":
        record.write_text("[]")


def test_ls_says_what_is_there(gated: GateBench) -> None:
    listed = store(gated, "ls")
    assert sorted((e["name"], e["state"], e["items"]) for e in listed) == [
        ("answers", "complete", 320), ("answers", "complete", 320),
        ("prose", "complete", 320), ("prose", "complete", 320),
    ]  # fmt: skip
    assert all(e["bytes"] > 1000 and e["made"].startswith("20") for e in listed)
    assert gated.run("store", "ls") == 0
    assert gated.stdout.count("complete") == 4
    assert store(gated, "verify") == []


def test_an_empty_store_is_no_error(bench: GateBench) -> None:
    for command in ("ls", "verify", "gc"):
        assert store(bench, command) == []


@pytest.mark.parametrize("how", ["cut parquet", "no parquet", "changed record", "no json", "not an object"])
def test_what_is_damaged_is_named_swept_and_measured_again(gated: GateBench, how: str) -> None:
    folder = gated.records()[0]
    spoil(folder, how)
    (damaged,) = store(gated, "verify", code=2)
    assert damaged["folder"] == str(folder)
    assert str(folder) in gated.stderr.replace("\n", "")
    assert gated.gate() == 4, "a damaged record is never believed"
    assert [s["path"] for s in store(gated, "gc", "--dry-run")] == [str(folder)]
    assert folder.exists()
    assert [s["path"] for s in store(gated, "gc")] == [str(folder)]
    assert not folder.exists()
    assert gated.gate() == 0, "the verdict stands"
    assert "no longer in the store" in " ".join(gated.decision.notes)
    shutil.rmtree(gated.home / "attempts")
    assert gated.gate() == 0, gated.stderr
    assert len(store(gated, "ls")) == 4


def test_a_record_of_an_older_version_is_said_to_be_unverified(gated: GateBench) -> None:
    """It is not damaged: no gate fails on it, gc sweeps it, and a stored decision that names it says why."""
    folder = gated.records()[0]
    age(folder)
    assert store(gated, "verify") == []
    assert "1 of an older version" in gated.stderr
    assert [e["folder"] for e in store(gated, "ls") if e["state"] == "unverified"] == [str(folder)]
    assert gated.gate() == 0, "the stored verdict stands"
    assert "counts as unverified" in " ".join(gated.decision.notes)
    (swept,) = store(gated, "gc", "--dry-run")
    assert "of an older version" in swept["why"]
    shutil.rmtree(gated.home / "attempts")
    assert gated.gate() == 0, "it is measured again"
    assert list(gated.stages().values()).count(False) == 1
    assert store(gated, "gc") == []


def test_a_record_at_another_address_is_damaged(gated: GateBench) -> None:
    first, second = gated.records()[:2]
    shutil.rmtree(second)
    shutil.copytree(first, second)
    (damaged,) = store(gated, "verify", code=2)
    assert damaged["folder"] == str(second)
    assert "another folder" in damaged["problem"]


def test_leftovers_go_and_records_stay(gated: GateBench) -> None:
    folder = gated.records()[0]
    (folder / "batches").mkdir()
    (folder / "batches" / "0000.json").write_text("{}")
    (folder / ".record.json.x1").write_text("half")
    interrupted = folder.with_name("ab" * 32)
    (interrupted / "batches").mkdir(parents=True)
    (interrupted / "batches" / "0000.json").write_text("{}")
    before = len(gated.records())
    assert {Path(s["path"]).name for s in store(gated, "gc")} == {"batches", ".record.json.x1"}
    assert (folder / "record.json").exists()
    assert not (folder / "batches").exists()
    assert interrupted.exists(), "an interrupted measurement goes on"
    assert [Path(s["path"]).name for s in store(gated, "gc", "--incomplete")] == [interrupted.name]
    assert len(gated.records()) == before
    assert store(gated, "gc") == []


def test_only_what_is_old_enough_goes(gated: GateBench) -> None:
    old = gated.records()[0]
    then = time.time() - 10 * 86_400
    for path in old.iterdir():
        os.utime(path, (then, then))
    assert store(gated, "gc", "--older-than", "11") == []
    assert [s["path"] for s in store(gated, "gc", "--older-than", "9")] == [str(old)]
    assert len(gated.records()) == 3


def test_what_is_being_measured_is_left_alone(bench: GateBench) -> None:
    bench.policy(PERPLEXITY, ENDINGS)
    first, second = bench.manifest("baseline"), bench.manifest("candidate", {"latency_s": 0.2})
    process = bench.spawn(*bench.arguments(first, second))
    try:
        until(lambda: any(e.state == "measuring" and e.batches for e in list_entries(bench.home / "store")))
        assert store(bench, "gc", "--incomplete", "--older-than", "0", "--dry-run") is not None
        busy = [e.path for e in list_entries(bench.home / "store") if e.state == "measuring"]
        swept = {s["path"] for s in store(bench, "gc", "--incomplete", "--older-than", "0")}
        assert busy
        assert not swept & {str(path) for path in busy}
    finally:
        process.kill()
        process.communicate()


def test_for_real(gated: GateBench) -> None:
    done = subprocess.run([str(CONSOLE), "store", "ls"], capture_output=True, text=True, check=True)
    assert done.stdout.count("complete") == 4
