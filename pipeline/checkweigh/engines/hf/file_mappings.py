"""A loaded model that no longer depends on its files: what lies in their mappings is copied into memory of its own.

safetensors maps a file, and tensors that need no cast lie in the map: whoever writes to the file changes them.
"""

from __future__ import annotations

import ctypes
import gc
import mmap
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from checkweigh.errors import EngineError

MAPS = Path("/proc/self/maps")
DONT_NEED = 4  # MADV_DONTNEED
HOST = ("cpu", torch.strided)


def leave_files(folders: Iterable[Path]) -> None:
    """Copy every tensor of this process off the mappings of files in ``folders``; afterwards there is none.

    Where the mappings cannot be seen every tensor in host memory is copied. Raises EngineError for a mapping that
    is left.
    """
    folders = list(folders)
    _copy_tensors(_mapped(folders))
    gc.collect()
    if left := _mapped(folders):
        names = sorted({Path(path).name for _, _, path in left or ()})
        raise EngineError(f"the loaded model still lies in its files: {', '.join(names)} is mapped")


def _mapped(folders: Iterable[Path]) -> list[tuple[int, int, str]] | None:
    """(start, end, file) of every mapping of a file in the folders or of safetensors; None where nothing tells."""
    if not MAPS.exists():
        return None
    files = {os.path.realpath(path) for folder in folders for path in folder.rglob("*")}
    found = []
    for line in MAPS.read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        parts = line.split(maxsplit=5)
        path = parts[5].removesuffix(" (deleted)") if len(parts) == 6 else ""
        if path in files or path.endswith(".safetensors"):
            start, _, end = parts[0].partition("-")
            found.append((int(start, 16), int(end, 16), path))
    return found


def _copy_tensors(areas: list[tuple[int, int, str]] | None) -> None:
    """Give every tensor in the areas (all in host memory where they are None) a copy; those that share keep sharing."""
    if areas == []:
        return
    copies: dict[tuple[Any, ...], Any] = {}
    for found in gc.get_objects():
        if not issubclass(type(found), torch.Tensor) or (found.device.type, found.layout) != HOST:
            continue
        start = found.data_ptr()
        if areas is not None and not any(first <= start < end for first, end, _ in areas):
            continue
        mapped = found.data
        key = (start, mapped.shape, mapped.stride(), mapped.dtype)
        if key not in copies:
            copies[key] = mapped.clone()
            if areas is not None:
                _drop_pages(start, mapped.nbytes)
        found.data = copies[key]


def _drop_pages(start: int, size: int) -> None:
    """Take copied pages out of memory at once, so that a model never lies there twice."""
    first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
    whole = (start + size - first) // mmap.PAGESIZE * mmap.PAGESIZE
    if whole > 0:
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(whole), DONT_NEED)
