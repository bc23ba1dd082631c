"""The working tree beside the commit that it is compared with: their documents, and the files these name."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Literal

import yaml

from checkweigh.records.manifest import Manifest
from checkweigh.records.yaml.yaml_tree import MAX_BYTES
from checkweigh.sources.repository.git import FileChange, Repository

DocumentKind = Literal["manifest", "policy", "evalset"]
DOCUMENT_KINDS: tuple[DocumentKind, ...] = ("manifest", "policy", "evalset")
YAML = (".yaml", ".yml")


def document_kind(path: Path) -> DocumentKind | None:
    """Which of our documents a file is, by the ``schema`` it states; None for every other file.

    A file that names a schema of ours and is not YAML counts as that kind: reading it then says what is wrong.
    """
    if path.suffix not in YAML:
        return None
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError:  # gone, a folder, a link that leads nowhere
        return None
    if b"checkweigh/" not in data and b"\\" not in data:  # an escape may hide it
        return None
    try:
        loader = yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader
        values = [value for value in yaml.load_all(data, Loader=loader) if isinstance(value, dict)]
    except (yaml.YAMLError, RecursionError, ValueError):
        return next((kind for kind in DOCUMENT_KINDS if f"checkweigh/{kind}@".encode() in data), None)
    schemas = [str(value.get("schema")) for value in values]
    return next(
        (kind for kind in DOCUMENT_KINDS if any(s.startswith(f"checkweigh/{kind}@") for s in schemas)), None
    )


def named_paths(manifest: Manifest, folder: PurePosixPath) -> Iterator[str]:
    """Relative files and directories that a manifest in ``folder`` names, from the root of the repository.

    One that lies outside of the repository starts with ``..``. Absolute ones are where they are.
    """
    for text in _texts(manifest.declared()):
        kind, _, rest = text.partition(":")
        if kind == "path" and not rest.startswith(("/", "~")):
            yield os.path.normpath(folder / rest)


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _texts(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _texts(inner)


def is_below(path: str, folder: str) -> bool:
    """Whether a path is a folder, or lies in it; both from the root, ``/``-separated."""
    return folder == "." or path == folder or path.startswith(folder.rstrip("/") + "/")


@dataclass(frozen=True)
class ComparedTrees:
    """The working tree and the files of one commit, written out below ``mirror`` at the working tree's own address, so
    that a path that leads out of the one has a place to lead to from the other."""

    repository: Repository
    commit: str
    mirror: Path
    changes: tuple[FileChange, ...]

    @property
    def before(self) -> Path:
        """The root of the old files."""
        return self.mirror / self.now.relative_to(self.now.anchor)

    @property
    def now(self) -> Path:
        """The root of the working tree."""
        return self.repository.root

    @cached_property
    def touched(self) -> frozenset[str]:
        """Every path that differs, under its new and its old name."""
        return frozenset(p for change in self.changes for p in (change.path, change.was) if p is not None)

    @cached_property
    def documents(self) -> dict[DocumentKind, tuple[str, ...]]:
        """Kind -> its documents in the working tree, sorted."""
        by_kind: dict[DocumentKind, list[str]] = {kind: [] for kind in DOCUMENT_KINDS}
        for path in sorted(self.repository.files()):
            kind = document_kind(self.now / path)
            if kind is not None:
                by_kind[kind].append(path)
        return {kind: tuple(paths) for kind, paths in by_kind.items()}

    def changed(self, kind: DocumentKind) -> Iterator[FileChange]:
        """Changed files that are, or were, documents of a kind. One that was of it and now is not counts as changed:
        it is read as what it was. One that has become of it has no version before."""
        for change in self.changes:
            before = change.was is not None and document_kind(self.before / change.was) == kind
            stays = change.status != "deleted" and PurePosixPath(change.path).suffix in YAML
            if before and not stays:  # renamed to what nobody serves from is gone as well
                yield FileChange(path=change.was or change.path, status="deleted", was=change.was)
            elif before:
                yield change
            elif stays and document_kind(self.now / change.path) == kind:
                yield FileChange(path=change.path, status="added", was=None)

    def bring_untracked(self, manifest: Manifest, path: str) -> None:
        """Have files that an old manifest names and git does not track (mostly weights) in the old tree as well.

        They are those of today, whose digests the old lock then has to match. A folder in which nothing that git
        tracks has changed becomes a link to that of today; into another one they are copied, because no file of a
        model may be a link that leaves its folder.
        """
        for named in named_paths(manifest, PurePosixPath(path).parent):
            if named.split("/")[0] == "..":
                here, there = (Path(os.path.normpath(tree / named)) for tree in (self.before, self.now))
                if self.mirror in here.parents:
                    _link(here, there)
                continue
            untracked = self.repository.untracked(named)
            tracked = {c.was for c in self.changes} | {
                c.path for c in self.changes if c.path not in untracked
            }
            if untracked and not any(path is not None and is_below(path, named) for path in tracked):
                if not (self.before / named).is_symlink():
                    shutil.rmtree(self.before / named, ignore_errors=True)
                _link(self.before / named, self.now / named)
                continue
            for file in untracked:
                _copy(self.now / file, self.before / file)

    def with_repo_paths(self, text: str) -> str:
        """``text`` with paths of the old tree shown under its commit, and those of the working tree from its root."""
        text = text.replace(str(self.before), self.commit[:12]).replace(str(self.mirror), "")
        return text.replace(f"{self.now}/", "")


def _copy(file: Path, copy: Path) -> None:
    if not os.path.lexists(copy) and file.is_file():
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)


def _link(link: Path, target: Path) -> None:
    if not os.path.lexists(link):
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(target)
