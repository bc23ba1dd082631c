"""Where derived models, unpacked packages and measurements are kept, and how they are published whole."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from checkweigh.errors import StoreError
from checkweigh.files import lock

BUILD_WAIT_S = 1800


def cache_root() -> Path:
    """``CHECKWEIGH_HOME``, else ``checkweigh`` below ``XDG_CACHE_HOME`` or ``~/.cache``."""
    home = os.environ.get("CHECKWEIGH_HOME")
    if home:
        return Path(home)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "checkweigh"


def published(path: Path, build: Callable[[Path], None]) -> Path:
    """The directory ``path``, made by ``build(temporary)`` when it is not there; it appears whole or not at all.

    One process builds, others wait. StoreError when the disk refuses.
    """
    if path.is_dir():
        return path
    with lock(path.with_name(path.name + ".lock"), timeout_s=BUILD_WAIT_S, what=f"builds {path.name}"):
        if path.is_dir():
            return path
        temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
        try:
            build(temporary)
            temporary.rename(path)
        except OSError as error:
            raise StoreError(f"{path}: cannot be written ({error})") from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return path
