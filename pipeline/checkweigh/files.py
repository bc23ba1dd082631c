"""Files that are either whole or not there, and locks between processes."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from checkweigh.errors import HostBusy, StoreError


@contextmanager
def lock(path: Path, *, timeout_s: float, what: str) -> Iterator[None]:
    """An inter-process lock; HostBusy when another process keeps it for longer than ``timeout_s``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(path, timeout=timeout_s):
            yield
    except Timeout as error:
        raise HostBusy(f"another checkweigh {what} and has not finished in {timeout_s:g} s ({path})") from error


def write_atomic(path: Path, data: bytes) -> None:
    """Write to a temporary file beside ``path``, then rename. StoreError when the disk refuses."""
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            temporary = Path(file.name)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except OSError as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        raise StoreError(f"{path}: cannot be written ({error})") from error
