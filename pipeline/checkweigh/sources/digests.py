"""Digests of files and of tensors, in parallel, remembered by inode, time and size."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from checkweigh.errors import SourceError
from checkweigh.files import write_atomic
from checkweigh.sources.cache import cache_root

CHUNK = 1 << 22
MAX_HEADER = 100_000_000  # the limit of the safetensors library
Progress = Callable[[str, int, int], None]


def file_digest(path: Path) -> str:
    """``sha256:<hex>`` of a file's bytes."""
    return _remembered(path, "file", _hash_file)


def tensor_digest(path: Path) -> str:
    """Digest of a safetensors file's tensors: sorted name, dtype, shape and bytes, whatever its header says else."""
    return _remembered(path, "tensors", _hash_tensors)


def digest_all(
    paths: Iterable[Path], digest: Callable[[Path], str], progress: Progress, label: str
) -> dict[str, str]:
    """File name -> digest, several files at once."""
    paths = sorted(paths)
    found: dict[str, str] = {}
    with ThreadPoolExecutor(max_workers=min(8, (os.cpu_count() or 1) + 1)) as pool:
        for path, value in zip(paths, pool.map(digest, paths), strict=True):
            found[path.name] = value
            progress(label, len(found), len(paths))
    return found


def _remembered(path: Path, kind: str, compute: Callable[[Path], str]) -> str:
    """``compute(path)``, from the cache when the very same file was digested before."""
    try:
        stat = path.stat()
        identity = f"{kind} {path.resolve()} {stat.st_dev} {stat.st_ino} {stat.st_mtime_ns} {stat.st_ctime_ns} {stat.st_size}"
        name = hashlib.sha256(identity.encode()).hexdigest()
        kept = cache_root() / "digests" / name[:2] / name
        if kept.is_file():
            value = kept.read_text()
            if value.startswith("sha256:") and len(value) == 71:
                return value
        value = compute(path)
    except OSError as error:
        raise SourceError(f"{path}: cannot be read ({error.strerror})") from error
    write_atomic(kept, value.encode())
    return value


def _hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()


def _hash_tensors(path: Path) -> str:
    header, start = safetensors_header(path)
    total = hashlib.sha256()
    with path.open("rb") as file:
        for name in sorted(header):
            entry = header[name]
            begin, end = entry["data_offsets"]
            total.update(json.dumps([name, entry["dtype"], entry["shape"], end - begin]).encode())
            file.seek(start + begin)
            left = end - begin
            while left:
                data = file.read(min(CHUNK, left))
                if not data:
                    raise SourceError(f"{path}: tensor {name} is cut off")
                total.update(data)
                left -= len(data)
    return "sha256:" + total.hexdigest()


def safetensors_header(path: Path) -> tuple[dict[str, dict[str, list[int]]], int]:
    """Tensor name -> {dtype, shape, data_offsets}, and where the data begin. SourceError for a damaged file."""
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > min(MAX_HEADER, size - 8):
                raise ValueError(f"a header of {length} bytes")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        spans = sorted(entry["data_offsets"] for entry in header.values())
        ends = [0, *(end for _, end in spans)]
        if [begin for begin, _ in spans] != ends[:-1] or ends[-1] != size - 8 - length:
            raise ValueError("tensors that do not fill the file")
    except (struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SourceError(f"{path}: expected a whole safetensors file, found {error}") from error
    return header, 8 + length
