"""Output inside a CI job, whose runner obeys commands in the log: nothing that a model said may become one."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO


class _Broken:
    """A stream whose texts are changed on their way; in all else the stream itself."""

    def __init__(self, stream: TextIO, change: Callable[[str], str]) -> None:
        self._stream, self._change = stream, change

    def write(self, text: str) -> int:
        return self._stream.write(self._change(text))

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _json(text: str) -> str:
    """Standard output is JSON: the same value, written so that no runner sees a command in it."""
    return text.replace("##[", "\\u0023#[").replace("##vso[", "\\u0023#vso[")


@contextmanager
def harmless_output() -> Iterator[None]:
    """Inside: what is printed cannot command the runner of GitHub Actions or Azure Pipelines. Elsewhere: no change."""
    if not (os.environ.get("GITHUB_ACTIONS") or os.environ.get("TF_BUILD")):
        yield
        return
    from checkweigh.report.safe import inert

    before = sys.stdout, sys.stderr
    streams: Any = sys
    if sys.stdout is not None:
        streams.stdout = _Broken(sys.stdout, _json)
    if sys.stderr is not None:
        streams.stderr = _Broken(sys.stderr, inert)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
