"""How long work tells what it is doing: the callbacks that use cases take and the command line draws."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""``progress(label, done, total)``: steps of one stage; a total of 0 is a line to print at once."""

Say = Callable[[str], None]
"""``say(line)``: one line for people."""


def no_progress(label: str, done: int, total: int) -> None:
    """Draw nothing."""
