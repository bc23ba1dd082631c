"""Where engine environments are, and which of them are complete.

An environment is complete when ``checkweigh.json`` lies in it, which is written last: an installation that was
killed has none, is never used, and is made again.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from checkweigh import canonical
from checkweigh.decision.formatting import size
from checkweigh.envs.capabilities import Capabilities
from checkweigh.errors import BadDocument, SourceError
from checkweigh.records.base import Digest, Record
from checkweigh.records.yaml.document import parse_json
from checkweigh.sources.cache import cache_root
from checkweigh.sources.documents import read_bytes
from checkweigh.sources.engine_lock import EngineLock

MARK = "checkweigh.json"


class Installed(Record):
    """What a complete environment holds. ``packages``: name -> version, as the lock has them."""

    distribution: str
    version: str
    python: str
    platform: str
    lock: Digest
    packages: dict[str, str]
    abilities: Capabilities
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


def read_installed(folder: Path) -> Installed | None:
    """What the environment in ``folder`` holds; None unless its installation was finished."""
    if not (folder / MARK).is_file() or not interpreter(folder).exists():
        return None
    try:
        data = read_bytes(folder / MARK, "the mark of an engine environment")
        return parse_json(Installed, data, str(folder / MARK))
    except BadDocument:
        return None


@dataclass(frozen=True, slots=True)
class Environment:
    """A folder of an engine's environment; ``installed`` is None for the leftovers of a killed installation."""

    folder: Path
    installed: Installed | None

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        values = self.installed.model_dump(mode="json") if self.installed else {}
        return {"folder": str(self.folder), "whole": self.installed is not None, **values}

    def line(self) -> str:
        """For people."""
        if self.installed is None:
            return f"{self.folder.name}: an installation that did not end"
        return f"{self.folder.name}: {self.installed.lock}, {size(self.installed.size)}"


def environments() -> list[Environment]:
    """Every folder below the root, sorted by name."""
    root = engines_root()
    folders = sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
    return [Environment(folder, read_installed(folder)) for folder in folders]


def installed_interpreter(lock: EngineLock, file: Path) -> tuple[Path, Capabilities]:
    """The interpreter of the lock's environment, and what its engine can do.

    Raises SourceError, naming the command that installs it, when there is no complete environment of this lock.
    """
    folder = folder_of(lock)
    installed = read_installed(folder)
    if installed is None or installed.lock != lock.digest:
        raise SourceError(
            f"{file}: expected its environment below {engines_root()}, found none; "
            f"checkweigh engine install {file} makes it"
        )
    return interpreter(folder), installed.abilities
