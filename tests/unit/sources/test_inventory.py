"""The list of files that an engine may read: complete, and nothing outside the folder."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from checkweigh.errors import RefusedFiles, SourceError
from checkweigh.sources.model.inventory import is_ignored, list_files

NAME = st.text("abAB.-_ é", min_size=1, max_size=6).filter(lambda name: name.strip(".") != "")


def put(path: Path, text: str = "x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@given(st.lists(st.lists(NAME, min_size=1, max_size=3), max_size=6))
def test_every_file_is_listed_however_deep(places: list[list[str]]) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        made = set()
        for place in places:
            path = folder.joinpath(*place)
            if not path.exists() and all(not parent.is_file() for parent in path.parents):
                made.add(put(path).relative_to(folder).as_posix())
        found = list_files(folder)
        assert set(found) == {place for place in made if not is_ignored(place)}
        assert list(found) == sorted(found)
        assert all(path == folder / name for name, path in found.items())


@pytest.mark.parametrize(
    ("name", "ignored"),
    [
        ("README" + ".md", True), ("a/LICENSE.txt", True), ("LICENSE", True), (".git", True), (".cache/a/b.json", True),
        ("a/.git/config", True), ("x.yaml", True), ("model.gguf", True), (".checkweigh-seal.json", True),
        ("README", False), ("license.json", False), ("git/config", False), (".hidden.json", False), ("a.lock", False),
    ],
)  # fmt: skip
def test_the_names_that_are_ignored(name: str, ignored: bool) -> None:
    assert is_ignored(name) is ignored


def test_a_hub_snapshot_may_link_to_its_own_blobs_and_no_others(tmp_path: Path) -> None:
    own, other = tmp_path / "models--a--b", tmp_path / "models--c--d"
    snapshot = own / "snapshots" / ("1" * 40)
    blob, foreign = put(own / "blobs" / "aa"), put(other / "blobs" / "bb")
    (snapshot / "sub").mkdir(parents=True)
    (snapshot / "w.safetensors").symlink_to("../../blobs/aa")
    (snapshot / "sub" / "c.json").symlink_to("../../../blobs/aa")
    assert list(list_files(snapshot)) == ["sub/c.json", "w.safetensors"]
    assert list(list_files(snapshot / "sub")) == ["c.json"]
    assert list_files(snapshot)["w.safetensors"].resolve() == blob
    (snapshot / "foreign").symlink_to(foreign)
    (snapshot / "refs").symlink_to(put(own / "refs" / "main"))
    with pytest.raises(RefusedFiles) as caught:
        list_files(snapshot)
    assert [Path(problem.file).name for problem in caught.value.problems] == ["foreign", "refs"]


def test_everything_that_is_no_file_of_the_folder_is_refused_by_name(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    put(folder / "a.json")
    (folder / "inside").symlink_to("a.json")
    assert list(list_files(folder)) == ["a.json", "inside"]
    (folder / "outside").symlink_to(put(tmp_path / "b.json"))
    (folder / "gone").symlink_to("nothing")
    (folder / "loop").symlink_to("loop")
    (folder / "parent").symlink_to("..")
    put(folder / "real" / "c.json")
    (folder / "folder").symlink_to("real")
    os.mkfifo(folder / "pipe")
    put(folder / "bad\nname")
    put(folder / "bad-\udcff")
    with pytest.raises(RefusedFiles) as caught:
        list_files(folder)
    said = {Path(problem.file).name: problem.found for problem in caught.value.problems}
    assert set(said) == {"outside", "gone", "loop", "parent", "folder", "pipe", "bad\\nname'", "bad-\\udcff'"}
    assert said["outside"] == f"a link that leaves the folder ({tmp_path}/b.json); copy the file"
    assert said["gone"] == said["loop"] == "a link to nothing"
    assert said["folder"] == f"a link to a folder ({folder}/real)"


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    for path in (tmp_path / "none", put(tmp_path / "file")):
        with pytest.raises(SourceError, match="cannot be read"):
            list_files(path)
