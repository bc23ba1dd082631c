"""A scratch repository with manifests, a policy and sets, and a pull request that edits them."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from tests.unit.usecases.gate_bench import GateBench

from checkweigh.usecases.scaffold import WORKFLOWS as WORKFLOW

AUTHOR = {
    f"GIT_{who}_{what}": "tester@example.org" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")
}
ROOT = Path(__file__).resolve().parents[1]
CLEAN = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}


class Repo:
    """A repository in a directory."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def git(self, *arguments: str, cwd: Path | None = None) -> str:
        """Run git here; what it printed."""
        return subprocess.run(
            ["git", *arguments], cwd=cwd or self.root, env=os.environ | AUTHOR | CLEAN,
            check=True, capture_output=True, text=True,
        ).stdout.strip()  # fmt: skip

    def commit(self, message: str) -> str:
        """Commit everything; the commit."""
        self.git("add", "-A")
        self.git("commit", "-q", "--allow-empty", "-m", message)
        return self.git("rev-parse", "HEAD")

    def edit(self, path: str, **changes: Any) -> None:
        """Change top-level keys of a YAML document."""
        file = self.root / path
        file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | changes, sort_keys=False))

    def with_workflow(self) -> None:
        """The workflow and its action where `checkweigh init` puts them."""
        for source, target in WORKFLOW.items():
            (self.root / target).parent.mkdir(parents=True)
            shutil.copy(ROOT / source, self.root / target)


class Scratch(Repo):
    """A bench's directory as a repository: ``main`` holds what it held and one manifest, HEAD is branch ``change``."""

    def __init__(self, bench: GateBench) -> None:
        super().__init__(bench.folder)
        self.bench = bench
        (self.root / "manifests").mkdir()
        (self.root / ".gitignore").write_text("/home/\n/out/\n/runs/\n")
        self.git("init", "-q", "-b", "main")
        self.manifest("served", {})
        self.commit("what is served")
        self.git("checkout", "-q", "-b", "change")

    def manifest(self, name: str, knobs: Mapping[str, Any], **sections: Any) -> Path:
        """``manifests/NAME.yaml`` of the fake engine, pinned."""
        written = self.bench.manifest(name, {"noise_seed": 1} | dict(knobs), **sections)
        for file in (written, written.with_suffix(".lock.json")):
            shutil.move(file, self.root / "manifests" / file.name)
        return self.root / "manifests" / written.name
