"""The header of a safetensors file, read without torch.

A file is eight bytes of header length, a JSON header, and the tensors' bytes without a gap.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from checkweigh.errors import SourceError

MAX_HEADER = 100_000_000  # the limit of the safetensors library


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor and where its bytes lie in the file."""

    name: str
    dtype: str
    shape: list[int]
    offset: int
    size: int


def read_tensors(path: Path) -> list[TensorEntry]:
    """All tensors, sorted by name. SourceError naming the file when it is damaged or cut off."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            prefix = file.read(8)
            if len(prefix) < 8:
                raise ValueError(f"{size} bytes")
            (length,) = struct.unpack("<Q", prefix)
            if length > min(MAX_HEADER, size - 8):
                raise ValueError(f"a header of {length} bytes in a file of {size}")
            header = json.loads(file.read(length))
        entries = [
            _tensor(name, entry, 8 + length) for name, entry in header.items() if name != "__metadata__"
        ]
        _check_contiguous(entries, 8 + length, size)
    except OSError as error:
        raise SourceError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise SourceError(f"{path}: expected a whole safetensors file, found {error}") from error
    return sorted(entries, key=lambda tensor: tensor.name)


def _tensor(name: str, entry: dict[str, Any], start: int) -> TensorEntry:
    begin, end = entry["data_offsets"]
    dtype, shape = entry["dtype"], entry["shape"]
    whole = all(type(number) is int for number in (begin, end, *shape))
    if not whole or not isinstance(dtype, str):
        raise ValueError(f"a malformed entry for tensor {name}")
    return TensorEntry(name, dtype, shape, start + begin, end - begin)


def _check_contiguous(entries: list[TensorEntry], start: int, size: int) -> None:
    """The tensors fill the file: no gap to hide bytes in, no overlap, nothing cut off."""
    position = start
    for tensor in sorted(entries, key=lambda t: (t.offset, t.size)):
        if tensor.offset != position or tensor.size < 0:
            raise ValueError(f"tensor {tensor.name} at {tensor.offset}, not at {position}")
        position += tensor.size
    if position != size:
        raise ValueError(f"{size} bytes where its header names {position}")
