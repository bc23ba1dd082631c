"""Spans of time as people write them."""

from __future__ import annotations

import re
from datetime import timedelta

from checkweigh.errors import BadInput

_UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def duration(option: str, text: str) -> timedelta:
    """``90m``, ``12h``, ``30d`` or ``2w``. BadInput otherwise."""
    found = re.fullmatch(r"([1-9][0-9]{0,5})([mhdw])", text)
    if found is None:
        raise BadInput(
            f"{option}: expected a number and m, h, d or w, such as 12h or 30d, found {text[:40]!r}"
        )
    return timedelta(**{_UNITS[found[2]]: int(found[1])})
