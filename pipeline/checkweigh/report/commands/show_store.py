"""The store's listing for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from rich.table import Table
from rich.text import Text

from checkweigh.decision.formatting import size
from checkweigh.report.safe import one_line


class ListedMeasurement(Protocol):
    """What a line needs."""

    @property
    def path(self) -> Path: ...
    @property
    def state(self) -> str: ...
    @property
    def bytes(self) -> int: ...
    @property
    def name(self) -> str: ...
    @property
    def items(self) -> int: ...
    @property
    def batches(self) -> int: ...
    @property
    def replicate(self) -> int: ...
    @property
    def made(self) -> str: ...


def listing(measurements: Sequence[ListedMeasurement]) -> Table:
    """One line a measurement."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="underline")
    for head in ("folder", "state", "set"):
        table.add_column(head)
    for head in ("items", "replicate", "size"):
        table.add_column(head, justify="right")
    table.add_column("made")
    for entry in measurements:
        come = f"{entry.batches} batches" if entry.state in ("incomplete", "measuring") else ""
        whole = entry.state == "complete"
        table.add_row(
            entry.path.name[:12], Text(entry.state, style="bold red" if entry.state == "damaged" else ""),
            one_line(entry.name, 40) or come, f"{entry.items:,}" if whole else "-",
            str(entry.replicate) if whole else "-", size(entry.bytes), one_line(entry.made, 30),
        )  # fmt: skip
    return table
