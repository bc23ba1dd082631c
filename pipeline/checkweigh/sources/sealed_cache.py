"""Directories in the cache that are whole or not there, and stay what they were when they were made.

Each carries a seal: the digest of every file in it. A directory that no longer matches its seal (a disk that
filled up, a curious editor) is never used; it is made again.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from checkweigh.errors import SourceError, StoreError
from checkweigh.files import lock
from checkweigh.sources.digests import file_digest

BUILD_WAIT_S = 1800
SEAL = ".checkweigh-seal.json"


def build_sealed(path: Path, build: Callable[[Path], None]) -> Path:
    """The directory ``path``, made by ``build(temporary)`` unless an intact one is there.

    One process builds, others wait. StoreError when the disk refuses; what ``build`` raises passes through,
    and then nothing was changed.
    """
    if is_intact(path):
        return path
    with lock(path.with_name(path.name + ".lock"), timeout_s=BUILD_WAIT_S, what=f"builds {path.name}"):
        if is_intact(path):
            return path
        try:
            _sweep(path)
            temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
            try:
                build(temporary)
                (temporary / SEAL).write_text(json.dumps(_seal(temporary), indent=1, sort_keys=True))
                temporary.chmod(0o755)
                _replace(path, temporary)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
        except OSError as error:
            raise StoreError(f"{path}: cannot be written ({error})") from error
    return path


def is_intact(path: Path) -> bool:
    """Whether ``path`` is a sealed directory that still matches its seal."""
    try:
        seal = json.loads((path / SEAL).read_text())
        return bool(seal) and seal == _seal(path)
    except (OSError, ValueError, SourceError):
        return False


def changed_files(path: Path) -> list[tuple[Path, str, str]]:
    """File, sealed digest and present digest, of everything that changed since ``path`` was sealed.

    Empty for a directory that is not there, or that was never sealed.
    """
    try:
        sealed = json.loads((path / SEAL).read_text())
        present = _seal(path)
    except (OSError, ValueError, SourceError):
        return []
    if not isinstance(sealed, dict):
        return []
    nothing = "no such file"
    return [
        (path / name, str(sealed.get(name, nothing)), present.get(name, nothing))
        for name in sorted(set(sealed) | set(present))
        if sealed.get(name) != present.get(name)
    ]


def _sweep(path: Path) -> None:
    """Remove what a killed process left; the lock is held, so that nobody is at it now."""
    left = re.compile(rf"\.(old\.)?{re.escape(path.name)}\.[a-z0-9_]{{8}}")
    for other in path.parent.iterdir():
        if left.fullmatch(other.name):
            shutil.rmtree(other, ignore_errors=True)


def _seal(folder: Path) -> dict[str, str]:
    files = (file for file in sorted(folder.rglob("*")) if file.is_file() and file.name != SEAL)
    return {str(file.relative_to(folder)): file_digest(file) for file in files}


def _replace(path: Path, new: Path) -> None:
    """Put ``new`` in the place of a damaged or absent ``path``; open files of the old one stay readable."""
    if path.exists():
        old = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".old.{path.name}."))
        path.rename(old / path.name)
        new.rename(path)
        shutil.rmtree(old, ignore_errors=True)
    else:
        new.rename(path)
