"""Pinned files, held against their pins again, and the private copies from which engines load."""

from __future__ import annotations

import mmap
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.conftest import WriteManifest

from checkweigh.errors import PinMismatch
from checkweigh.sources.pin import Resolved, verify
from checkweigh.sources.pinned_files import PinnedFiles
from checkweigh.sources.private_copy import private_copy

WEIGHTS = "model.safetensors"
Change = Callable[[Path], None]


@pytest.fixture
def folder(tmp_path: Path, tiny_model_dir: Path) -> Path:
    """A model of the test's own, in a folder that can be swapped as well."""
    shutil.copytree(tiny_model_dir, tmp_path / "models" / "arm")
    return tmp_path / "models" / "arm"


@pytest.fixture
def resolved(folder: Path, write_manifest: WriteManifest) -> Resolved:
    return verify(write_manifest("arm", model={"source": f"path:{folder}"}))


def other(data: bytes) -> bytes:
    """Bytes of the same length, of which the last is another one."""
    return data[:-1] + bytes([data[-1] ^ 1])


def _put_back(path: Path, change: Change) -> None:
    """Change a file, and put its bytes and its time of change back."""
    whole, stat = path.read_bytes(), path.stat()
    change(path)
    path.write_bytes(whole)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def _overwrite(path: Path) -> None:
    path.write_bytes(other(path.read_bytes()))


def _swap_by_rename(path: Path) -> None:
    """Another in its place for a moment."""
    kept = path.with_name("kept")
    path.rename(kept)
    shutil.copytree(kept, path) if kept.is_dir() else shutil.copy(kept, path)
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    kept.rename(path)


def _replace(folder: Path) -> None:
    """Another folder of the same content in its place."""
    kept = folder.with_name("kept")
    folder.rename(kept)
    shutil.copytree(kept, folder)


CHANGES: dict[str, tuple[Change, str]] = {
    "weights overwritten": (lambda f: _overwrite(f / WEIGHTS), f"pins.weights.{WEIGHTS}: expected the file"),
    "weights put back": (lambda f: _put_back(f / WEIGHTS, _overwrite), f"pins.weights.{WEIGHTS}: expected the file"),
    "weights swapped": (lambda f: _swap_by_rename(f / WEIGHTS), f"pins.weights.{WEIGHTS}: expected the file"),
    "a small file put back": (
        lambda f: _put_back(f / "config.json", _overwrite), "pins.tokenizer.config.json: expected the file",
    ),
    "a file gone": (lambda f: (f / "tokenizer.json").unlink(), "tokenizer.json: .* found no such file"),
    "a side file": (lambda f: (f / "hf_quant_config.json").touch(), "found a file that is not pinned"),
    "a side file for a moment": (
        lambda f: ((f / "hf_quant_config.json").touch(), (f / "hf_quant_config.json").unlink())[0],
        "found files that were added, removed or renamed in it",
    ),
    "the folder for a moment": (_swap_by_rename, "arm: expected the folder that was verified"),
    "another folder above": (
        lambda f: _replace(f.parent), "models: expected .* found another folder in its place",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_every_change_is_seen_and_named(name: str, resolved: Resolved, folder: Path) -> None:
    files = PinnedFiles.of(resolved)
    files.check_stats()
    witness = files.witness
    change, message = CHANGES[name]
    change(folder)
    with pytest.raises(PinMismatch, match=message):
        files.check_stats()
    with pytest.raises(PinMismatch):
        files.check_digests()
    if "weights" in name:
        assert PinnedFiles.of(resolved).witness != witness


def test_all_changes_are_named_at_once(resolved: Resolved, folder: Path) -> None:
    files = PinnedFiles.of(resolved)
    for name in (WEIGHTS, "config.json", "tokenizer.json"):
        _overwrite(folder / name)
    with pytest.raises(PinMismatch) as caught:
        files.check_stats()
    assert len(caught.value.problems) == 3


def test_files_are_read_in_full_and_never_remembered(resolved: Resolved, folder: Path) -> None:
    """A write through a memory map whose page waits to be written changes no time; only reading shows it."""
    path = folder / WEIGHTS
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        mapped[-1] = mapped[
            -1
        ]  # from here on the page is dirty, and writing to it again is nobody's business
        files = PinnedFiles.of(resolved)
        found = files.check_digests()
        assert found.bytes == sum(p.stat().st_size for p in folder.iterdir())
        mapped[-1] ^= 1
        try:
            files.check_stats()
        except PinMismatch:
            pytest.skip("this kernel wrote the page back in the same moment")
        with pytest.raises(PinMismatch, match=f"pins.weights.{WEIGHTS}: expected sha256:.*, found sha256:"):
            files.check_digests()


def test_what_appears_between_verifying_and_the_snapshot_is_refused(resolved: Resolved, folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(PinMismatch, match=r"adapter_config\.json: expected no such file"):
        PinnedFiles.of(resolved)


def test_a_private_copy_is_what_is_pinned_and_nothing_else(resolved: Resolved, folder: Path) -> None:
    (folder / "README.md").write_text("nobody reads this")
    files = PinnedFiles.of(resolved)
    with private_copy(files) as copy:
        private = copy.of(folder)
        assert private != folder
        assert {p.name: p.read_bytes() for p in private.iterdir()} == {
            p.name: p.read_bytes() for p in folder.iterdir() if p.name != "README.md"
        }
        assert not (private / "config.json").is_symlink()
        _overwrite(folder / "config.json")
        assert (private / "config.json").read_bytes() != (folder / "config.json").read_bytes()
        assert copy.with_own_names(f"{private}/config.json: no") == f"{folder}/config.json: no"
    assert not private.exists()


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="only Linux links to opened files")
def test_a_rename_does_not_exchange_what_a_private_copy_leads_to(resolved: Resolved, folder: Path) -> None:
    whole = (folder / WEIGHTS).read_bytes()
    with private_copy(PinnedFiles.of(resolved)) as copy:
        folder.parent.rename(folder.parent.with_name("elsewhere"))
        folder.mkdir(parents=True)
        (folder / WEIGHTS).write_bytes(other(whole))
        assert (copy.of(folder) / WEIGHTS).read_bytes() == whole


def test_two_engines_have_a_copy_each_at_the_address_of_the_last_ones(
    resolved: Resolved, folder: Path
) -> None:
    files = PinnedFiles.of(resolved)
    with private_copy(files) as first, private_copy(files) as second:
        places = first.of(folder), second.of(folder)
        assert len({*places}) == 2
        (places[1] / "left.txt").write_text("by a process that was killed")
        assert (places[0] / "tokenizer.json").is_file()
    with private_copy(files) as again:
        assert again.of(folder) == places[0]


def test_what_a_killed_process_left_is_swept(resolved: Resolved, folder: Path, checkweigh_home: Path) -> None:
    left = checkweigh_home / "served" / "0123456789ab-0" / "model"
    left.mkdir(parents=True)
    with private_copy(PinnedFiles.of(resolved)):
        assert not left.parent.exists()


def test_a_copy_of_what_changed_meanwhile_is_refused_by_the_users_own_name(
    resolved: Resolved, folder: Path
) -> None:
    files = PinnedFiles.of(resolved)
    _overwrite(folder / "tokenizer.json")
    with pytest.raises(PinMismatch) as caught, private_copy(files):
        pass
    assert str(folder / "tokenizer.json") in str(caught.value)
    assert "served" not in str(caught.value)
