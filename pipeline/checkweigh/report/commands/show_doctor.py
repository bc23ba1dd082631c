"""Findings about this machine, for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from rich.table import Table
from rich.text import Text

from checkweigh.report.safe import one_line

STYLE = {"ok": "green", "note": "yellow", "missing": "bold red"}


class ListedFinding(Protocol):
    """What a line needs."""

    @property
    def name(self) -> str: ...
    @property
    def state(self) -> str: ...
    @property
    def found(self) -> str: ...
    @property
    def hint(self) -> str: ...


def findings(rows: Sequence[ListedFinding]) -> Table:
    """One line a finding, its hint below it."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, show_header=False, expand=True)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold", ratio=1)
    for finding in rows:
        text = Text(one_line(finding.found, 300))
        if finding.hint:
            text.append(f"\n{one_line(finding.hint, 300)}", style="dim")
        table.add_row(Text(finding.state, style=STYLE[finding.state]), Text(one_line(finding.name, 60)), text)
    return table
