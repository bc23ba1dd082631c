"""Files that are either whole or not there, and locks between processes."""

from __future__ import annotations

import errno
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import BaseFileLock, FileLock, Timeout

from checkweigh import canonical
from checkweigh.errors import HostBusy, StoreError

NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
NO_ROOM_MESSAGES = (*(os.strerror(number).lower() for number in NO_ROOM), "not enough disk space")


@contextmanager
def lock(
    path: Path, *, timeout_s: float, what: str, waiting: Callable[[], None] | None = None
) -> Iterator[None]:
    """An inter-process lock, let go when its process dies; ``waiting`` is called once when it is not free.

    HostBusy when another process keeps it for longer than ``timeout_s``, StoreError when it cannot be made.
    """
    held = FileLock(path, timeout=timeout_s)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _acquire(held, timeout_s, waiting)
    except Timeout as error:
        waited = f"has not finished in {timeout_s:g} s"
        raise HostBusy(f"another checkweigh {what} and {waited} ({path})") from error
    except (OSError, NotImplementedError) as error:
        raise StoreError(f"{path}: cannot be locked ({error})") from error
    try:
        yield
    finally:
        held.release()


def disk_full(error: BaseException | None) -> bool:
    """Whether an error, or what caused it, is a disk without room; libraries wrap it and drop its number."""
    while error is not None:
        words = str(error).lower()
        if getattr(error, "errno", None) in NO_ROOM or any(message in words for message in NO_ROOM_MESSAGES):
            return True
        error = error.__cause__ or error.__context__
    return False


def _acquire(held: BaseFileLock, timeout_s: float, waiting: Callable[[], None] | None) -> None:
    if waiting is not None:
        try:
            held.acquire(timeout=0)
            return
        except Timeout:
            waiting()
    held.acquire(timeout=timeout_s)


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
        raise StoreError(f"{path}: cannot be written ({error})") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def write_sealed(path: Path, body: object) -> None:
    """Write ``{"digest": ..., "body": ...}``, fields in the order of ``body``. StoreError when the disk refuses."""
    envelope = {"digest": canonical.digest(body), "body": body}
    text = json.dumps(envelope, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    write_atomic(path, text.encode())


def read_sealed(path: Path) -> Any:
    """The body of a file that ``write_sealed`` wrote. OSError; ValueError when it is another file than was written."""
    try:
        envelope = json.loads(path.read_bytes())
        whole = envelope["digest"] == canonical.digest(envelope["body"])
    except (KeyError, TypeError) as error:
        raise ValueError("it has no digest and body") from error
    if not whole:
        raise ValueError("it is not the file that was written")
    return envelope["body"]
