"""Digests of files, tensors and JSON documents, in parallel; remembered by inode, times and size where that is enough.

What the memory guards against: a change that restores mtime and size, because nobody can set ctime. What deceives it:
a write through a memory map, which changes no time until the kernel writes the page back; bytes that change below the
file system; a clock that was turned back; a rewrite within one tick of a kernel before 6.13 (4 ms); and whoever can
write the cache. ``fresh_digests`` neither reads nor writes the memory. Remove ``digests/`` in the cache to have all
computed again.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, NoReturn

from checkweigh import canonical
from checkweigh.errors import SourceError, StoreError
from checkweigh.files import write_atomic
from checkweigh.progress import Progress
from checkweigh.sources.cache import cache_root
from checkweigh.sources.model.safetensors_header import TensorEntry, read_tensors

CHUNK = 1 << 20
MEGA = 1_000_000
Kind = Literal["file", "json", "tensors"]
Files = Mapping[str, tuple[Path, Kind]]
ReadDigests = Callable[[Files, Progress, str], dict[str, str]]
Advance = Callable[[int], None]
Hasher = Callable[[Path, Advance], str]

# Keys that say where a configuration came from or who wrote it, and change nothing that is served.
PROVENANCE = frozenset(
    {"transformers_version", "_name_or_path", "name_or_path", "is_local", "local_files_only"}
)
# Files of which libraries write the same content in other ways, and whose provenance keys every loader sets itself.
BY_CONTENT = (
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "vocab.json",
)  # fmt: skip


def file_digest(path: Path) -> str:
    """``sha256:<hex>`` of a file's bytes."""
    return _cached_digest(path, "file", _hash_file, _no_advance)


def kind_of(path: Path) -> Kind:
    """How a file is digested that holds no weights: the known configurations by content, all others by their bytes."""
    return "json" if path.name in BY_CONTENT else "file"


def remembered_digests(files: Files, progress: Progress, label: str) -> dict[str, str]:
    """As ``fresh_digests``, but a file that was digested before and has the same inode, times and size is not read."""
    return _digest_all(files, _cached_digest, progress, label)


def fresh_digests(files: Files, progress: Progress, label: str) -> dict[str, str]:
    """Name -> ``sha256:<hex>`` of each file as it is now: every byte is read, on all cores at once.

    A kind is ``file`` (the bytes), ``json`` (the content without provenance keys; the bytes of what is not JSON) or
    ``tensors`` (names, dtypes, shapes and bytes; the bytes of what has no readable tensors, which no other file's
    tensors have). ``progress`` counts megabytes. SourceError names every file that cannot be read or changes meanwhile.
    """
    return _digest_all(files, _digest_now, progress, label)


def tensor_content(paths: Sequence[Path]) -> str:
    """One digest of all tensors (name, dtype, shape, bytes) of safetensors files, whatever files they lie in.

    SourceError for a damaged file, and for a name that stands in two files.
    """
    entries = [(tensor, path) for path in paths for tensor in read_tensors(path)]
    counts = Counter(tensor.name for tensor, _ in entries)
    if twice := sorted(name for name, count in counts.items() if count > 1):
        raise SourceError(f"{', '.join(map(str, paths))}: tensors stand in two files: {', '.join(twice)}")

    def digest(entry: tuple[TensorEntry, Path]) -> list[object]:
        tensor, path = entry
        total = hashlib.sha256()
        with path.open("rb", buffering=0) as file:
            _hash_tensor(total, file, tensor, path, _no_advance)
        return [tensor.name, tensor.dtype, tensor.shape, total.hexdigest()]

    try:
        with ThreadPoolExecutor(max_workers=_cores()) as pool:
            return canonical.digest(sorted(pool.map(digest, entries)))
    except OSError as error:
        raise SourceError(f"{error.filename}: cannot be read ({error.strerror or error})") from error


def _digest_all(
    files: Files, digest: Callable[[Path, str, Hasher, Advance], str], progress: Progress, label: str
) -> dict[str, str]:
    """Largest first, so that no core is left alone with one at the end."""
    sizes = {name: _size(path) for name, (path, _) in files.items()}
    steps = max(1, sum(sizes.values()) // MEGA)
    done, guard = 0, threading.Lock()

    def advance(count: int) -> None:
        nonlocal done
        with guard:
            done += count
            progress(label, min(done // MEGA, steps - 1), steps)

    def one(name: str) -> str | SourceError:
        path, kind = files[name]
        try:
            return digest(path, *_HASHERS[kind], advance)
        except SourceError as error:
            return error

    with ThreadPoolExecutor(max_workers=_cores()) as pool:
        largest_first = sorted(files, key=lambda name: -sizes[name])
        found = dict(zip(largest_first, pool.map(one, largest_first), strict=True))
    failures = [str(value) for value in found.values() if isinstance(value, SourceError)]
    if failures:
        raise SourceError("\n".join(sorted(failures)))
    progress(label, steps, steps)
    return {name: str(found[name]) for name in files}


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _size(path: Path) -> int:
    """Bytes of a file; 0 of one that cannot be read, which digesting it says."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _cached_digest(path: Path, kind: str, hasher: Hasher, advance: Advance) -> str:
    """``hasher(path)``, from the cache when the very same file was digested before."""
    try:
        before = _identity(path, kind)
        kept = _read_cached(before)
        if kept is not None:
            advance(path.stat().st_size)
            return kept
    except OSError as error:
        raise SourceError(f"{path}: cannot be read ({error.strerror or error})") from error
    value = _digest_now(path, kind, hasher, advance)
    try:
        write_atomic(_cache_file(before), value.encode())
    except StoreError:
        return value  # a cache that cannot be written costs time, not the answer
    return value


def _digest_now(path: Path, kind: str, hasher: Hasher, advance: Advance) -> str:
    """``hasher(path)``. SourceError for a file that cannot be read, or that changes meanwhile."""
    try:
        before = _identity(path, kind)
        value = hasher(path, advance)
        if _identity(path, kind) != before:
            raise SourceError(f"{path}: was changed while its digest was computed")
    except OSError as error:
        raise SourceError(f"{path}: cannot be read ({error.strerror or error})") from error
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
    buffer = memoryview(bytearray(CHUNK))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            total.update(buffer[:count])
            advance(count)
    return "sha256:" + total.hexdigest()


def _hash_tensors(path: Path, advance: Advance) -> str:
    total = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        for tensor in read_tensors(path):
            total.update(json.dumps([tensor.name, tensor.dtype, tensor.shape, tensor.size]).encode())
            _hash_tensor(total, file, tensor, path, advance)
    return "sha256:" + total.hexdigest()


def _hash_tensor(
    total: hashlib._Hash, file: io.FileIO, tensor: TensorEntry, path: Path, advance: Advance
) -> None:
    """Add the bytes of one tensor to ``total``."""
    file.seek(tensor.offset)
    buffer = memoryview(bytearray(min(CHUNK, tensor.size)))
    left = tensor.size
    while left:
        count = file.readinto(buffer[: min(CHUNK, left)])
        if not count:
            raise SourceError(f"{path}: tensor {tensor.name} is cut off")
        total.update(buffer[:count])
        advance(count)
        left -= count


def _hash_weights(path: Path, advance: Advance) -> str:
    """Digest of the tensors; of the bytes when the header is damaged, so that two digests can be shown."""
    try:
        read_tensors(path)
    except SourceError:
        return _hash_file(path, advance)
    return _hash_tensors(path, advance)


def _hash_json(path: Path, advance: Advance) -> str:
    """By content; by the bytes where readers differ: no JSON, not UTF-8, a byte order mark, a key twice, NaN."""
    try:
        data = path.read_bytes()
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_refuse)
        if isinstance(value, dict):
            value = {key: inner for key, inner in value.items() if key not in PROVENANCE}
        digest = canonical.digest(value)
    except (ValueError, RecursionError):
        return _hash_file(path, advance)
    advance(len(data))
    return digest


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; ValueError for a key that stands twice, because readers differ on which one counts."""
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a key twice")
    return value


def _refuse(constant: str) -> NoReturn:
    """ValueError for NaN and infinities, which are no JSON and would be digested like the words."""
    raise ValueError(constant)


def _no_advance(count: int) -> None:
    """Progress that nobody sees."""


# Kind -> its name in the memory, and what computes it.
_HASHERS: dict[Kind, tuple[str, Hasher]] = {
    "file": ("file", _hash_file),
    "json": ("json content", _hash_json),
    "tensors": ("tensors or bytes", _hash_weights),
}
