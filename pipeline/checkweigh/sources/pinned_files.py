"""The files of a verified manifest, held against their pins again: by what ``stat`` says, and byte by byte.

A snapshot is taken once, before an engine is launched. While ``check_stats`` finds it unchanged, and one
``check_digests`` in that time found the pinned bytes, these were the bytes all along: nobody can set a change time.
What deceives it is a write through a memory map that began before the snapshot. Digests see what such a write leaves,
and nothing of one that is undone before the file is read.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from checkweigh import canonical
from checkweigh.errors import PinMismatch, Problem, SourceError
from checkweigh.progress import Progress, no_progress
from checkweigh.records.measurement import Verification
from checkweigh.sources.digests import Kind, fresh_digests, kind_of
from checkweigh.sources.model.inventory import list_files
from checkweigh.sources.model.model_directory import CONFIGURATIONS
from checkweigh.sources.model.weight_set import PICKLES
from checkweigh.sources.pin import Resolved

GONE = "no such file"
Stats = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PinnedFile:
    """One file of ``folder``: how it is digested, its pin, and its place in the pins (``weights.a.safetensors``)."""

    folder: Path
    path: Path
    kind: Kind
    digest: str
    place: str
    weights: bool


@dataclass(frozen=True)
class PinnedFiles:
    """Every pinned file below ``folders`` (model, tokenizer, draft), as it was when this was made.

    ``listed``: folder -> the names in and below it. ``stats``: path -> device, inode, size, mtime and ctime; a link's
    own behind those of what it leads to. ``within``: the folders, and those below -> device, inode and ctime.
    ``above``: every other folder on the way to a file -> device and inode.
    """

    folders: Mapping[str, Path]
    files: tuple[PinnedFile, ...]
    listed: Mapping[Path, frozenset[str]]
    stats: Mapping[Path, Stats]
    within: Mapping[Path, Stats]
    above: Mapping[Path, Stats]

    @classmethod
    def of(cls, resolved: Resolved) -> PinnedFiles:
        """The files of a manifest as they are now. PinMismatch: one is new or lost; SourceError: refused."""
        named = {
            "model": resolved.model_dir,
            "tokenizer": resolved.tokenizer_dir,
            "draft": resolved.draft_dir,
        }
        folders: dict[str, Path] = {}
        for name, folder in named.items():
            if folder is not None and folder not in folders.values():
                folders[name] = folder
        files = tuple(_pinned(resolved))
        listed = {folder: frozenset(list_files(folder)) for folder in folders.values()}
        paths = {folder / name for folder, names in listed.items() for name in names}
        paths |= {file.path for file in files}
        stats = {path: _stats(path) for path in sorted(paths)}
        problems = [_problem(f, f.digest, GONE) for f in files if not stats[f.path]]
        problems += [_new_file(path) for path in sorted(paths - {file.path for file in files})]
        if problems:
            raise PinMismatch(problems)
        within, above = _folders(tuple(folders.values()), stats)
        return cls(
            folders=folders, files=files, listed=listed, stats=stats,
            within={folder: _times(folder) for folder in within},
            above={folder: _place(folder) for folder in above},
        )  # fmt: skip

    @cached_property
    def digest(self) -> str:
        """Of place -> pinned digest of every file."""
        return canonical.digest({file.place: file.digest for file in self.files})

    @cached_property
    def witness(self) -> str:
        """Of what ``stat`` says of every file: equal while nobody has written to one, or put another in its place."""
        return canonical.digest({file.place: list(self.stats[file.path]) for file in self.files})

    @cached_property
    def bytes(self) -> int:
        """Of all files together."""
        return sum(map(self.size, self.files))

    def size(self, file: PinnedFile) -> int:
        """Bytes of a file."""
        return self.stats[file.path][2]

    def require_same(self, file: PinnedFile, opened: os.stat_result) -> None:
        """Raise PinMismatch unless what was opened is the very file."""
        if self.stats[file.path][:2] != (opened.st_dev, opened.st_ino):
            raise PinMismatch([_problem(file, file.digest, "another file in its place")])

    def check_stats(self) -> None:
        """Raise PinMismatch with every file and folder that was changed, added, removed or replaced since."""
        problems = [*self._changed_files(), *self._changed_folders()]
        if problems:
            raise PinMismatch(problems)

    def check_digests(
        self, progress: Progress = no_progress, label: str = "reading files again"
    ) -> Verification:
        """Read every file in full, and nothing from the memory of digests.

        Raises PinMismatch with every file that is not what is pinned, or that changed since the snapshot.
        """
        self.check_stats()
        began = time.monotonic()
        try:
            found = fresh_digests({f.place: (f.path, f.kind) for f in self.files}, progress, label)
        except SourceError as error:
            self.check_stats()  # what changed meanwhile says more than that it cannot be read
            folder = str(next(iter(self.folders.values())))
            wanted = "files that can be read"
            raise PinMismatch(
                [Problem(file=folder, line=None, path="", expected=wanted, found=str(error))]
            ) from None
        seconds = time.monotonic() - began
        problems = [_problem(f, f.digest, found[f.place]) for f in self.files if found[f.place] != f.digest]
        if problems:
            raise PinMismatch(problems)
        self.check_stats()
        return Verification(files=self.digest, bytes=self.bytes, seconds=seconds)

    def _changed_files(self) -> Iterator[Problem]:
        places = {file.path: f"pins.{file.place}" for file in self.files}
        for path, before in self.stats.items():
            now = _stats(path)
            if now != before:
                yield Problem(
                    file=str(path), line=None, path=places.get(path, ""),
                    expected=f"the file that was verified, unchanged since ({_words(before)})",
                    found=_words(now) if now else GONE,
                )  # fmt: skip

    def _changed_folders(self) -> Iterator[Problem]:
        for folder, names in self.listed.items():
            try:
                now = list_files(folder)
            except SourceError as error:
                yield Problem(
                    file=str(folder),
                    line=None,
                    path="",
                    expected="the folder that was verified",
                    found=str(error),
                )
                continue
            for name in sorted(now.keys() - names):
                yield _new_file(folder / name)
        for folder, before in (*self.within.items(), *self.above.items()):
            now_there = _times(folder) if folder in self.within else _place(folder)
            if now_there != before:
                same = now_there[:2] == before[:2]
                yield Problem(
                    file=str(folder), line=None, path="", expected="the folder that was verified, unchanged since",
                    found="files that were added, removed or renamed in it" if same else "another folder in its place",
                )  # fmt: skip


def _pinned(resolved: Resolved) -> Iterator[PinnedFile]:
    """Every file that the pins name, and how it was digested for them."""
    pins, manifest, model = resolved.pins, resolved.manifest, resolved.model_dir
    derived = pins.tensors, manifest.draft is not None and manifest.draft.derive is not None
    for name, digest in pins.weights.items():
        yield _file(model, name, f"weights.{name}", digest, weights=True, derived=derived[0])
    for name, digest in pins.tokenizer.items():
        folder = model if name in CONFIGURATIONS else resolved.tokenizer_dir
        yield _file(folder, name, f"tokenizer.{name}", digest)
    for name, digest in pins.files.items():
        where, _, rest = name.partition("/")
        folder = resolved.tokenizer_dir if where == "tokenizer" else model
        yield _file(folder, rest, f"files.{name}", digest)
    for name, digest in pins.draft.items():
        assert resolved.draft_dir is not None
        yield _file(resolved.draft_dir, name, f"draft.{name}", digest, weights=True, derived=derived[1])


def _file(
    folder: Path, name: str, place: str, digest: str, *, weights: bool = False, derived: bool = False
) -> PinnedFile:
    path = folder / name
    tensors = path.suffix == ".safetensors"
    return PinnedFile(
        folder=folder, path=path, kind="tensors" if derived and tensors else kind_of(path), digest=digest, place=place,
        weights=weights and (tensors or path.suffix in PICKLES),
    )  # fmt: skip


def _folders(roots: tuple[Path, ...], files: Mapping[Path, Stats]) -> tuple[set[Path], set[Path]]:
    """The folders of files up to their root, and those above: by name, and where links lead."""
    within = set(roots)
    above: set[Path] = set()
    for path in files:
        parents = list(path.parents)
        roots_of = [root for root in roots if root in parents]
        for root in roots_of:
            within.update(parents[: parents.index(root)])
        above.update(parents)
        above.update(path.resolve().parents)
    return within, above - within


def _stats(path: Path) -> Stats:
    """Device, inode, size, mtime and ctime of a file, and of the link that leads to it; nothing where there is none."""
    try:
        own, target = os.lstat(path), os.stat(path)
    except OSError:
        return ()
    facts = [
        number
        for s in ([target] if own.st_ino == target.st_ino else [target, own])
        for number in (s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns)
    ]
    return tuple(facts)


def _place(folder: Path) -> Stats:
    """Device and inode of a folder; nothing where there is none."""
    return _times(folder)[:2]


def _times(folder: Path) -> Stats:
    """Device, inode and ctime of a folder, which says when a name in it, or it itself, was last changed."""
    try:
        found = os.stat(folder)
    except OSError:
        return ()
    return found.st_dev, found.st_ino, found.st_ctime_ns


def _words(stats: Stats) -> str:
    _, inode, size, written, changed, *_ = stats
    return f"{size} bytes, inode {inode}, written {written / 1e9:.6f}, changed {changed / 1e9:.6f}"


def _new_file(path: Path) -> Problem:
    return Problem(file=str(path), line=None, path="", expected=GONE, found="a file that is not pinned")


def _problem(file: PinnedFile, expected: str, found: str) -> Problem:
    return Problem(file=str(file.path), line=None, path=f"pins.{file.place}", expected=expected, found=found)
