"""Findings about this machine, for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from rich.table import Table
from rich.text import Text

from checkweigh.report.safe import one_line

STYLE = {"ok": "green", "note": "yellow", "missing": "bold red"}


class Listed(Protocol):
    """What a line needs."""

    @property
    def name(self) -> str: ...
    @property
    def state(self) -> str: ...
    @property
    def found(self) -> str: ...
    @property
    def hint(self) -> str: ...


def findings(found: Sequence[Listed]) -> Table:
    """One line a finding, its hint below it."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, show_header=False, expand=True)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold", ratio=1)
    for one in found:
        said = Text(one_line(one.found, 300))
        if one.hint:
            said.append(f"\n{one_line(one.hint, 300)}", style="dim")
        table.add_row(Text(one.state, style=STYLE[one.state]), Text(one_line(one.name, 60)), said)
    return table
