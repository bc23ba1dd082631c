"""The command line in-process: what it prints where, its exit codes, and what it must not import."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console
from tests.conftest import WriteManifest

from checkweigh import __version__
from checkweigh.cli import main
from checkweigh.cli.bars import Bars
from checkweigh.usecases.schema import DOCUMENTS

HEAVY = ("torch", "transformers", "datasets", "scipy.stats", "statsmodels", "bitsandbytes", "mlflow")
Capture = pytest.CaptureFixture[str]


@pytest.mark.parametrize(
    "arguments",
    [
        ["nope"], ["gate"], ["gate", "a.yaml"], ["gate", "--margin", "3", "a.yaml", "b.yaml"], [],
        ["gate", "a.yaml", "b.yaml", "c.yaml"], ["report"], ["schema"], ["pin", "--policy"],
    ],
)  # fmt: skip
def test_wrong_usage_exits_two_and_says_how(arguments: list[str], capsys: Capture) -> None:
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert "Usage" in (err if arguments else out)
    assert out == "" or not arguments
    assert "Traceback" not in err


def test_a_misspelt_option_is_named(capsys: Capture) -> None:
    assert main(["gate", "--polciy", "p", "a", "b"]) == 2
    assert "--polciy" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["gate", "pin", "verify", "diff", "report", "schema"])
def test_help_exits_zero(command: str, capsys: Capture) -> None:
    assert main([command, "--help"]) == 0
    assert command in capsys.readouterr().out


def test_version(capsys: Capture) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == __version__


@pytest.mark.parametrize("kind", list(DOCUMENTS))
def test_schemas_are_json_for_programs(kind: str, capsys: Capture) -> None:
    assert main(["schema", kind]) == 0
    out, err = capsys.readouterr()
    assert "properties" in json.loads(out)
    assert err == ""


def test_an_unknown_schema_lists_the_known(capsys: Capture) -> None:
    assert main(["schema", "manfest"]) == 2
    err = capsys.readouterr().err
    assert all(kind in err for kind in DOCUMENTS)


def test_pin_verify_and_diff(write_manifest: WriteManifest, capsys: Capture) -> None:
    first, second = write_manifest("one"), write_manifest("two", {"bias_nats": 0.5})
    for command in (["pin", str(first)], ["verify", str(first)]):
        capsys.readouterr()
        assert main([*command, "--json"]) == 0
        out, err = capsys.readouterr()
        assert isinstance(json.loads(out), dict)
        assert "one" in err
    assert main(["diff", str(first), str(second), "--json"]) == 0
    assert "engine.options.bias_nats" in capsys.readouterr().out
    assert main(["diff", str(first), str(second)]) == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert "bias_nats" in err
    lock = first.with_suffix(".lock.json")
    lock.write_text(lock.read_text().replace('"vocabulary": "sha256:', '"vocabulary": "sha256:0')[:-1])
    assert main(["verify", str(first)]) == 2
    assert main(["diff", str(first), str(second)]) == 2


@pytest.mark.parametrize("command", ["pin", "verify"])
def test_a_manifest_that_is_not_there(command: str, tmp_path: Path, capsys: Capture) -> None:
    assert main([command, str(tmp_path / "none.yaml")]) == 2
    assert "none.yaml" in capsys.readouterr().err


def imported(module: str) -> set[str]:
    """What a fresh interpreter has loaded after one import."""
    code = f"import sys, {module}; print('\\n'.join(sys.modules))"
    return set(
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.split()
    )


def test_the_command_line_imports_nothing_heavy() -> None:
    found = imported("checkweigh.cli")
    assert not found & {*HEAVY, "pydantic", "numpy", "scipy", "pyarrow", "jinja2"}


def test_the_pure_core_imports_nothing_heavy() -> None:
    core = (
        "decision.verdict",
        "decision.compare",
        "decision.pairing",
        "stats",
        "scoring.replies",
        "scoring.choices",
    )
    found = imported(", ".join(f"checkweigh.{name}" for name in core))
    assert not found & {
        *HEAVY,
        "pyarrow",
        "psutil",
        "multiprocessing",
        "asyncio",
        "requests",
        "checkweigh.files",
    }


def lines(bars: Bars) -> list[str]:
    assert isinstance(bars.console.file, io.StringIO)
    return bars.console.file.getvalue().splitlines()


def test_progress_without_a_terminal_is_a_line_a_stage() -> None:
    bars = Bars(Console(file=io.StringIO(), width=40))
    with bars:
        for done in range(301):
            bars.update("a stage with a name that is longer than the console", done, 300)
        bars.update("starting [bold]", 0, 1)
        bars.update("starting [bold]", 1, 1)
        bars.update("never finished", 3, 10)
    assert lines(bars) == [
        "a stage with a name that is longer than the console: 300 in 0 s",
        "starting [bold]: 0 s",
    ]


def test_a_stage_that_is_done_again_is_timed_anew() -> None:
    clock = iter([0.0, 5.0, 100.0, 102.0])
    bars = Bars(Console(file=io.StringIO()), clock=lambda: next(clock))
    for _ in range(2):
        bars.update("starting", 0, 1)
        bars.update("starting", 1, 1)
    assert lines(bars) == ["starting: 5 s", "starting: 2 s"]


def test_progress_on_a_terminal_draws_bars() -> None:
    bars = Bars(Console(file=io.StringIO(), force_terminal=True, width=80))
    with bars:
        bars.update("prose", 0, 10)
        bars.update("prose", 10, 10)
    assert list(bars.tasks) == ["prose"]
    assert "10/10" in "\n".join(lines(bars))


def test_a_broken_installation_is_no_verdict() -> None:
    code = "import sys; sys.modules['typer'] = None; from checkweigh.__main__ import run; run()"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 4
    assert "installation is broken" in done.stderr
