"""Waiting for what happens, never for a clock: the one place where tests look again and again, with a deadline."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

LOOK_S = 0.01  # between two looks


class InVain(AssertionError):
    """It did not happen in time."""


def until(
    happens: Callable[[], object], seconds: float = 60.0, what: object = "it", look_s: float = LOOK_S
) -> float:
    """Look until ``happens()`` is true; the seconds that took.

    InVain: it was not true within ``seconds``. ``what`` names it; a callable is asked then.
    """
    began = time.monotonic()
    while not happens():
        if time.monotonic() - began > seconds:
            raise InVain(_message(what, seconds))
        time.sleep(look_s)
    return time.monotonic() - began


async def reached(happens: Callable[[], object], seconds: float = 60.0, what: object = "it") -> float:
    """``until`` beside the tasks of an event loop."""
    began = time.monotonic()
    while not happens():
        if time.monotonic() - began > seconds:
            raise InVain(_message(what, seconds))
        await asyncio.sleep(LOOK_S)
    return time.monotonic() - began


def _message(what: object, seconds: float) -> str:
    return f"not within {seconds:g} s: {what() if callable(what) else what}"
