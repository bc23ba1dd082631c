"""Where engine environments are, and which of them are whole.

An environment is whole when ``checkweigh.json`` lies in it, which is written last: an installation that was
killed has none, is never used, and is made anew.
"""

from __future__ import annotations

import os
from pathlib import Path

from checkweigh import canonical
from checkweigh.envs.capabilities import Abilities
from checkweigh.errors import BadDocument, SourceError
from checkweigh.records.base import Digest, Record
from checkweigh.records.yaml.document import parse_json
from checkweigh.sources.cache import cache_root
from checkweigh.sources.documents import read_bytes
from checkweigh.sources.engine_lock import EngineLock

MARK = "checkweigh.json"


class Installed(Record):
    """A whole environment. ``packages``: name -> version, as the lock has them."""

    distribution: str
    version: str
    python: str
    platform: str
    lock: Digest
    packages: dict[str, str]
    abilities: Abilities
    installed: str
    size: int


def engines_root() -> Path:
    """``CHECKWEIGH_ENGINES``, else ``engines`` where derived models are kept."""
    root = os.environ.get("CHECKWEIGH_ENGINES")
    return Path(root) if root else cache_root() / "engines"


def folder_of(lock: EngineLock) -> Path:
    """Where the lock's environment is, or would be."""
    short = canonical.short(lock.digest)
    return engines_root() / f"{lock.distribution}-{lock.version}-{lock.python}-{short}"


def interpreter(folder: Path) -> Path:
    """The Python of an environment."""
    return folder / "bin" / "python"


def whole(folder: Path) -> Installed | None:
    """What the folder holds; None unless its installation came to its end."""
    if not (folder / MARK).is_file() or not interpreter(folder).exists():
        return None
    try:
        data = read_bytes(folder / MARK, "the mark of an engine environment")
        return parse_json(Installed, data, str(folder / MARK))
    except BadDocument:
        return None


def environments() -> list[tuple[Path, Installed | None]]:
    """Every folder below the root, and what it holds; None for the leftovers of a killed installation."""
    root = engines_root()
    folders = sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
    return [(folder, whole(folder)) for folder in folders]


def require(lock: EngineLock, file: Path) -> tuple[Path, Abilities]:
    """The interpreter of the lock's environment, and what it can do. SourceError, with what mends it: there is none."""
    folder = folder_of(lock)
    found = whole(folder)
    if found is None or found.lock != lock.digest:
        raise SourceError(
            f"{file}: expected its environment below {engines_root()}, found none; "
            f"checkweigh engine install {file} makes it"
        )
    return interpreter(folder), found.abilities
