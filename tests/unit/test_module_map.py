"""docs/design.md lists the modules that are there, and rooms stay small enough to read."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = runpy.run_path(str(ROOT / "docs" / "module_map.py"))
PACKAGE: Path = SCRIPT["PACKAGE"]
ROOMS = sorted(path.parent for path in PACKAGE.rglob("__init__.py"))


def test_the_module_map_is_what_the_tree_holds() -> None:
    page = (ROOT / "docs" / "design.md").read_text()
    assert page == SCRIPT["page_with_map"](page), "run python docs/module_map.py"


def test_a_module_that_is_not_on_the_map_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "room").mkdir()
    for name in ("__init__.py", "room/__init__.py", "room/new.py"):
        (tmp_path / name).write_text(f'"""What {name} is for."""\n')
    assert "- `new.py` What room/new.py is for." in list(SCRIPT["map_lines"](tmp_path))


def test_a_module_must_say_what_it_is_for(tmp_path: Path) -> None:
    (tmp_path / "mute.py").write_text("x = 1\n")
    with pytest.raises(ValueError, match=r"mute\.py: expected a docstring"):
        SCRIPT["first_line"](tmp_path / "mute.py")


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: str(room.relative_to(PACKAGE.parent)))
def test_a_room_is_small_enough_to_read(room: Path) -> None:
    modules = [path.name for path in room.glob("*.py") if path.name != "__init__.py"]
    assert len(modules) <= 14, f"{room.name}/ holds {len(modules)} modules: which of them change together?"


def test_every_place_named_in_the_design_exists() -> None:
    page = (ROOT / "docs" / "design.md").read_text()
    table = page.partition("## Where to look")[2].partition("## Choices")[0]
    names = [name for name in table.split("`")[1::2] if name.endswith(".py") and "/" in name]
    assert len(names) >= 5
    assert [name for name in names if not (PACKAGE / name).is_file()] == []
