"""Digests: right, remembered, and forgotten when the file changes."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from pathlib import Path

import pytest
from tests.builders import tensor_digest

from checkweigh.errors import SourceError
from checkweigh.sources import digests
from checkweigh.sources.digests import digest_all, file_digest, json_digest
from checkweigh.sources.model.safetensors_header import read_tensors

pytestmark = pytest.mark.usefixtures("checkweigh_home")


def reads(path: Path) -> int:
    """Bytes that are hashed when ``path`` is digested now."""
    counted: list[int] = []
    digests._cached_digest(path, "file", lambda p, advance: _count(p, advance, counted), lambda _: None)
    return sum(counted)


def _count(path: Path, advance: digests.Advance, counted: list[int]) -> str:
    return digests._hash_file(path, lambda count: (counted.append(count), advance(count))[1])


def safetensors(path: Path, header: object, data: bytes = b"", length: int | None = None) -> Path:
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def tensor(begin: int, end: int, dtype: str = "U8") -> dict[str, object]:
    return {"dtype": dtype, "shape": [end - begin], "data_offsets": [begin, end]}


def test_the_digest_is_sha256(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"x" * 10_000_000)
    assert file_digest(file) == "sha256:" + hashlib.sha256(b"x" * 10_000_000).hexdigest()


def test_a_digest_is_computed_once(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"12345")
    assert (reads(file), reads(file), reads(file)) == (5, 0, 0)


def test_it_is_computed_again_after_a_change(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"12345")
    first = file_digest(file)
    os.utime(file, ns=(1, 1))
    assert (reads(file), reads(file)) == (5, 0)
    stat = file.stat()
    file.write_bytes(b"54321")  # same size, and then the same mtime: ctime tells
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert file_digest(file) != first
    other = tmp_path / "b"
    other.write_bytes(b"abcde")
    other.replace(file)
    assert reads(file) == 5


def test_a_damaged_memory_is_not_believed(tmp_path: Path, checkweigh_home: Path) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"12345")
    right = file_digest(file)
    (kept,) = [p for p in (checkweigh_home / "digests").rglob("*") if p.is_file()]
    for damage in (b"", b"sha256:", b"\xff" * 71):
        kept.write_bytes(damage)
        assert file_digest(file) == right


def test_a_cache_that_cannot_be_written_is_done_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"12345")
    monkeypatch.setenv("CHECKWEIGH_HOME", str(file))  # a file, not a directory
    assert file_digest(file).startswith("sha256:5994471abb01")


def test_a_file_that_changes_meanwhile(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"12345")

    def write(path: Path, advance: digests.Advance) -> str:
        path.write_bytes(b"123456")
        return digests._hash_file(path, advance)

    with pytest.raises(SourceError, match="was changed while"):
        digests._cached_digest(file, "file", write, lambda _: None)


def test_many_files_with_progress(tmp_path: Path) -> None:
    files = [tmp_path / f"{i}.bin" for i in range(5)]
    for i, file in enumerate(files):
        file.write_bytes(bytes([i]) * 3_000_000)
    for _ in range(2):  # the second time from memory
        seen: list[tuple[str, int, int]] = []
        found = digest_all(files, "file", lambda *a, seen=seen: seen.append(a), "x")  # type: ignore[misc]
        assert found == {file.name: file_digest(file) for file in files}
        assert seen[-1] == ("x", 15, 15)
        assert [s for s in seen if s[1] == 15] == [seen[-1]]
        assert [done for _, done, _ in seen] == sorted(done for _, done, _ in seen)


def test_a_file_that_is_gone(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="gone: cannot be read"):
        file_digest(tmp_path / "gone")
    with pytest.raises(SourceError, match="gone: cannot be read"):
        digest_all([tmp_path / "gone"], "file", lambda *_: None, "x")


def test_tensors_and_not_the_header(tmp_path: Path) -> None:
    one = safetensors(tmp_path / "1", {"a": tensor(0, 2), "b": tensor(2, 5)}, b"aabbb")
    two = safetensors(
        tmp_path / "2", {"__metadata__": {"by": "x"}, "b": tensor(0, 3), "a": tensor(3, 5)}, b"bbbaa"
    )
    assert tensor_digest(one) == tensor_digest(two)
    assert file_digest(one) != file_digest(two)
    assert [t.name for t in read_tensors(two)] == ["a", "b"]


@pytest.mark.parametrize(
    ("header", "data"),
    [
        ({"a": tensor(0, 2), "b": tensor(2, 5)}, b"aabbc"),
        ({"a": tensor(0, 2), "c": tensor(2, 5)}, b"aabbb"),
        ({"a": tensor(0, 2, "I8"), "b": tensor(2, 5)}, b"aabbb"),
        ({"a": tensor(0, 3), "b": tensor(3, 5)}, b"aabbb"),
    ],
)
def test_every_part_of_a_tensor_counts(tmp_path: Path, header: object, data: bytes) -> None:
    one = safetensors(tmp_path / "1", {"a": tensor(0, 2), "b": tensor(2, 5)}, b"aabbb")
    assert tensor_digest(one) != tensor_digest(safetensors(tmp_path / "2", header, data))


@pytest.mark.parametrize(
    ("header", "data", "length"),
    [
        ({"a": tensor(0, 2)}, b"a", None),  # cut off
        ({"a": tensor(0, 2)}, b"aaa", None),  # bytes that nobody names
        ({"a": tensor(1, 3)}, b"aaa", None),  # a gap
        ({"a": tensor(0, 2), "b": tensor(1, 3)}, b"aaa", None),  # an overlap
        ({"a": tensor(0, 2), "b": tensor(0, 2)}, b"aaaa", None),  # an overlap and as large a gap
        ({"a": {"dtype": "U8", "shape": [2]}}, b"aa", None),
        ({"a": {"dtype": "U8", "shape": [2], "data_offsets": [0, 2.0]}}, b"aa", None),
        ({"a": 5}, b"", None),
        ([], b"", None),
        ({}, b"", 1 << 60),
        ({}, b"", 1),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, header: object, data: bytes, length: int | None) -> None:
    file = safetensors(tmp_path / "w.safetensors", header, data, length)
    with pytest.raises(SourceError, match=r"w\.safetensors: expected a whole safetensors file"):
        read_tensors(file)


def test_an_empty_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").write_bytes(b"")
    with pytest.raises(
        SourceError, match=r"w\.safetensors: expected a whole safetensors file, found 0 bytes"
    ):
        read_tensors(tmp_path / "w.safetensors")


def test_it_reads_what_the_library_writes(tiny_model_dir: Path) -> None:
    from safetensors import safe_open

    with safe_open(tiny_model_dir / "model.safetensors", "np") as file:
        expected = {name: list(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    assert {t.name: t.shape for t in read_tensors(tiny_model_dir / "model.safetensors")} == expected


def test_json_by_content(tmp_path: Path) -> None:
    texts = ['{"a": 1, "b": [1, 2]}', '{ "b":[1,2],"a":1, "transformers_version": "5", "is_local": true}\n']
    for i, text in enumerate(texts):
        (tmp_path / str(i)).write_text(text)
    assert json_digest(tmp_path / "0") == json_digest(tmp_path / "1")
    for i, text in enumerate(
        ('{"a": 1, "b": [2, 1]}', '{"a": Infinity}', '{"a": 1, "a": 1, "b": [1, 2]}', "{")
    ):
        (tmp_path / f"other{i}").write_text(text)
        assert json_digest(tmp_path / f"other{i}") != json_digest(tmp_path / "0")
