"""Where a set's fields stand in data that somebody else laid out, and which of them a kind of set needs. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import Field

from checkweigh.records.base import Record

SHARED = ("id", "cluster", "stratum")
FIELDS = {
    "text": ("text", "origin"),
    "choice": ("prompt", "messages", "choices", "answer"),
    "generation": ("prompt", "messages", "references", "check"),
}


class Columns(Record):
    """Our field -> the data's column. What is not named is not read."""

    id: str | None = Field(default=None, min_length=1, description="default: the row's number")
    cluster: str | None = Field(default=None, min_length=1, description="default: the id")
    stratum: str | None = Field(default=None, min_length=1, description="default: 'all' for every row")
    text: str | None = Field(default=None, min_length=1, description="a text set's prose")
    origin: str | None = Field(default=None, min_length=1, description="where the text comes from")
    prompt: str | None = Field(default=None, min_length=1, description="one user message; or name messages")
    messages: str | None = Field(default=None, min_length=1, description="a list of {role, content}")
    choices: str | None = Field(default=None, min_length=1, description="a list of candidate replies")
    answer: str | None = Field(
        default=None, min_length=1, description="index into the choices from 0, or the right choice itself"
    )
    references: str | None = Field(default=None, min_length=1, description="right replies: a text or a list")
    check: str | None = Field(default=None, min_length=1, description="a mapping {kind, values, pattern}")

    def named(self) -> dict[str, str]:
        """Our field -> column, of the fields that are named."""
        return {field: column for field in type(self).model_fields if (column := getattr(self, field))}


def misfits(kind: str, columns: Columns) -> Iterator[str]:
    """What the columns lack, or name in vain, for a kind of set."""
    named = set(columns.named())
    known = {*SHARED, *FIELDS[kind]}
    for field in sorted(named - known):
        yield f"columns.{field} is not for a {kind} set"
    pairs = {"text": ("text",), "choice": ("prompt|messages", "choices", "answer")}
    for need in pairs.get(kind, ("prompt|messages", "references|check")):
        either = need.split("|")
        count = len(named.intersection(either))
        names = " or ".join(f"columns.{field}" for field in either)
        if count == 0:
            yield f"a {kind} set needs {names}"
        elif count > 1:
            yield f"a {kind} set takes {names}, not both"
