"""A scratch repository with manifests, a policy and sets, and a pull request that edits them."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from tests.unit.usecases.desk import Desk

AUTHOR = {
    f"GIT_{who}_{what}": "tester@example.org" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")
}
CLEAN = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}


class Scratch:
    """A desk's directory as a repository: ``main`` holds what it held and one manifest, HEAD is branch ``change``."""

    def __init__(self, desk: Desk) -> None:
        self.desk, self.root = desk, desk.folder
        (self.root / "manifests").mkdir()
        (self.root / ".gitignore").write_text("/home/\n/out/\n/runs/\n")
        self.git("init", "-q", "-b", "main")
        self.manifest("served", {})
        self.commit("what is served")
        self.git("checkout", "-q", "-b", "change")

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

    def manifest(self, name: str, knobs: Mapping[str, Any], **sections: Any) -> Path:
        """``manifests/NAME.yaml`` of the fake engine, pinned."""
        written = self.desk.manifest(name, {"noise_seed": 1} | dict(knobs), **sections)
        for file in (written, written.with_suffix(".lock.json")):
            shutil.move(file, self.root / "manifests" / file.name)
        return self.root / "manifests" / written.name

    def edit(self, path: str, **changes: Any) -> None:
        """Change top-level keys of a YAML document."""
        file = self.root / path
        file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | changes, sort_keys=False))
