"""A kept process's own part of a log, and its exit code in words."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from checkweigh.engines.processes.kept_process import RunLog, exit_cause


@pytest.mark.parametrize(
    ("code", "cause"),
    [
        (3, "exited with code 3"),
        (0, "exited with code 0 although nobody asked it to"),
        (-9, "killed by signal 9 (SIGKILL), likely out of memory"),
        (-15, "killed by signal 15 (SIGTERM)"),
        (-40, "killed by signal 40"),  # a real-time signal, which has no name
    ],
)
def test_an_exit_code_in_words(code: int, cause: str) -> None:
    assert exit_cause(code) == cause


def test_a_run_sees_only_what_was_logged_since_it_began(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "engine.log"
    first = RunLog(path)
    assert (first.text(), first.tail(5)) == ("", ""), "nothing is written yet"
    path.write_text("of the first\n")
    second = RunLog(path)
    with path.open("a") as file:
        file.write("one\nWARNING: noise\ntwo\nthree\n")
    assert second.text() == "one\nWARNING: noise\ntwo\nthree\n"
    assert second.tail(2) == "two\nthree"
    assert second.tail(3, without=re.compile("noise")) == "one\ntwo\nthree"
    assert first.text().startswith("of the first\none\n")
