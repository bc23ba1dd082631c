"""A working directory in which gates run end to end with the fake engine, in a second or two."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from tests.builders import check, evalset

from checkweigh import canonical
from checkweigh.cli import main
from checkweigh.records.decision import CheckResult, Decision
from checkweigh.records.evalset import EvalSet

CONSOLE = Path(sys.executable).with_name("checkweigh")
SIZES = {"prose": ("text", 320), "choices": ("choice", 320), "answers": ("generation", 320)}
NOISE = 0.02  # nats; two noise seeds make two equal arms that are not identical
PERPLEXITY = check(
    id="perplexity", metric="log_perplexity", evalset=["prose"], direction="lower", scale="log", margin=0.05
)
SCORE = check(id="score", evalset=["choices", "answers"], margin=0.05)
ENDINGS = check(
    id="bad-endings", metric="bad_ending", evalset=["answers"], direction="lower", margin=0.03, min_items=300
)
LONGER = check(
    id="longer", metric="log_length", evalset=["answers"], direction="lower", scale="relative", margin=0.1
)
TPOT = check(
    id="tpot", metric="tpot", statistic="p50", evalset=[], direction="lower", scale="relative", margin=0.5,
    tier="advisory", min_items=6, min_clusters=6,
)  # fmt: skip
TIMING = {"pairs": 6, "requests": 1, "output_tokens": 4, "max_seconds": 30}
Knobs = Mapping[str, Any]


class GateBench:
    """``bench.gate(candidate={knob: value})`` writes and pins both manifests, runs the gate and keeps its decision.

    Manifests are named by role; the sets and ``gates/test.yaml`` lie in ``folder``, the current directory.
    """

    def __init__(
        self,
        folder: Path,
        monkeypatch: pytest.MonkeyPatch,
        write_manifest: Any,
        capfd: pytest.CaptureFixture[str],
    ) -> None:
        self.folder, self.write, self.capfd = folder, write_manifest, capfd
        self.home = folder / "home"
        self.out = folder / "out"
        self.stdout = self.stderr = ""
        monkeypatch.chdir(folder)
        for name, (kind, size) in SIZES.items():
            self.put(evalset(kind, size, name=name))
        self.policy()

    def put(self, source: EvalSet, too_long: int = 0) -> None:
        """Write a set below evalsets/, its answers being what the fake engine says; some prompts ``too_long``."""
        target = self.folder / "evalsets" / source.card.name
        target.mkdir(parents=True, exist_ok=True)
        rows = [item.model_dump(mode="json") for item in source.items]
        for i, row in enumerate(rows):
            if source.card.kind != "text":
                row["messages"][0]["content"] = f"Question {i} of a test: say {'yes' if i % 2 == 0 else 'no'}"
                if i < too_long:
                    row["messages"][0]["content"] += " and then yes" * 200
            if source.card.kind == "generation":
                row["check"]["values"] = ["yes" if i % 2 == 0 else "no"]
        data = "".join(json.dumps(row) + "\n" for row in rows).encode()
        (target / "items.jsonl").write_bytes(data)
        card = source.card.model_dump(mode="json") | {"digest": canonical.digest_bytes(data)}
        (target / "card.yaml").write_text(yaml.safe_dump(card))

    def policy(self, *checks: Mapping[str, Any], **changes: Any) -> None:
        """Write gates/test.yaml: three critical checks unless others are named."""
        document = {
            "schema": "checkweigh/policy@1",
            "name": "test",
            "failure_margin": 0.05,
            "timing": TIMING,
            "checks": list(checks or (PERPLEXITY, SCORE, ENDINGS)),
        } | changes
        (self.folder / "gates").mkdir(exist_ok=True)
        (self.folder / "gates" / "test.yaml").write_text(yaml.safe_dump(document))

    def manifest(self, role: str, knobs: Knobs | None = None, **sections: Any) -> Path:
        """A pinned manifest of that name."""
        default: dict[str, Any] = {"noise_nats": NOISE, "noise_seed": 1 if role == "baseline" else 2}
        sections = {"sampling": {"max_tokens": 64}} | sections
        return Path(self.write(role, default | dict(knobs or {}), **sections))

    def arguments(self, baseline: Path, candidate: Path, *more: str) -> list[str]:
        """Of the gate command."""
        return [
            "gate",
            str(baseline),
            str(candidate),
            "--policy",
            "gates/test.yaml",
            "--out",
            str(self.out),
            *more,
        ]

    def gate(
        self, candidate: Knobs | None = None, baseline: Knobs | None = None, more: Sequence[str] = (), **sections: Any
    ) -> int:  # fmt: skip
        """Run a gate in this process; its exit code. ``sections`` are the candidate's."""
        first, second = (
            self.manifest("baseline", baseline),
            self.manifest("candidate", candidate, **sections),
        )
        return self.run(*self.arguments(first, second, *more))

    def run(self, *arguments: str) -> int:
        """Run any command in this process; keeps what it printed."""
        self.capfd.readouterr()
        code = main(list(arguments))
        self.stdout, self.stderr = self.capfd.readouterr()
        return code

    def spawn(self, *arguments: str, **options: Any) -> subprocess.Popen[bytes]:
        """The console script, for real."""
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(
            [str(CONSOLE), *arguments], cwd=self.folder, env=os.environ, **pipes | options
        )  # type: ignore[no-any-return,call-overload]

    @property
    def decision(self) -> Decision:
        """What the last gate decided."""
        return Decision.model_validate_json((self.out / "decision.json").read_bytes())

    @property
    def reasons(self) -> str:
        """All reasons of the last decision."""
        return "\n".join(self.decision.reasons)

    def result(self, name: str) -> CheckResult:
        """One check of the last decision."""
        return next(result for result in self.decision.checks if result.check.id == name)

    def stages(self) -> dict[tuple[str, str], bool]:
        """(arm, set) -> whether it came from the store."""
        return {(stage.arm, stage.name): stage.stored for stage in self.decision.stages}

    def wipe(self) -> None:
        """A home without measurements and without a ledger of attempts."""
        for name in ("store", "attempts"):
            shutil.rmtree(self.home / name, ignore_errors=True)

    def records(self) -> list[Path]:
        """Folders of the store that hold a whole record."""
        return sorted(path.parent for path in (self.home / "store").glob("*/record.json"))

    def half_written(self) -> list[Path]:
        """Temporary files that nobody removed."""
        return [path for root in (self.home, self.out) for path in root.rglob(".*") if path.is_file()]


def measured_files(paths: Sequence[Path]) -> dict[str, tuple[int, bytes]]:
    """Path -> (time of change, bytes): equal dictionaries mean that nothing was written again."""
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in paths}


def workers(parent: int) -> list[psutil.Process]:
    """Engine processes below a process."""
    try:
        children = psutil.Process(parent).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
    return [child for child in children if _is_worker(child)]


def _is_worker(process: psutil.Process) -> bool:
    try:
        return "checkweigh.engines.worker.main" in process.cmdline()
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return False
