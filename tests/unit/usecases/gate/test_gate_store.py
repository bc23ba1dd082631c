"""Gates and the store: what is reused, what never is, and what happens to a gate that is killed."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from tests.unit.usecases.gate_bench import (
    ENDINGS,
    PERPLEXITY,
    SCORE,
    TPOT,
    GateBench,
    measured_files,
    workers,
)
from tests.waiting import until

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


def test_the_baseline_is_measured_once_for_many_candidates(bench: GateBench) -> None:
    assert bench.gate({"noise_seed": 2}) == 0
    kept = measured_files([folder / "record.json" for folder in bench.records()])
    assert len(kept) == 6
    assert bench.gate({"noise_seed": 3}) == 0
    assert bench.stages() == {
        (role, name): role == "baseline" for role in ("baseline", "candidate") for name in SETS
    }
    now = measured_files([folder / "record.json" for folder in bench.records()])
    assert len(now) == 9
    assert {path: now[path] for path in kept} == kept


def test_timing_is_never_reused(bench: GateBench) -> None:
    bench.policy(PERPLEXITY, SCORE, TPOT, attempts=2)
    slow = {"token_latency_s": 0.001}
    assert bench.gate(slow, slow) == 0
    first = bench.decision.timing
    assert bench.gate(slow, slow, more=["--again"]) == 0
    assert all(bench.stages().values()), "quality came from the store"
    second = bench.decision.timing
    assert first is not None
    assert second is not None
    assert [b.baseline for b in first.blocks] != [b.baseline for b in second.blocks]
    assert [b.order for b in first.blocks] == [b.order for b in second.blocks], (
        "the order follows from the seed"
    )
    assert not any("timing" in path.name and path.is_dir() for path in (bench.home / "store").iterdir())


def test_a_manifest_against_itself_is_executed_twice(bench: GateBench) -> None:
    manifest = bench.manifest("baseline")
    for gate in (1, 2):
        bench.policy(PERPLEXITY, SCORE, seed=gate)
        assert bench.run(*bench.arguments(manifest, manifest)) == 0, bench.stderr
        decision = bench.decision
        assert (decision.baseline.replicate, decision.candidate.replicate) == (0, gate)
        assert decision.baseline.pins == decision.candidate.pins
        for name in SETS:
            assert decision.baseline.measurements[name] != decision.candidate.measurements[name]
            assert not bench.stages()["candidate", name], "nothing of the candidate is read from the store"
            assert bench.stages()["baseline", name] == (gate == 2)
        assert bench.result("perplexity").comparison.kind == "identical"
    assert len(bench.records()) == 3 * len(SETS)


def test_a_renamed_copy_counts_as_itself(bench: GateBench) -> None:
    bench.policy(PERPLEXITY)
    first = bench.manifest("baseline")
    second = bench.manifest("candidate", {"noise_seed": 1}, comment="the same under another name")
    assert bench.run(*bench.arguments(first, second)) == 0
    decision = bench.decision
    assert decision.candidate.name == "candidate"
    assert decision.candidate.replicate == 1
    assert decision.changes == ()
    assert not bench.stages()["candidate", "prose"]


def test_a_killed_gate_goes_on_where_it_stopped(bench: GateBench) -> None:
    """SIGKILL in the middle of the candidate; every batch is measured exactly once over both runs."""
    bench.policy(PERPLEXITY, ENDINGS)
    first, second = bench.manifest("baseline"), bench.manifest("candidate", {"latency_s": 0.05})
    assert bench.run(*bench.arguments(first, second)) == 0
    undisturbed = steady(bench.decision)
    bench.wipe()

    process = bench.spawn(*bench.arguments(first, second))
    until(lambda: len(bench.records()) == 2 and len(_batches(bench)) >= 3)
    engines = workers(process.pid)
    assert engines
    process.kill()
    process.communicate()
    psutil.wait_procs(engines, timeout=5)
    assert not any(engine.is_running() for engine in engines), "the engines left with their gate"
    assert not (bench.out / "decision.json").exists()
    kept = measured_files(_batches(bench))
    assert kept

    process = bench.spawn(*bench.arguments(first, second))
    seen: dict[str, tuple[int, bytes]] = {}

    def over() -> bool:
        for path in _batches(bench):
            if path.parent.parent.name in {Path(p).parent.parent.name for p in kept}:
                with suppress(FileNotFoundError):
                    seen.update(measured_files([path]))
        return process.poll() is not None

    until(over, 120)
    assert process.returncode == 0, process.communicate()[1].decode()
    process.communicate()
    assert set(kept) <= set(seen), "the kept batches were still there while the rest was measured"
    assert {path: seen[path] for path in kept} == kept, "no batch was measured twice"
    assert steady(bench.decision) == undisturbed


def _batches(bench: GateBench) -> list[Path]:
    """Batches of measurements that are not complete; those of a complete one are about to be removed."""
    try:
        batches = sorted((bench.home / "store").glob("*/batches/[0-9]*.json"))
        return [path for path in batches if not (path.parent.parent / "record.json").exists()]
    except FileNotFoundError:  # a record was completed, and its batches removed, while we looked
        return []


@pytest.mark.parametrize("when", ["starting", "measuring"])
def test_ctrl_c_leaves_no_engine_and_no_verdict(bench: GateBench, when: str) -> None:
    bench.policy(PERPLEXITY)
    first, second = bench.manifest("baseline"), bench.manifest("candidate", {"latency_s": 0.1})
    process = bench.spawn(*bench.arguments(first, second))
    until(lambda: workers(process.pid) and (when == "starting" or _batches(bench)))
    engines = workers(process.pid)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=30)
    assert process.returncode == 4
    assert b"interrupted" in error
    assert b"Traceback" not in error
    psutil.wait_procs(engines, timeout=5)
    assert not any(engine.is_running() for engine in engines)
    assert not (bench.out / "decision.json").exists()


def test_a_batch_damaged_by_a_crash_is_measured_again(bench: GateBench) -> None:
    """Truncated, edited, or another arm's: the decision is that of a gate nobody disturbed."""
    bench.policy(PERPLEXITY)
    first, second = (
        bench.manifest("baseline", {"latency_s": 0.02}),
        bench.manifest("candidate", {"bias_nats": 0.3}),
    )
    assert bench.run(*bench.arguments(first, second)) == 1
    undisturbed = steady(bench.decision)
    arms = bench.decision.baseline, bench.decision.candidate
    good, bad = (bench.home / "store" / arm.measurements["prose"].removeprefix("sha256:") for arm in arms)
    bench.wipe()
    process = bench.spawn(*bench.arguments(first, second))
    until(lambda: len(list(good.glob("batches/*.json"))) >= 5 or process.poll() is not None)
    process.kill()
    process.communicate()
    kept = sorted(good.glob("batches/[0-9]*.json"))
    assert kept
    (bad / "batches").mkdir(parents=True)
    shutil.copy(kept[0], bad / "batches" / kept[0].name)
    kept[0].write_bytes(kept[0].read_bytes()[:-20])
    assert bench.run(*bench.arguments(first, second)) == 1
    assert steady(bench.decision) == undisturbed


def test_two_gates_at_once_share_one_measurement_of_the_baseline(bench: GateBench) -> None:
    bench.policy(PERPLEXITY, SCORE)
    first = bench.manifest("baseline", {"latency_s": 0.02})
    others = [bench.manifest(f"candidate{i}", {"noise_seed": 5 + i}) for i in range(2)]
    outs = [bench.folder / f"out{i}" for i in range(2)]
    command = [
        [*bench.arguments(first, other), "--out", str(out)] for other, out in zip(others, outs, strict=True)
    ]
    processes = [bench.spawn(*arguments) for arguments in command]
    for process in processes:
        _, error = process.communicate(timeout=120)
        assert process.returncode == 0, error.decode()
    decisions = [Decision.model_validate_json((out / "decision.json").read_bytes()) for out in outs]
    for name in SETS:
        stored = [s.stored for d in decisions for s in d.stages if (s.arm, s.name) == ("baseline", name)]
        assert sorted(stored) == [False, True]
    assert decisions[0].baseline.measurements == decisions[1].baseline.measurements
    assert len(bench.records()) == 3 * len(SETS)


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
def test_a_damaged_record_is_never_used(bench: GateBench, how: str) -> None:
    bench.policy(PERPLEXITY)
    assert bench.gate() == 0
    broken = bench.home / "store" / bench.decision.baseline.measurements["prose"].removeprefix("sha256:")
    _damage(how, broken)
    assert bench.gate() == 4
    assert bench.decision.verdict is Verdict.ERROR
    assert "damaged record" in bench.reasons
    assert str(broken) in bench.reasons
    shutil.rmtree(broken)
    assert bench.gate() == 0, "the message says what helps"


def test_a_better_arms_record_under_the_candidates_address_is_refused(bench: GateBench) -> None:
    """The contaminated cache: a blocked candidate with the baseline's measurements copied over its own."""
    bench.policy(PERPLEXITY)
    assert bench.gate({"bias_nats": 0.3}) == 1
    store = bench.home / "store"
    arms = bench.decision.baseline, bench.decision.candidate
    good, bad = (store / arm.measurements["prose"].removeprefix("sha256:") for arm in arms)
    for name in ("record.json", "observations.parquet"):
        shutil.copy(good / name, bad / name)
    assert bench.gate({"bias_nats": 0.3}) == 4
    assert bench.decision.verdict is Verdict.ERROR


def test_a_full_disk_is_an_error_without_half_written_files(bench: GateBench) -> None:
    bench.policy(PERPLEXITY)
    first, second = bench.manifest("baseline"), bench.manifest("candidate")
    third = bench.manifest("third", {"noise_seed": 9})
    assert bench.run(*bench.arguments(first, second)) == 0  # caches and the baseline's record are there

    def small() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))

    before = {path for path in bench.folder.rglob("*") if path.is_file()} - set(bench.out.rglob("*"))
    process = bench.spawn(*bench.arguments(first, third), preexec_fn=small)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 4, error.decode()
    assert b"cannot be written" in error
    assert b"Traceback" not in error
    assert not (bench.out / "decision.json").exists()
    after = {path for path in bench.folder.rglob("*") if path.is_file()} - set(bench.out.rglob("*"))
    assert {path for path in after - before if path.suffix != ".lock"} == set()
    assert bench.run(*bench.arguments(first, third)) == 0, "with room again, the same command works"


def test_a_store_that_cannot_be_written_is_an_error(bench: GateBench) -> None:
    bench.policy(PERPLEXITY)
    first, second = bench.manifest("baseline"), bench.manifest("candidate")
    (bench.home / "store").parent.mkdir(exist_ok=True)
    (bench.home / "store").write_text("a file where a directory should be")
    assert bench.run(*bench.arguments(first, second)) == 4
    assert bench.decision.verdict is Verdict.ERROR


def test_a_log_that_cannot_be_written_is_an_error(bench: GateBench) -> None:
    bench.policy(PERPLEXITY)
    bench.out.mkdir()
    (bench.out / "logs").write_text("a file where a directory should be")
    assert bench.gate() == 4
    assert bench.decision.verdict is Verdict.ERROR
    assert "the tool or the host failed" in bench.reasons


def test_an_earlier_verdict_never_stands_in_for_a_gate_that_died(bench: GateBench) -> None:
    bench.policy(PERPLEXITY)
    first, second = bench.manifest("baseline"), bench.manifest("candidate", {"latency_s": 0.1})
    assert bench.run(*bench.arguments(first, second)) == 0
    outputs = measured_files(
        [bench.out / n for n in ("decision.json", "junit.xml", "summary.md", "report.html")]
    )
    # bad input, found before anything is computed: the earlier outputs are left as they are
    assert bench.run(*bench.arguments(first, bench.folder / "nowhere.yaml")) == 2
    assert measured_files([Path(path) for path in outputs]) == outputs
    # a gate that is killed while it computes leaves none of them
    bench.wipe()
    process = bench.spawn(*bench.arguments(first, second))
    until(lambda: _batches(bench))
    assert not any(Path(path).exists() for path in outputs)
    process.kill()
    process.communicate()
    assert not any(Path(path).exists() for path in outputs)


def test_the_console_script_for_real(bench: GateBench) -> None:
    bench.policy(PERPLEXITY)
    first, second = bench.manifest("baseline"), bench.manifest("candidate", {"bias_nats": 0.3})
    done = subprocess.run(
        [str(Path(os.sys.executable).with_name("checkweigh")), *bench.arguments(first, second, "--json")],  # type: ignore[attr-defined]
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert json.loads(done.stdout)["verdict"] == "block"
    assert "perplexity" in done.stderr
