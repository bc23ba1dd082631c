"""Digests of files, tensors and JSON documents, in parallel, remembered by inode, times and size.

What the memory guards against: a change that restores mtime and size, because nobody can set ctime. What it does
not: bytes that change below the file system, a clock that was turned back, a rewrite within one tick of a kernel
before 6.13 (4 ms), and whoever can write the cache. Remove ``digests/`` in the cache to have all computed again.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from checkweigh import canonical
from checkweigh.errors import SourceError, StoreError
from checkweigh.files import write_atomic
from checkweigh.progress import Progress
from checkweigh.sources.cache import cache_root
from checkweigh.sources.model.safetensors_header import read_tensors

CHUNK = 1 << 22
MEGA = 1_000_000
Advance = Callable[[int], None]
Hasher = Callable[[Path, Advance], str]

# Keys that say where a configuration came from or who wrote it, and change nothing that is served.
PROVENANCE = frozenset(
    {"transformers_version", "_name_or_path", "name_or_path", "is_local", "local_files_only"}
)


def file_digest(path: Path) -> str:
    """``sha256:<hex>`` of a file's bytes."""
    return _cached_digest(path, "file", _hash_file, _no_advance)


def json_digest(path: Path) -> str:
    """Digest of a JSON document's content without its provenance keys; of its bytes when it is not JSON."""
    return _cached_digest(path, "json", _hash_json, _no_advance)


def small_digest(path: Path) -> str:
    """Digest of a configuration or tokenizer file: by content where it is JSON."""
    return json_digest(path) if path.suffix == ".json" else file_digest(path)


def digest_all(paths: Iterable[Path], kind: str, progress: Progress, label: str) -> dict[str, str]:
    """File name -> digest (``kind``: file or tensors), several files at once; progress counts megabytes.

    A file without readable tensors gets the digest of its bytes, which no other file's tensors have.
    """
    paths = sorted(paths)
    kind, hasher = ("tensors or bytes", _hash_weights) if kind == "tensors" else ("file", _hash_file)
    try:
        total = sum(path.stat().st_size for path in paths)
    except OSError as error:
        raise SourceError(f"{error.filename}: cannot be read ({error.strerror})") from error
    steps = max(1, total // MEGA)
    done, guard = 0, threading.Lock()

    def advance(count: int) -> None:
        nonlocal done
        with guard:
            done += count
            progress(label, min(done // MEGA, steps - 1), steps)

    with ThreadPoolExecutor(max_workers=min(8, (os.cpu_count() or 1) + 1)) as pool:
        values = list(pool.map(lambda path: _cached_digest(path, kind, hasher, advance), paths))
    progress(label, steps, steps)
    return dict(zip((path.name for path in paths), values, strict=True))


def _cached_digest(path: Path, kind: str, hasher: Hasher, advance: Advance) -> str:
    """``hasher(path)``, from the cache when the very same file was digested before."""
    try:
        before = _identity(path, kind)
        kept = _read_cached(before)
        if kept is not None:
            advance(path.stat().st_size)
            return kept
        value = hasher(path, advance)
        if _identity(path, kind) != before:
            raise SourceError(f"{path}: was changed while its digest was computed")
    except OSError as error:
        raise SourceError(f"{path}: cannot be read ({error.strerror or error})") from error
    try:
        write_atomic(_cache_file(before), value.encode())
    except StoreError:
        return value  # a cache that cannot be written costs time, not the answer
    return value


def _identity(path: Path, kind: str) -> str:
    stat = path.stat()
    times = f"{stat.st_mtime_ns} {stat.st_ctime_ns}"
    return f"{kind} {path.resolve()} {stat.st_dev} {stat.st_ino} {times} {stat.st_size}"


def _cache_file(identity: str) -> Path:
    name = hashlib.sha256(identity.encode(errors="surrogateescape")).hexdigest()
    return cache_root() / "digests" / name[:2] / name


def _read_cached(identity: str) -> str | None:
    try:
        value = _cache_file(identity).read_text()
    except (OSError, UnicodeDecodeError):
        return None
    return value if value.startswith("sha256:") and len(value) == 71 else None


def _hash_file(path: Path, advance: Advance) -> str:
    total = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while data := file.read(CHUNK):
            total.update(data)
            advance(len(data))
    return "sha256:" + total.hexdigest()


def _hash_tensors(path: Path, advance: Advance) -> str:
    total = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        for tensor in read_tensors(path):
            total.update(json.dumps([tensor.name, tensor.dtype, tensor.shape, tensor.size]).encode())
            file.seek(tensor.offset)
            left = tensor.size
            while left:
                data = file.read(min(CHUNK, left))
                if not data:
                    raise SourceError(f"{path}: tensor {tensor.name} is cut off")
                total.update(data)
                advance(len(data))
                left -= len(data)
    return "sha256:" + total.hexdigest()


def _hash_weights(path: Path, advance: Advance) -> str:
    """Digest of the tensors; of the bytes when the header is damaged, so that two digests can be shown."""
    try:
        read_tensors(path)
    except SourceError:
        return _hash_file(path, advance)
    return _hash_tensors(path, advance)


def _hash_json(path: Path, advance: Advance) -> str:
    try:
        value = json.loads(path.read_bytes(), object_pairs_hook=_unique, parse_constant=str)
        if isinstance(value, dict):
            value = {key: inner for key, inner in value.items() if key not in PROVENANCE}
        return canonical.digest(value)
    except (ValueError, RecursionError):
        return _hash_file(path, advance)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; ValueError for a key that stands twice, because readers differ on which one counts."""
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a key twice")
    return value


def _no_advance(count: int) -> None:
    """Progress that nobody sees."""
