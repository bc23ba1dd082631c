from __future__ import annotations

from pathlib import Path

import pytest

from checkweigh.errors import BadDocument, ExitCode
from checkweigh.sources.documents import read_card, read_manifest, read_policy


@pytest.mark.parametrize("read", [read_manifest, read_policy, read_card])
def test_every_way_of_not_being_there(tmp_path: Path, read: object) -> None:
    assert callable(read)
    (tmp_path / "file").write_text("")
    for path, found in (
        (tmp_path / "none.yaml", "no such file"),
        (tmp_path, "a directory"),
        (tmp_path / "file" / "x.yaml", "a file that cannot be read (Not a directory)"),
        (tmp_path / ("x" * 300), "a file that cannot be read (File name too long)"),
    ):
        with pytest.raises(BadDocument) as caught:
            read(path)
        assert caught.value.exit_code is ExitCode.BAD_INPUT
        assert str(caught.value).startswith(f"{path}: expected a ")
        assert str(caught.value).endswith(f"found {found}")


def test_errors_carry_the_file_as_it_was_named(tmp_path: Path) -> None:
    (tmp_path / "m.yaml").write_text("name: x\n")
    with pytest.raises(BadDocument) as caught:
        read_manifest(tmp_path / "m.yaml")
    assert {problem.file for problem in caught.value.problems} == {str(tmp_path / "m.yaml")}
    assert {problem.line for problem in caught.value.problems} == {1}
