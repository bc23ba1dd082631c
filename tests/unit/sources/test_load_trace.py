"""Traces of recorded traffic: read whole, or refused with every line that is wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from checkweigh.errors import BadDocument
from checkweigh.sources.load_trace import TraceRequest, read_trace

HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens\n"


def write(path: Path, text: str) -> Path:
    file = path / "trace.csv"
    file.write_text(text)
    return file


def test_a_trace_of_the_published_shape_is_read(tmp_path: Path) -> None:
    """Seven digits after the point, as in Azure's LLM inference traces."""
    rng = np.random.default_rng(0)
    gaps = rng.gamma(0.2, 2.0, 300)
    seconds = np.cumsum(gaps)
    rows = [
        f"2023-11-16 18:{15 + int(s) // 60:02d}:{int(s) % 60:02d}.{int(s % 1 * 1e7):07d},{c},{g}"
        for s, c, g in zip(seconds, rng.integers(1, 8000, 300), rng.integers(1, 900, 300), strict=True)
    ]
    found = read_trace(write(tmp_path, HEADER + "\n".join(rows) + "\n"))
    assert len(found) == 300
    assert found[0].at == 0
    assert [row.at for row in found] == pytest.approx(list(seconds - seconds[0]), abs=2e-6)
    assert found[7].prompt_tokens == int(rows[7].split(",")[1])


def test_a_time_without_a_fraction_is_a_time(tmp_path: Path) -> None:
    text = HEADER + "2023-11-16 18:17:03,4,1\n2023-11-16 18:17:04.5,5,2\n"
    assert read_trace(write(tmp_path, text)) == (TraceRequest(0.0, 4, 1), TraceRequest(1.5, 5, 2))


@pytest.mark.parametrize(
    ("text", "line", "expected"),
    [
        ("", 1, "TIMESTAMP,ContextTokens,GeneratedTokens"),
        ("time,in,out\n", 1, "TIMESTAMP,ContextTokens,GeneratedTokens"),
        (HEADER, None, "at least one request"),
        (HEADER + "yesterday,4,1\n", 2, "a time as in"),
        (HEADER + "2023-11-16 18:17:03,4\n", 2, "a time as in"),
        (HEADER + "2023-11-16 18:17:03,0,1\n", 2, "above 0"),
        (HEADER + "2023-11-16 18:17:03,4,nan\n", 2, "above 0"),
        (HEADER + "2023-11-16 18:17:03.5x,4,1\n", 2, "a time as in"),
        (HEADER + "2023-11-16 18:17:03+00:00,4,1\n", 2, "a time as in"),
        (HEADER + "2023-11-16 18:17:03,4,1\n2023-11-16 18:17:02,4,1\n", 3, "not before"),
    ],
)
def test_what_is_wrong_is_named_by_its_line(
    tmp_path: Path, text: str, line: int | None, expected: str
) -> None:
    with pytest.raises(BadDocument) as caught:
        read_trace(write(tmp_path, text))
    (problem,) = caught.value.problems
    assert problem.line == line
    assert expected in problem.expected


def test_all_wrong_lines_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(BadDocument) as caught:
        read_trace(write(tmp_path, HEADER + "a,b,c\n2023-11-16 18:17:03,4,1\nx,y,z\n"))
    assert [problem.line for problem in caught.value.problems] == [2, 4]


def test_a_missing_trace_is_bad_input(tmp_path: Path) -> None:
    with pytest.raises(BadDocument, match="no such file"):
        read_trace(tmp_path / "nowhere.csv")
