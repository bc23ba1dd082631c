"""Ways in which a gate has been seen to fail open that need a running engine, a file or the command line.

The record-level rows stand in tests/unit/test_never_fails_open.py. Not one of these may exit 0, and none may exit 1
without the decision that says why: a tool that crashes with exit code 1 reads as a block.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from tests.conftest import WriteManifest
from tests.unit.usecases.gate_bench import CONSOLE, PERPLEXITY, SCORE, GateBench


@pytest.fixture
def bench(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    write_manifest: WriteManifest,
    capfd: pytest.CaptureFixture[str],
) -> GateBench:
    """A working directory with sets and a policy, the current one."""
    return GateBench(tmp_path, monkeypatch, write_manifest, capfd)


def arms(bench: GateBench) -> tuple[Path, Path]:
    return bench.manifest("baseline"), bench.manifest("candidate")


def refused(bench: GateBench, *messages: str) -> None:
    """The gate exits 2, says each of these on stderr, and writes nothing."""
    assert bench.run(*bench.arguments(*arms(bench))) == 2, bench.stderr
    for text in messages:
        assert text in bench.stderr
    assert "Traceback" not in bench.stderr
    assert bench.stdout == ""
    assert not bench.out.exists()


def test_an_unknown_set_lists_the_known_ones(bench: GateBench) -> None:
    bench.policy(PERPLEXITY | {"evalset": ["prosa"]})
    refused(bench, "'prosa'", "answers", "choices", "prose")


def test_a_metric_that_its_set_does_not_measure(bench: GateBench) -> None:
    bench.policy(PERPLEXITY | {"evalset": ["choices"]})
    refused(bench, "checks[0].evalset", "a set of kind text for log_perplexity", "choices (choice)")


def test_a_stratum_that_does_not_exist(bench: GateBench) -> None:
    bench.policy(PERPLEXITY | {"where": {"stratum": "s9"}})
    refused(bench, "checks[0].where.stratum", "s0, s1, s2, s3", "s9")


def test_timing_without_prompts(bench: GateBench) -> None:
    tpot = {"metric": "tpot", "statistic": "p50", "evalset": [], "scale": "relative", "id": "tpot"}
    tpot |= {"tier": "advisory", "min_clusters": 6}
    bench.policy(PERPLEXITY, PERPLEXITY | tpot)
    refused(bench, "checks[1].metric", "whose prompts are timed")


def test_everything_wrong_is_said_at_once(bench: GateBench) -> None:
    bench.policy(
        PERPLEXITY | {"evalset": ["prosa"]},
        SCORE | {"evalset": ["prose"], "id": "second"},
        PERPLEXITY | {"where": {"stratum": "s9"}, "id": "third"},
    )
    first, _ = arms(bench)
    arguments = bench.arguments(first, bench.folder / "nowhere.yaml")
    first.with_suffix(".lock.json").unlink()
    assert bench.run(*arguments) == 2
    for text in (
        "'prosa'",
        "checks[1].evalset",
        "checks[2].where.stratum",
        "baseline.lock.json",
        "nowhere.yaml",
    ):
        assert text in bench.stderr, text


@pytest.mark.parametrize(
    "name", ["gates/test.yaml", "candidate.yaml", "candidate.lock.json", "evalsets/prose/items.jsonl"]
)
def test_a_file_that_is_not_there(bench: GateBench, name: str) -> None:
    bench.policy(PERPLEXITY)
    paths = arms(bench)
    (bench.folder / name).unlink()
    assert bench.run(*bench.arguments(*paths)) == 2
    assert Path(name).name in bench.stderr
    assert "Traceback" not in bench.stderr


def test_items_that_were_swapped_between_two_gates(bench: GateBench) -> None:
    bench.policy(PERPLEXITY)
    assert bench.gate() == 0
    path = bench.folder / "evalsets/prose/items.jsonl"
    lines = path.read_text().splitlines()
    lines[0], lines[1] = lines[1], lines[0]
    path.write_text("\n".join(lines) + "\n")
    assert bench.gate() == 2
    assert "items.jsonl" in bench.stderr
    assert "digest" in bench.stderr


def test_a_set_of_another_version_is_measured_anew(bench: GateBench) -> None:
    """Items and card changed together, with the old time stamps, as an unpacked archive has them."""
    bench.policy(PERPLEXITY)
    assert bench.gate() == 0
    first = bench.decision
    path, card = bench.folder / "evalsets/prose/items.jsonl", bench.folder / "evalsets/prose/card.yaml"
    stat = path.stat()
    path.write_text(path.read_text().replace("of many words", "of more words"))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    from checkweigh import canonical

    document = yaml.safe_load(card.read_text())
    card.write_text(yaml.safe_dump(document | {"digest": canonical.digest_bytes(path.read_bytes())}))
    assert bench.gate() == 3, "the same candidate on another set is a later try, and none was declared"
    assert bench.gate({"noise_seed": 3}) == 0, bench.stderr
    assert bench.decision.evalsets != first.evalsets
    assert not any(bench.stages().values())
    assert bench.result("perplexity").comparison.baseline != first.checks[0].comparison.baseline


def test_a_manifest_that_was_changed_after_it_was_pinned(bench: GateBench) -> None:
    bench.policy(PERPLEXITY)
    first, second = arms(bench)
    second.write_text(second.read_text().replace("noise_seed: 2", "noise_seed: 1"))
    assert bench.run(*bench.arguments(first, second)) == 2
    assert "candidate" in bench.stderr
    assert not bench.out.exists()


def test_an_output_place_that_is_a_file(bench: GateBench) -> None:
    bench.policy(PERPLEXITY)
    paths = arms(bench)
    bench.out.write_text("precious")
    assert bench.run(*bench.arguments(*paths)) == 2
    assert "--out" in bench.stderr
    assert "Traceback" not in bench.stderr
    assert bench.out.read_text() == "precious"


def test_an_output_place_that_cannot_be_written(bench: GateBench) -> None:
    bench.policy(PERPLEXITY)
    paths = arms(bench)
    assert bench.run(*bench.arguments(*paths)[:-1], "/proc/checkweigh") == 2
    assert "--out /proc/checkweigh" in bench.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_pass_that_cannot_be_delivered_is_neither_pass_nor_block(bench: GateBench) -> None:
    bench.policy(PERPLEXITY)
    arguments = [str(CONSOLE), *bench.arguments(*arms(bench), "--json")]
    with open("/dev/full", "wb") as full:
        done = subprocess.run(arguments, stdout=full, stderr=subprocess.PIPE, check=False)
    assert done.returncode == 4, done.stderr.decode()
    assert b"No space left" in done.stderr
    assert b"Traceback" not in done.stderr
    for buffered in ("", "1"):  # the write fails at once, or only when the process ends
        env = os.environ | {"PYTHONUNBUFFERED": buffered}
        with open("/dev/full", "wb") as full:
            done = subprocess.run(
                [str(CONSOLE), "--version"], stdout=full, stderr=subprocess.PIPE, env=env, check=False
            )
        assert done.returncode == 4
        assert b"No space left" in done.stderr
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(arguments, stdout=write, stderr=subprocess.PIPE, check=False)
    os.close(write)
    assert done.returncode == 4, "typer exits 1 when a pipe is closed, which would read as a block"


def test_an_unforeseen_crash_is_no_verdict(bench: GateBench) -> None:
    """A fault of the tool's own, forced in a real process."""
    code = (
        "import sys, checkweigh.usecases.gate.run as g\n"
        "def fall(*_, **__): raise ZeroDivisionError('a bug')\n"
        "g.gate = fall\n"
        "from checkweigh.cli import entry\n"
        "sys.argv = ['checkweigh', *sys.argv[1:]]\n"
        "entry()"
    )
    bench.policy(PERPLEXITY)
    command = [sys.executable, "-c", code, *bench.arguments(*arms(bench))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 4
    assert "a bug" in done.stderr
    assert "not a verdict" in done.stderr
    assert done.stdout == ""


def test_a_report_is_not_re_read_as_another_verdict(bench: GateBench) -> None:
    """`report` exits as the gate did, and refuses a decision that is not whole."""
    bench.policy(PERPLEXITY)
    assert bench.gate({"bias_nats": 0.3}) == 1
    shown = bench.stderr[bench.stderr.index("BLOCK") :]
    assert bench.run("report", str(bench.out)) == 1
    assert bench.stderr[bench.stderr.index("BLOCK") :] == shown
    assert bench.run("report", str(bench.out / "decision.json"), "--json") == 1
    assert json.loads(bench.stdout)["verdict"] == "block"
    assert re.search(r"report: \S+/out/report\.html", bench.stderr)
    path = bench.out / "decision.json"
    whole = path.read_text()
    for text in (
        whole[:-20],
        "",
        "{}",
        "[]",
        whole.replace('"block"', '"passed"', 1),
        whole.replace("checks", "chekcs", 1),
    ):
        path.write_text(text)
        assert bench.run("report", str(bench.out)) == 2, text[:40]
        assert "decision.json" in bench.stderr
        assert "Traceback" not in bench.stderr
    path.unlink()
    assert bench.run("report", str(bench.out)) == 2
    assert "expected the decision of a finished gate" in bench.stderr
