"""Recorded traffic: a CSV file of arrivals and lengths, as Azure's LLM inference traces have them."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from checkweigh import canonical
from checkweigh.errors import BadDocument, Problem
from checkweigh.sources.documents import read_bytes

COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
MAX_BYTES = 1 << 30
MOST_PROBLEMS = 20


@dataclass(frozen=True, slots=True)
class TraceRequest:
    """One request: seconds since the first one, tokens of its prompt and of its reply."""

    at: float
    prompt_tokens: int
    output_tokens: int


def read_trace(path: Path) -> tuple[TraceRequest, ...]:
    """All requests, in order. Raises BadDocument with the lines that cannot be read or run backwards in time."""
    data = read_bytes(path, "a trace of requests", MAX_BYTES)
    lines = csv.reader(io.StringIO(data.decode("utf-8", "replace")))
    header = tuple(next(lines, ()))
    if header != COLUMNS:
        raise BadDocument([_problem(path, 1, ",".join(COLUMNS), ",".join(header) or "nothing")])
    rows: list[TraceRequest] = []
    problems: list[Problem] = []
    start: datetime | None = None
    for number, fields in enumerate(lines, 2):
        try:
            at, prompt, output = _read_request(fields)
        except ValueError:
            wanted = "a time as in 2023-11-16 18:17:03.97 and two numbers of tokens above 0"
            problems.append(_problem(path, number, wanted, ",".join(fields)[:100]))
            continue
        start = start or at
        row = TraceRequest((at - start).total_seconds(), prompt, output)
        if rows and row.at < rows[-1].at:
            problems.append(_problem(path, number, "a time not before that of the line above", fields[0]))
        rows.append(row)
    if problems:
        raise BadDocument(problems[:MOST_PROBLEMS])
    if not rows:
        raise BadDocument([_problem(path, None, "at least one request", "none")])
    return tuple(rows)


def trace_digest(rows: Sequence[TraceRequest]) -> str | None:
    """Digest of what is replayed; None where nothing is."""
    return (
        canonical.digest([[row.at, row.prompt_tokens, row.output_tokens] for row in rows]) if rows else None
    )


def _read_request(fields: Sequence[str]) -> tuple[datetime, int, int]:
    """Time, prompt tokens, reply tokens. ``fromisoformat`` wants at most six digits after the point."""
    time, prompt, output = fields
    whole, _, fraction = time.partition(".")
    if fraction and not fraction.isdigit():
        raise ValueError(time)
    at = datetime.fromisoformat(f"{whole}.{fraction[:6]:0<6}")
    tokens = int(prompt), int(output)
    if min(tokens) < 1 or at.tzinfo is not None:
        raise ValueError(time)
    return at, *tokens


def _problem(path: Path, line: int | None, expected: str, found: str) -> Problem:
    return Problem(file=str(path), line=line, path="", expected=expected, found=found)
