"""Digests: right, remembered, and forgotten when the file changes."""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import struct
from collections.abc import Iterable
from pathlib import Path

import pytest
from tests.builders import tensor_digest

from checkweigh import canonical
from checkweigh.errors import SourceError
from checkweigh.progress import no_progress
from checkweigh.sources import digests
from checkweigh.sources.digests import (
    Files,
    file_digest,
    fresh_digests,
    remembered_digests,
    tensor_content,
)
from checkweigh.sources.model.safetensors_header import read_tensors

pytestmark = pytest.mark.usefixtures("checkweigh_home")


def reads(path: Path) -> int:
    """Bytes that are hashed when ``path`` is digested now."""
    counted: list[int] = []
    digests._cached_digest(path, "file", lambda p, advance: _count(p, advance, counted), lambda _: None)
    return sum(counted)


def _count(path: Path, advance: digests.Advance, counted: list[int]) -> str:
    return digests._hash_file(path, lambda count: (counted.append(count), advance(count))[1])


def named(files: Iterable[Path]) -> Files:
    """The files by name, to be digested by their bytes."""
    return {file.name: (file, "file") for file in files}


def json_digest(path: Path) -> str:
    """Of a JSON file's content."""
    return remembered_digests({"x": (path, "json")}, no_progress, "")["x"]


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
        found = remembered_digests(named(files), lambda *a, seen=seen: seen.append(a), "x")  # type: ignore[misc]
        assert found == {file.name: file_digest(file) for file in files}
        assert seen[-1] == ("x", 15, 15)
        assert [s for s in seen if s[1] == 15] == [seen[-1]]
        assert [done for _, done, _ in seen] == sorted(done for _, done, _ in seen)


def test_a_file_that_is_gone(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="gone: cannot be read"):
        file_digest(tmp_path / "gone")
    for digests_of in (fresh_digests, remembered_digests):
        with pytest.raises(SourceError) as caught:
            digests_of(named([tmp_path / "gone", tmp_path / "lost"]), no_progress, "x")
        first, second = str(caught.value).splitlines()
        assert "gone: cannot be read" in first
        assert "lost: cannot be read" in second


def write_through_a_map(file: Path) -> None:
    """Write to a file so that no time changes after it was digested: its page was dirty by then."""
    for number in range(1, 100):  # again, if the kernel wrote the page back in between
        with file.open("r+b") as opened, mmap.mmap(opened.fileno(), 0) as mapped:
            mapped[0] = number
            remembered_digests(named([file]), no_progress, "x")
            before = file.stat().st_ctime_ns
            mapped[1] = number
        if file.stat().st_ctime_ns == before:
            return


def test_a_fresh_digest_sees_a_write_through_a_memory_map(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_bytes(bytes(100_000))
    write_through_a_map(file)
    now = "sha256:" + hashlib.sha256(file.read_bytes()).hexdigest()
    assert fresh_digests(named([file]), no_progress, "x") == {"a": now}
    assert remembered_digests(named([file]), no_progress, "x") != {"a": now}  # what deceives the memory


def test_a_fresh_digest_neither_reads_nor_writes_the_memory(tmp_path: Path, checkweigh_home: Path) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"12345")
    right = fresh_digests(named([file]), no_progress, "x")
    assert not (checkweigh_home / "digests").exists()
    assert right == {"a": file_digest(file)}
    (kept,) = [p for p in (checkweigh_home / "digests").rglob("*") if p.is_file()]
    kept.write_text("sha256:" + "0" * 64)
    assert file_digest(file) == "sha256:" + "0" * 64
    assert fresh_digests(named([file]), no_progress, "x") == right


def test_a_fresh_digest_of_every_kind(tmp_path: Path) -> None:
    weights = safetensors(tmp_path / "w.safetensors", {"a": tensor(0, 2)}, b"aa")
    (tmp_path / "c.json").write_text('{"a": 1, "transformers_version": "5"}')
    kinds: Files = {"w": (weights, "tensors"), "c": (tmp_path / "c.json", "json"), "b": (weights, "file")}
    found = fresh_digests(kinds, no_progress, "x")
    assert list(found) == ["w", "c", "b"]
    assert found == {"w": tensor_digest(weights), "c": canonical.digest({"a": 1}), "b": file_digest(weights)}


def test_the_same_tensors_have_one_digest_whatever_files_they_lie_in(tmp_path: Path) -> None:
    whole = safetensors(tmp_path / "whole", {"a": tensor(0, 2), "b": tensor(2, 5)}, b"aabbb")
    first = safetensors(tmp_path / "1", {"b": tensor(0, 3)}, b"bbb")
    second = safetensors(tmp_path / "2", {"__metadata__": {"by": "x"}, "a": tensor(0, 2)}, b"aa")
    other = safetensors(tmp_path / "3", {"a": tensor(0, 2)}, b"ab")
    assert tensor_content([whole]) == tensor_content([first, second]) == tensor_content([second, first])
    assert tensor_content([whole]) != tensor_content([first, other])
    assert tensor_content([whole]) != tensor_content([first])
    with pytest.raises(SourceError, match="tensors stand in two files: b"):
        tensor_content([whole, first])


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
        (
            '{"a": 1, "b": [2, 1]}', '{"a": Infinity}', '{"a": "Infinity"}', '{"a": 1, "a": 1, "b": [1, 2]}', "{",
            "\ufeff" + texts[0],
        )
    ):  # fmt: skip
        (tmp_path / f"other{i}").write_text(text)
    found = {json_digest(path) for path in tmp_path.glob("other*")} | {json_digest(tmp_path / "0")}
    assert len(found) == 7
