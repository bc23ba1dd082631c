"""Write the module map of docs/design.md from the modules' own first lines: ``python docs/module_map.py``."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

PAGE = Path(__file__).with_name("design.md")
PACKAGE = Path(__file__).resolve().parents[1] / "pipeline" / "checkweigh"
BEGIN, END = "<!-- module map: python docs/module_map.py -->", "<!-- end of the module map -->"


def first_line(module: Path) -> str:
    """The first line of a module's docstring; ValueError when it has none."""
    text = ast.get_docstring(ast.parse(module.read_text()))
    if not text:
        raise ValueError(f"{module}: expected a docstring whose first line says what the module is for")
    return text.splitlines()[0]


def map_lines(package: Path = PACKAGE) -> Iterator[str]:
    """The map: a heading a room, a line a module, both in alphabetical order."""
    for room in [package, *sorted(path.parent for path in package.rglob("*/__init__.py"))]:
        name = "" if room == package else f"{room.relative_to(package)}/"
        yield f"\n**`{name or 'checkweigh/'}`** {first_line(room / '__init__.py')}\n"
        for module in sorted(room.glob("*.py")):
            if module.name != "__init__.py":
                yield f"- `{module.name}` {first_line(module)}"


def page_with_map(page: str) -> str:
    """The page with the map between its two marks; ValueError when a mark is missing."""
    before, _, rest = page.partition(BEGIN)
    _, mark, after = rest.partition(END)
    if not mark:
        raise ValueError(f"expected the lines {BEGIN} and {END}")
    return f"{before}{BEGIN}\n" + "\n".join(map_lines()) + f"\n\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(page_with_map(PAGE.read_text()))
