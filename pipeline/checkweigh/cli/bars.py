"""Progress for people: bars on a terminal, one line a stage where there is none."""

from __future__ import annotations

import time
from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn


class Bars:
    """``update(label, done, total)`` draws; a label's first call opens its bar. Without a total it prints the label."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self.console = console
        self.clock = clock
        self.tasks: dict[str, TaskID] = {}
        self.begun: dict[str, float] = {}
        self.bars = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
            console=console, disable=not console.is_terminal,
        )  # fmt: skip

    def __enter__(self) -> Bars:
        self.bars.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.bars.stop()

    def update(self, label: str, done: int, total: int) -> None:
        """Show that ``done`` of ``total`` steps of ``label`` are finished."""
        if not total:
            self.console.print(label, markup=False, highlight=False, soft_wrap=True)
            return
        if not self.console.is_terminal:
            self._line(label, done, total)
            return
        if label not in self.tasks:
            self.tasks[label] = self.bars.add_task(label, total=total)
        self.bars.update(self.tasks[label], completed=done, total=total)

    def _line(self, label: str, done: int, total: int) -> None:
        begun = self.begun.setdefault(label, now := self.clock())
        if done >= total:
            del self.begun[label]
            seconds = now - begun
            count = f"{total} in " if total > 1 else ""
            self.console.print(
                f"{label}: {count}{seconds:.0f} s", markup=False, highlight=False, soft_wrap=True
            )
