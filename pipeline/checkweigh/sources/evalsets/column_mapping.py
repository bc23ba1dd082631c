"""A row of the user's data -> a row in our own fields, by the card's ``columns``. Pure.

Nothing is guessed: a cell that is null, of another type, or ambiguous is a problem, never a default.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from checkweigh import canonical
from checkweigh.records.columns import Columns
from checkweigh.records.evalset import Card
from checkweigh.sources.evalsets.row_readers import DataRow

ColumnFault = tuple[str, str, str]  # column, expected, found
DEFAULT_CHECK = "phrase"


class _BadCell(Exception):
    def __init__(self, expected: str, found: str) -> None:
        self.expected = expected
        self.found = found


def map_columns(card: Card, number: int, row: DataRow) -> tuple[DataRow, list[ColumnFault]]:
    """The row in our own fields, and every fault of its cells. ``number`` names a row without an id."""
    assert card.columns is not None
    columns = card.columns
    ours: DataRow = {}
    faults: list[ColumnFault] = []

    def take(field: str, read: Callable[[Any], Any]) -> None:
        column = getattr(columns, field)
        if column is None:
            return
        try:
            cell = row.get(column)
            if cell is None:
                raise _BadCell("a value", "null" if column in row else "nothing")
            ours[field] = read(cell)
        except _BadCell as bad:
            faults.append((column, bad.expected, bad.found))

    for field in ("id", "cluster", "stratum"):
        take(field, _label)
    for field in ("text", "origin", "prompt"):
        take(field, _text)
    take("messages", _messages)
    take("choices", _texts)
    take("answer", lambda cell: _answer(cell, ours.get("choices", [])))
    take("references", _references)
    take("check", _mapping)
    return _with_defaults(card, columns, number, ours), faults


def _with_defaults(card: Card, columns: Columns, number: int, ours: DataRow) -> DataRow:
    """With the defaults for what no column was named for, and in the shape of our own files."""
    if columns.id is None:
        ours["id"] = f"row-{number:06d}"
    if columns.cluster is None and "id" in ours:
        ours["cluster"] = ours["id"]
    if columns.stratum is None:
        ours["stratum"] = "all"
    if "prompt" in ours:
        ours["messages"] = [{"role": "user", "content": ours.pop("prompt")}]
    if "references" in ours and card.scorer.name == "reply_check":
        ours["check"] = {"kind": card.check or DEFAULT_CHECK, "values": ours.pop("references")}
    return ours


def _label(cell: Any) -> str:
    if isinstance(cell, int) and not isinstance(cell, bool):
        return str(cell)
    return _text(cell, "text or a whole number")


def _text(cell: Any, wanted: str = "text") -> str:
    if not isinstance(cell, str):
        raise _BadCell(wanted, _shown(cell))
    if not cell.strip():
        raise _BadCell(f"{wanted} that is not blank", _shown(cell))
    return cell


def _texts(cell: Any) -> list[str]:
    if not isinstance(cell, list):
        raise _BadCell("a list of texts", _shown(cell))
    return [_text(part, "a list of texts") for part in cell]


def _messages(cell: Any) -> list[DataRow]:
    """Turns without the nulls that a Parquet struct has for keys that a turn lacks; the record checks the rest."""
    if not isinstance(cell, list) or not all(isinstance(turn, dict) for turn in cell):
        raise _BadCell("a list of {role, content}", _shown(cell))
    return [_plain({key: value for key, value in turn.items() if value is not None}) for turn in cell]


def _mapping(cell: Any) -> DataRow:
    if not isinstance(cell, dict):
        raise _BadCell("a mapping {kind, values, pattern}", _shown(cell))
    return _plain({key: value for key, value in cell.items() if value is not None})


def _plain(value: DataRow) -> DataRow:
    try:
        canonical.dumps(value)
    except (ValueError, TypeError) as error:
        raise _BadCell("plain JSON", str(error)) from None
    return value


def _references(cell: Any) -> list[str]:
    """One right reply or several; a number counts as its shortest text."""
    references = []
    for part in cell if isinstance(cell, list) else [cell]:
        if isinstance(part, bool) or not isinstance(part, str | int | float):
            raise _BadCell("text, a number, or a list of them", _shown(part))
        if isinstance(part, float) and not math.isfinite(part):
            raise _BadCell("a finite number", _shown(part))
        references.append(_text(part) if isinstance(part, str) else canonical.dumps(part))
    if not references:
        raise _BadCell("at least one reference", _shown(cell))
    return references


def _answer(cell: Any, choices: list[str]) -> int:
    """The index itself, or the one choice that the text equals."""
    if isinstance(cell, int) and not isinstance(cell, bool):
        return cell
    if not isinstance(cell, str):
        raise _BadCell("an index into the choices, or one of them", _shown(cell))
    places = {index for index, choice in enumerate(choices) if choice == cell}
    if cell.isascii() and cell.isdecimal() and int(cell) < len(choices):
        places.add(int(cell))
    if len(places) != 1:
        count = "none" if not places else "more than one"
        raise _BadCell(
            "an index into the choices, or one of them", f"{_shown(cell)}, which is {count} of them"
        )
    return places.pop()


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
