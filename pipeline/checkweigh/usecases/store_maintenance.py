"""What the measurement store holds: listed, checked, and swept. What another process measures is never touched."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from checkweigh import canonical
from checkweigh.errors import HostBusy
from checkweigh.files import lock
from checkweigh.sources.cache import cache_root
from checkweigh.store import UNVERIFIED_WORDS, is_unverified, read_verified_fields

EntryState = Literal["complete", "incomplete", "damaged", "measuring", "unverified"]
DAY_S = 86_400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreEntry:
    """One measurement's folder. ``items`` and ``batches`` are what it holds, ``bytes`` what it takes."""

    path: Path
    state: EntryState
    bytes: int
    changed: float
    schema: str = ""
    name: str = ""
    items: int = 0
    batches: int = 0
    replicate: int = 0
    hardware: str = ""
    made: str = ""
    problem: str = ""

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        shown = {name: getattr(self, name) for name in self.__slots__ if name not in ("path", "changed")}
        return {"folder": str(self.path), **shown}


@dataclass(frozen=True, slots=True)
class SweptPath:
    """One thing that was removed, or would be."""

    path: Path
    bytes: int
    why: str


def store_root() -> Path:
    """Where measurements are kept."""
    return cache_root() / "store"


def list_entries(root: Path) -> list[StoreEntry]:
    """Every measurement below ``root``, by folder name; none when there is no store."""
    folders = sorted(p for p in root.iterdir() if p.is_dir()) if root.is_dir() else []
    return [_read_entry(folder) for folder in folders]


def _read_entry(folder: Path) -> StoreEntry:
    sizes = _file_stats(folder)
    size = sum(s.st_size for s in sizes)
    changed = max((s.st_mtime for s in sizes), default=0.0)
    batches = len(list(folder.glob("batches/[0-9]*.json")))
    if not (folder / "record.json").exists():
        state: EntryState = "measuring" if _is_measured(folder) else "incomplete"
        return StoreEntry(path=folder, state=state, bytes=size, changed=changed, batches=batches)
    try:
        data = _verified_fields(folder)
        old = is_unverified(folder)
        return StoreEntry(
            path=folder, state="unverified" if old else "complete", bytes=size, changed=changed, batches=batches,
            schema=data["schema"], name=data["set_name"], items=data["planned"],
            replicate=data["key"]["replicate"], hardware=data["key"]["hardware"], made=data["provenance"]["ended"],
            problem=f"{UNVERIFIED_WORDS}, and is measured again" if old else "",
        )  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        problem = f"{error}; remove this folder, or run checkweigh store gc, to measure again"
        return StoreEntry(
            path=folder, state="damaged", bytes=size, changed=changed, batches=batches, problem=problem
        )


def _file_stats(folder: Path) -> list[os.stat_result]:
    """Of every file below; one that another process removes meanwhile does not count."""
    stats = []
    for where, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                stats.append(Path(where, name).stat())
    return stats


def _verified_fields(folder: Path) -> dict[str, Any]:
    """The record's own fields. ValueError when a file is not the one that was written, or lies at another address."""
    data, _ = read_verified_fields(folder)
    if canonical.digest(data["key"]).removeprefix("sha256:") != folder.name:
        raise ValueError("the record belongs to another folder")
    return data


def _is_measured(folder: Path) -> bool:
    """Whether some process is measuring this."""
    if not folder.with_suffix(".lock").exists():
        return False
    try:
        with lock(folder.with_suffix(".lock"), timeout_s=0, what="measures this"):
            return False
    except HostBusy:
        return True


def sweep(root: Path, *, older_than: float | None, incomplete: bool, dry_run: bool) -> list[SweptPath]:
    """Remove what nobody will read, and say what it was.

    Always: damaged records, those of an older version, batches of complete ones, temporary files of writers that are
    gone. With ``incomplete`` interrupted measurements too, with ``older_than`` (days) whatever was last changed before.
    """
    done: list[SweptPath] = []
    for entry in list_entries(root):
        try:
            with lock(entry.path.with_suffix(".lock"), timeout_s=0, what="measures this"):
                for path, why in _leftovers(entry, older_than, incomplete):
                    done.append(SweptPath(path, _size(path), why))
                    if not dry_run:
                        shutil.rmtree(path) if path.is_dir() else path.unlink()
        except HostBusy:
            continue
        if not dry_run and not entry.path.exists():
            entry.path.with_suffix(".lock").unlink(missing_ok=True)
    return done


def _leftovers(entry: StoreEntry, older_than: float | None, incomplete: bool) -> Iterator[tuple[Path, str]]:
    old = older_than is not None and time.time() - entry.changed > older_than * DAY_S
    if entry.state == "damaged":
        yield entry.path, f"damaged: {entry.problem.partition(';')[0]}"
    elif entry.state == "unverified":
        yield entry.path, entry.problem
    elif old:
        yield entry.path, f"not changed for {older_than:g} days"
    elif entry.state == "incomplete" and (incomplete or not entry.batches):
        yield entry.path, f"interrupted after {entry.batches} batches"
    else:
        if entry.state == "complete" and (entry.path / "batches").exists():
            yield entry.path / "batches", "batches of a complete record"
        for path in (p for p in entry.path.rglob(".*") if p.is_file()):
            yield path, "half-written"


def _size(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    return sum(s.st_size for s in _file_stats(path))
