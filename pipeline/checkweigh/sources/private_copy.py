"""Private folders from which an engine loads: what others do to the user's folders meanwhile does not reach it.

Small files are copied, and the copies compared with their pins; what is not pinned is not there. Weights are cloned
where the file system shares blocks between files. Elsewhere the private folder has links to the opened files, which no
rename can exchange; a write into such a file reaches its reader, and ``PinnedFiles`` notices it.

The folders lie in the cache, at an address that follows from the pins: vLLM's cache of compiled kernels knows a model
by its path. Two engines at once have two addresses, each held by a lock. What a killed process left is removed.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from checkweigh.canonical import short
from checkweigh.errors import HostBusy, PinMismatch, Problem, StoreError
from checkweigh.files import lock
from checkweigh.progress import no_progress
from checkweigh.sources.cache import cache_root
from checkweigh.sources.digests import fresh_digests
from checkweigh.sources.pinned_files import PinnedFile, PinnedFiles

SMALL = 64 << 20  # bytes; a larger file is treated as weights are
MOST = 64  # engines of one model at once
SWEEP_S = 0.1  # longer than another process holds a place only to sweep it
CLONE = 0x40049409  # FICLONE of linux/fs.h


@dataclass(frozen=True, slots=True)
class PrivateCopy:
    """``private``: the user's folder -> the one that stands for it while the copy is held."""

    private: Mapping[Path, Path]

    def of(self, folder: Path) -> Path:
        """The private folder of one of the user's."""
        return self.private.get(folder, folder)

    def with_own_names(self, text: str) -> str:
        """``text`` with the user's folders in the place of the private ones."""
        for folder, private in self.private.items():
            text = text.replace(str(private), str(folder))
        return text


@contextmanager
def private_copy(files: PinnedFiles) -> Iterator[PrivateCopy]:
    """Private folders of these files. PinMismatch: they are not what is pinned; StoreError: the disk refuses."""
    root = cache_root() / "served"
    with ExitStack() as held:
        try:
            place = _hold_place(root, short(files.digest), held)
            copy = PrivateCopy({folder: place / name for name, folder in files.folders.items()})
            copied = {file: target for file in files.files if (target := _put(file, files, copy, held))}
        except OSError as error:
            files.check_stats()  # a file that went away is not the disk's fault
            raise StoreError(f"{error.filename or root}: cannot be copied ({error.strerror})") from error
        _compare(copied)
        files.check_stats()
        yield copy


def _hold_place(root: Path, name: str, held: ExitStack) -> Path:
    """The first folder of this name that nobody uses, empty, until ``held`` is closed."""
    root.mkdir(parents=True, exist_ok=True)
    _sweep(root)
    for number in range(MOST):
        place = root / f"{name}-{number}"
        with suppress(HostBusy):
            held.enter_context(lock(place.with_suffix(".lock"), timeout_s=SWEEP_S, what="serves from it"))
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir(mode=0o700)
            held.callback(shutil.rmtree, place, ignore_errors=True)
            return place
    raise HostBusy(f"{root}: {MOST} engines of one model are in use on this host")


def _sweep(root: Path) -> None:
    """Remove what killed processes left."""
    for place in root.iterdir():
        if place.is_dir():
            with suppress(HostBusy), lock(place.with_suffix(".lock"), timeout_s=0, what="serves from it"):
                shutil.rmtree(place, ignore_errors=True)


def _put(file: PinnedFile, files: PinnedFiles, copy: PrivateCopy, held: ExitStack) -> Path | None:
    """Copy, clone or link one file into its private folder; the path of what was copied byte by byte."""
    target = copy.of(file.folder) / file.path.relative_to(file.folder)
    if target.exists():  # pinned twice, as the tokenizer's and the model's
        return None
    target.parent.mkdir(parents=True, exist_ok=True)
    if not file.weights and files.size(file) <= SMALL:
        shutil.copyfile(file.path, target)
        return target
    descriptor = os.open(file.path, os.O_RDONLY)
    held.callback(os.close, descriptor)
    files.require_same(file, os.fstat(descriptor))
    if not _clone(descriptor, target):
        opened = Path(f"/proc/{os.getpid()}/fd/{descriptor}")
        target.symlink_to(opened if opened.exists() else file.path.resolve())
    return None


def _clone(descriptor: int, target: Path) -> bool:
    """Whether ``target`` now shares the blocks of an open file, as they are at this moment."""
    try:
        with target.open("wb") as written:
            fcntl.ioctl(written, CLONE, descriptor)
    except OSError:
        target.unlink()
        return False
    return True


def _compare(copied: Mapping[PinnedFile, Path]) -> None:
    """Raise PinMismatch for every copy that is not what is pinned; it names the user's own file."""
    found = fresh_digests({f.place: (path, f.kind) for f, path in copied.items()}, no_progress, "")
    problems = [
        Problem(
            file=str(file.path),
            line=None,
            path=f"pins.{file.place}",
            expected=file.digest,
            found=found[file.place],
        )
        for file in copied
        if found[file.place] != file.digest
    ]
    if problems:
        raise PinMismatch(problems)
