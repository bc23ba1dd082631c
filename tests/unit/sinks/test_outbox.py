"""The outbox: whole folders or none, and nothing damaged is ever sent."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from checkweigh import canonical
from checkweigh.errors import StoreError
from checkweigh.records.decision import Verdict
from checkweigh.sinks.outbox import Bundle, MlflowRun, put, read_bundle, remove, waiting_folders

RUN = MlflowRun(role="gate", name="x PASS", params={"a": "b"}, tags={"c": "d"}, metrics={"m": 0.5})


def bundle(name: str = "one") -> Bundle:
    return Bundle(
        decision=canonical.digest(name), verdict=Verdict.PASS, experiment="checkweigh", destination="http://host",
        secret=False, started=1, ended=2, runs=(RUN,), datasets=(), files=("a.txt", "plots/b.svg"),
    )  # fmt: skip


FILES = {"a.txt": b"a", "plots/b.svg": b"<svg/>"}


def test_what_is_put_is_read_until_it_is_removed(tmp_path: Path) -> None:
    first = put(bundle("one"), FILES, tmp_path)
    second = put(bundle("two"), FILES, tmp_path)
    os.utime(first, (10, 10))
    os.utime(second, (20, 20))
    assert waiting_folders(tmp_path) == [first, second]
    assert read_bundle(first) == bundle("one")
    assert (first / "files/plots/b.svg").read_bytes() == b"<svg/>"
    remove(first)
    assert waiting_folders(tmp_path) == [second]
    assert put(bundle("two"), FILES, tmp_path) == second, "the same decision again is the same folder"
    assert sorted(path.name for path in tmp_path.iterdir()) == [second.name], "nothing temporary is left"


def test_an_outbox_that_is_not_there_is_empty(tmp_path: Path) -> None:
    assert waiting_folders(tmp_path / "none") == []


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "bundle.json").unlink(), "cannot be read"),
        (lambda f: (f / "bundle.json").write_text("{"), "cannot be read"),
        (lambda f: (f / "files/plots/b.svg").unlink(), "lacks plots/b.svg"),
        (
            lambda f: (f / "bundle.json").write_text(bundle("other").model_dump_json()),
            "does not belong to its address",
        ),
    ],
)
def test_what_is_damaged_is_named_and_not_sent(tmp_path: Path, damage: object, message: str) -> None:
    folder = put(bundle(), FILES, tmp_path)
    damage(folder)  # type: ignore[operator]
    with pytest.raises(StoreError, match=message) as error:
        read_bundle(folder)
    assert str(folder) in str(error.value)


def test_a_disk_that_refuses_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "root").write_text("a file")
    with pytest.raises(StoreError, match="cannot be written"):
        put(bundle(), FILES, tmp_path / "root")
