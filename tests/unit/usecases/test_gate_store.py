"""Gates and the store: what is reused, what never is, and what happens to a gate that is killed."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import psutil
import pytest
from tests.unit.usecases.desk import (
    ENDINGS,
    PERPLEXITY,
    SCORE,
    TPOT,
    Desk,
    measured_files,
    wait_for,
    workers,
)

from checkweigh.records.decision import Decision, Verdict

SETS = ("prose", "choices", "answers")


def steady(decision: Decision) -> dict[str, Any]:
    """The decision without times."""
    data = decision.model_dump(mode="json")
    del data["provenance"], data["attempt"]["decided"]
    for look in data["looks"]["made"]:
        del look["seconds"]
    for stage in data["stages"]:
        del stage["seconds"], stage["stored"]
    return data


def test_the_baseline_is_measured_once_for_many_candidates(desk: Desk) -> None:
    assert desk.gate({"noise_seed": 2}) == 0
    kept = measured_files([folder / "record.json" for folder in desk.records()])
    assert len(kept) == 6
    assert desk.gate({"noise_seed": 3}) == 0
    assert desk.stages() == {
        (role, name): role == "baseline" for role in ("baseline", "candidate") for name in SETS
    }
    now = measured_files([folder / "record.json" for folder in desk.records()])
    assert len(now) == 9
    assert {path: now[path] for path in kept} == kept


def test_timing_is_never_reused(desk: Desk) -> None:
    desk.policy(PERPLEXITY, SCORE, TPOT, attempts=2)
    slow = {"token_latency_s": 0.001}
    assert desk.gate(slow, slow) == 0
    first = desk.decision.timing
    assert desk.gate(slow, slow, more=["--again"]) == 0
    assert all(desk.stages().values()), "quality came from the store"
    second = desk.decision.timing
    assert first is not None
    assert second is not None
    assert [b.baseline for b in first.blocks] != [b.baseline for b in second.blocks]
    assert [b.order for b in first.blocks] == [b.order for b in second.blocks], (
        "the order follows from the seed"
    )
    assert not any("timing" in path.name and path.is_dir() for path in (desk.home / "store").iterdir())


def test_a_manifest_against_itself_is_executed_twice(desk: Desk) -> None:
    manifest = desk.manifest("baseline")
    for gate in (1, 2):
        desk.policy(PERPLEXITY, SCORE, seed=gate)
        assert desk.run(*desk.arguments(manifest, manifest)) == 0, desk.stderr
        decision = desk.decision
        assert (decision.baseline.replicate, decision.candidate.replicate) == (0, gate)
        assert decision.baseline.pins == decision.candidate.pins
        for name in SETS:
            assert decision.baseline.measurements[name] != decision.candidate.measurements[name]
            assert not desk.stages()["candidate", name], "nothing of the candidate is read from the store"
            assert desk.stages()["baseline", name] == (gate == 2)
        assert desk.result("perplexity").comparison.kind == "identical"
    assert len(desk.records()) == 3 * len(SETS)


def test_a_renamed_copy_counts_as_itself(desk: Desk) -> None:
    desk.policy(PERPLEXITY)
    first = desk.manifest("baseline")
    second = desk.manifest("candidate", {"noise_seed": 1}, comment="the same under another name")
    assert desk.run(*desk.arguments(first, second)) == 0
    decision = desk.decision
    assert decision.candidate.name == "candidate"
    assert decision.candidate.replicate == 1
    assert decision.changes == ()
    assert not desk.stages()["candidate", "prose"]


def test_a_killed_gate_goes_on_where_it_stopped(desk: Desk) -> None:
    """SIGKILL in the middle of the candidate; every batch is measured exactly once over both runs."""
    desk.policy(PERPLEXITY, ENDINGS)
    first, second = desk.manifest("baseline"), desk.manifest("candidate", {"latency_s": 0.2})
    assert desk.run(*desk.arguments(first, second)) == 0
    undisturbed = steady(desk.decision)
    desk.wipe()

    process = desk.spawn(*desk.arguments(first, second))
    wait_for(lambda: len(desk.records()) >= 3 and len(_batches(desk)) >= 3)
    engines = workers(process.pid)
    assert engines
    process.kill()
    process.communicate()
    psutil.wait_procs(engines, timeout=5)
    assert not any(engine.is_running() for engine in engines), "the engines left with their gate"
    assert not (desk.out / "decision.json").exists()
    kept = measured_files(_batches(desk))
    assert kept

    process = desk.spawn(*desk.arguments(first, second))
    seen: dict[str, tuple[int, bytes]] = {}
    while process.poll() is None:
        for path in _batches(desk):
            if path.parent.parent.name in {Path(p).parent.parent.name for p in kept}:
                try:
                    seen |= measured_files([path])
                except FileNotFoundError:
                    continue
    assert process.returncode == 0, process.communicate()[1].decode()
    process.communicate()
    assert set(kept) <= set(seen), "the kept batches were still there while the rest was measured"
    assert {path: seen[path] for path in kept} == kept, "no batch was measured twice"
    assert steady(desk.decision) == undisturbed


def _batches(desk: Desk) -> list[Path]:
    """Batches of measurements that are not complete; those of a complete one are about to be removed."""
    try:
        found = sorted((desk.home / "store").glob("*/batches/[0-9]*.json"))
        return [path for path in found if not (path.parent.parent / "record.json").exists()]
    except FileNotFoundError:  # a record was completed, and its batches removed, while we looked
        return []


@pytest.mark.parametrize("when", ["starting", "measuring"])
def test_ctrl_c_leaves_no_engine_and_no_verdict(desk: Desk, when: str) -> None:
    desk.policy(PERPLEXITY)
    first, second = desk.manifest("baseline"), desk.manifest("candidate", {"latency_s": 0.1})
    process = desk.spawn(*desk.arguments(first, second))
    wait_for(lambda: workers(process.pid) and (when == "starting" or _batches(desk)))
    engines = workers(process.pid)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=30)
    assert process.returncode == 4
    assert b"interrupted" in error
    assert b"Traceback" not in error
    psutil.wait_procs(engines, timeout=5)
    assert not any(engine.is_running() for engine in engines)
    assert not (desk.out / "decision.json").exists()


def test_a_batch_damaged_by_a_crash_is_measured_again(desk: Desk) -> None:
    """Truncated, edited, or another arm's: the decision is that of a gate nobody disturbed."""
    desk.policy(PERPLEXITY)
    first, second = (
        desk.manifest("baseline", {"latency_s": 0.02}),
        desk.manifest("candidate", {"bias_nats": 0.3}),
    )
    assert desk.run(*desk.arguments(first, second)) == 1
    undisturbed = steady(desk.decision)
    arms = desk.decision.baseline, desk.decision.candidate
    good, bad = (desk.home / "store" / arm.measurements["prose"].removeprefix("sha256:") for arm in arms)
    desk.wipe()
    process = desk.spawn(*desk.arguments(first, second))
    wait_for(lambda: len(list(good.glob("batches/*.json"))) >= 5 or process.poll() is not None)
    process.kill()
    process.communicate()
    kept = sorted(good.glob("batches/[0-9]*.json"))
    assert kept
    (bad / "batches").mkdir(parents=True)
    shutil.copy(kept[0], bad / "batches" / kept[0].name)
    kept[0].write_bytes(kept[0].read_bytes()[:-20])
    assert desk.run(*desk.arguments(first, second)) == 1
    assert steady(desk.decision) == undisturbed


def test_two_gates_at_once_share_one_measurement_of_the_baseline(desk: Desk) -> None:
    desk.policy(PERPLEXITY, SCORE)
    first = desk.manifest("baseline", {"latency_s": 0.02})
    others = [desk.manifest(f"candidate{i}", {"noise_seed": 5 + i}) for i in range(2)]
    outs = [desk.folder / f"out{i}" for i in range(2)]
    command = [
        [*desk.arguments(first, other), "--out", str(out)] for other, out in zip(others, outs, strict=True)
    ]
    processes = [desk.spawn(*arguments) for arguments in command]
    for process in processes:
        _, error = process.communicate(timeout=120)
        assert process.returncode == 0, error.decode()
    decisions = [Decision.model_validate_json((out / "decision.json").read_bytes()) for out in outs]
    for name in SETS:
        stored = [s.stored for d in decisions for s in d.stages if (s.arm, s.name) == ("baseline", name)]
        assert sorted(stored) == [False, True]
    assert decisions[0].baseline.measurements == decisions[1].baseline.measurements
    assert len(desk.records()) == 3 * len(SETS)


def _damage(how: str, folder: Path) -> None:
    parquet, record = folder / "observations.parquet", folder / "record.json"
    match how:
        case "truncated parquet":
            parquet.write_bytes(parquet.read_bytes()[:-100])
        case "flipped byte":
            data = bytearray(parquet.read_bytes())
            data[len(data) // 2] ^= 1
            parquet.write_bytes(bytes(data))
        case "no parquet":
            parquet.unlink()
        case "truncated record":
            record.write_bytes(record.read_bytes()[:-10])
        case "empty record":
            record.write_bytes(b"")
        case "another kind of record":
            record.write_text("[]")
        case "edited record":
            data = json.loads(record.read_text())
            data["planned"] += 0
            data["stage"]["seconds"] = 0.0
            record.write_text(json.dumps(data))


@pytest.mark.parametrize(
    "how",
    [
        "truncated parquet", "flipped byte", "no parquet", "truncated record", "empty record",
        "another kind of record", "edited record",
    ],
)  # fmt: skip
def test_a_damaged_record_is_never_used(desk: Desk, how: str) -> None:
    desk.policy(PERPLEXITY)
    assert desk.gate() == 0
    broken = desk.home / "store" / desk.decision.baseline.measurements["prose"].removeprefix("sha256:")
    _damage(how, broken)
    assert desk.gate() == 4
    assert desk.decision.verdict is Verdict.ERROR
    assert "damaged record" in desk.reasons
    assert str(broken) in desk.reasons
    shutil.rmtree(broken)
    assert desk.gate() == 0, "the message says what helps"


def test_a_better_arms_record_under_the_candidates_address_is_refused(desk: Desk) -> None:
    """The contaminated cache: a blocked candidate with the baseline's measurements copied over its own."""
    desk.policy(PERPLEXITY)
    assert desk.gate({"bias_nats": 0.3}) == 1
    store = desk.home / "store"
    arms = desk.decision.baseline, desk.decision.candidate
    good, bad = (store / arm.measurements["prose"].removeprefix("sha256:") for arm in arms)
    for name in ("record.json", "observations.parquet"):
        shutil.copy(good / name, bad / name)
    assert desk.gate({"bias_nats": 0.3}) == 4
    assert desk.decision.verdict is Verdict.ERROR


def test_a_full_disk_is_an_error_without_half_written_files(desk: Desk) -> None:
    desk.policy(PERPLEXITY)
    first, second = desk.manifest("baseline"), desk.manifest("candidate")
    third = desk.manifest("third", {"noise_seed": 9})
    assert desk.run(*desk.arguments(first, second)) == 0  # caches and the baseline's record are there

    def small() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))

    before = {path for path in desk.folder.rglob("*") if path.is_file()} - set(desk.out.rglob("*"))
    process = desk.spawn(*desk.arguments(first, third), preexec_fn=small)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 4, error.decode()
    assert b"cannot be written" in error
    assert b"Traceback" not in error
    assert not (desk.out / "decision.json").exists()
    after = {path for path in desk.folder.rglob("*") if path.is_file()} - set(desk.out.rglob("*"))
    assert {path for path in after - before if path.suffix != ".lock"} == set()
    assert desk.run(*desk.arguments(first, third)) == 0, "with room again, the same command works"


def test_a_store_that_cannot_be_written_is_an_error(desk: Desk) -> None:
    desk.policy(PERPLEXITY)
    first, second = desk.manifest("baseline"), desk.manifest("candidate")
    (desk.home / "store").parent.mkdir(exist_ok=True)
    (desk.home / "store").write_text("a file where a directory should be")
    assert desk.run(*desk.arguments(first, second)) == 4
    assert desk.decision.verdict is Verdict.ERROR


def test_a_log_that_cannot_be_written_is_an_error(desk: Desk) -> None:
    desk.policy(PERPLEXITY)
    desk.out.mkdir()
    (desk.out / "logs").write_text("a file where a directory should be")
    assert desk.gate() == 4
    assert desk.decision.verdict is Verdict.ERROR
    assert "the tool or the host failed" in desk.reasons


def test_an_earlier_verdict_never_stands_in_for_a_gate_that_died(desk: Desk) -> None:
    desk.policy(PERPLEXITY)
    first, second = desk.manifest("baseline"), desk.manifest("candidate", {"latency_s": 0.1})
    assert desk.run(*desk.arguments(first, second)) == 0
    outputs = measured_files(
        [desk.out / n for n in ("decision.json", "junit.xml", "summary.md", "report.html")]
    )
    # bad input, found before anything is computed: the earlier outputs are left as they are
    assert desk.run(*desk.arguments(first, desk.folder / "nowhere.yaml")) == 2
    assert measured_files([Path(path) for path in outputs]) == outputs
    # a gate that is killed while it computes leaves none of them
    desk.wipe()
    process = desk.spawn(*desk.arguments(first, second))
    wait_for(lambda: _batches(desk))
    assert not any(Path(path).exists() for path in outputs)
    process.kill()
    process.communicate()
    assert not any(Path(path).exists() for path in outputs)


def test_the_console_script_for_real(desk: Desk) -> None:
    desk.policy(PERPLEXITY)
    first, second = desk.manifest("baseline"), desk.manifest("candidate", {"bias_nats": 0.3})
    done = subprocess.run(
        [str(Path(os.sys.executable).with_name("checkweigh")), *desk.arguments(first, second, "--json")],  # type: ignore[attr-defined]
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert json.loads(done.stdout)["verdict"] == "block"
    assert "perplexity" in done.stderr
