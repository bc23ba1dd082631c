"""A git repository, read and never written: commits, what changed between them, and a commit's files elsewhere.

Every failure of git is a BadInput with git's own words: a question about changes that cannot be answered is never
answered with "nothing changed".
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from checkweigh.errors import BadInput

TIMEOUT_S = 300
# Set in git's hooks: they would have every folder be of the repository whose hook runs.
HOOK_VARIABLES = ("GIT_DIR", "GIT_WORK_TREE", "GIT_COMMON_DIR", "GIT_INDEX_FILE", "GIT_PREFIX")
FileStatus = Literal["added", "modified", "deleted", "renamed"]
_STATUS: dict[str, FileStatus] = {
    "A": "added",
    "D": "deleted",
    "R": "renamed",
}  # others: M, T (type), U (unmerged)


@dataclass(frozen=True, slots=True, kw_only=True)
class FileChange:
    """One file that differs, by its path from the root of the repository; ``was`` is its path before, if it had one."""

    path: str
    status: FileStatus
    was: str | None


@dataclass(frozen=True, slots=True)
class Repository:
    """A working tree, by its root. ``timeout_s``: how long one command of git may take."""

    root: Path
    timeout_s: int = TIMEOUT_S

    def commit(self, revision: str) -> str:
        """The commit that a revision names. BadInput when there is none."""
        try:
            return self._text(
                "rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}"
            )
        except BadInput:
            hint = "; this clone is shallow, fetch its whole history" if self.shallow else ""
            raise BadInput(
                f"--base: expected a commit, branch or tag of {self.root}, found '{revision}'{hint}"
            ) from None

    @property
    def shallow(self) -> bool:
        """Whether history was cut off when this clone was made."""
        return self._text("rev-parse", "--is-shallow-repository") == "true"

    @property
    def dirty(self) -> bool:
        """Whether the working tree differs from its commit, untracked files among it."""
        return bool(self._text("status", "--porcelain"))

    def remotes(self) -> dict[str, str]:
        """Name -> address of each remote, as the configuration has it, credentials included."""
        try:
            fields = self._fields("config", "--local", "--null", "--get-regexp", r"^remote\..*\.url$")
        except BadInput:  # git's way of saying that there is none
            return {}
        pairs = (field.partition("\n")[::2] for field in fields)
        return {key.removeprefix("remote.").removesuffix(".url"): address for key, address in pairs}

    def blobs(self, commit: str, paths: Sequence[str]) -> dict[str, str]:
        """Path -> object of those of the files that ``commit`` holds; links are left out."""
        if not paths:
            return {}
        fields = self._fields("ls-tree", "-r", "-z", "--full-tree", commit, "--", *paths)
        entries = (field.partition("\t")[::2] for field in fields)
        found = {path: facts.split() for facts, path in entries}
        return {path: blob for path, (mode, _, blob) in found.items() if mode != "120000"}

    def blobs_now(self, paths: Sequence[str]) -> dict[str, str]:
        """Path -> object that the file of the working tree would be if it were committed now."""
        if not paths:
            return {}
        return dict(zip(paths, self._text("hash-object", "--", *paths).split(), strict=True))

    def merge_base(self, base: str) -> str:
        """The commit where HEAD left ``base`` (a commit). BadInput when there is none, or it cannot be known here."""
        whole = "fetch the whole history (actions/checkout: fetch-depth: 0; GitLab: GIT_DEPTH: 0)"
        head = self.commit("HEAD")
        try:
            merge_base = self._text("merge-base", base, head)
        except BadInput:
            why = f"this clone is shallow: {whole}" if self.shallow else "they have no common history"
            raise BadInput(f"--base: {base[:12]} and HEAD have no merge base here; {why}") from None
        if merge_base != base and self.shallow:
            raise BadInput(
                f"--base: this clone is shallow, so its merge base with {base[:12]} may not be the real one; {whole}"
            )
        return merge_base

    def changes(self, commit: str) -> tuple[FileChange, ...]:
        """Files of the working tree that differ from ``commit``, untracked ones among them (ignored ones are not)."""
        fields = self._fields("diff", "--name-status", "-z", "--find-renames", "--no-ext-diff", commit, "--")
        changed = []
        while fields:
            status, path = fields.pop(0), fields.pop(0)
            kind = _STATUS.get(status[0], "modified")
            was = None if kind == "added" else path
            if status[0] in "RC":  # two paths; a copy is a new file
                path, was = fields.pop(0), path if kind == "renamed" else None
            changed.append(FileChange(path=path, status=kind, was=was))
        untracked = self._fields("ls-files", "-z", "--others", "--exclude-standard")
        return (*changed, *(FileChange(path=path, status="added", was=None) for path in untracked))

    def files(self) -> tuple[str, ...]:
        """Files of the working tree: tracked, and untracked ones that are not ignored."""
        return tuple(
            dict.fromkeys(self._fields("ls-files", "-z", "--cached", "--others", "--exclude-standard"))
        )

    def untracked(self, below: str) -> tuple[str, ...]:
        """Files below a path that git does not hold, ignored ones among them."""
        return tuple(self._fields("ls-files", "-z", "--others", "--", f":(literal){below}"))

    def write_out(self, commit: str, target: Path) -> None:
        """The files of ``commit`` below ``target``, read-only, as a checkout writes them; submodules are left out."""
        target.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="checkweigh-index-") as folder:
            index = {"GIT_INDEX_FILE": str(Path(folder) / "index")}
            self._run("read-tree", commit, env=index)
            self._run("checkout-index", "--all", "--force", f"--prefix={target.resolve()}/", env=index)
        for path in target.rglob("*"):
            if path.is_file() and not path.is_symlink():
                path.chmod(0o444)

    def _text(self, *arguments: str) -> str:
        return os.fsdecode(self._run(*arguments)).strip()

    def _fields(self, *arguments: str) -> list[str]:
        return [os.fsdecode(field) for field in self._run(*arguments).split(b"\0")[:-1]]

    def _run(self, *arguments: str, env: dict[str, str] | None = None) -> bytes:
        return _git(self.root, *arguments, env=env, timeout_s=self.timeout_s)


def repository(folder: Path) -> Repository:
    """The repository that a folder lies in. BadInput when there is none, or git is not installed."""
    root = os.fsdecode(_git(folder, "rev-parse", "--show-toplevel")).rstrip("\n")
    if not root:
        raise BadInput(f"{folder}: expected a working tree of git, found a bare repository")
    return Repository(Path(root))


def _git(
    folder: Path, *arguments: str, env: dict[str, str] | None = None, timeout_s: int = TIMEOUT_S
) -> bytes:
    outside = {name: value for name, value in os.environ.items() if name not in HOOK_VARIABLES}
    try:
        completed = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True, timeout=timeout_s, check=False, stdin=subprocess.DEVNULL,
            env={**outside, "LC_ALL": "C", "GIT_OPTIONAL_LOCKS": "0", **(env or {})},
        )  # fmt: skip
    except FileNotFoundError:
        raise BadInput("git is not installed here: what changed cannot be known") from None
    except subprocess.TimeoutExpired:
        raise BadInput(f"git {arguments[0]} in {folder} did not end in {timeout_s} s") from None
    if completed.returncode != 0:
        reason = completed.stderr.decode("utf-8", "replace").strip() or f"exit status {completed.returncode}"
        raise BadInput(f"git {arguments[0]} in {folder} failed: {reason}")
    return completed.stdout
