"""What every command shares: the application, common options, and output.

Inside a CI job the runner executes commands that it sees in the log: no text of a model may become one.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from checkweigh.errors import BadInput

if TYPE_CHECKING:
    from rich.console import Console

    from checkweigh.cli.bars import Bars

app = typer.Typer(
    name="checkweigh",
    help="The gate that decides whether a change to a served language model may ship.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
ManifestPath = Annotated[Path, typer.Argument(metavar="MANIFEST", help="a manifest, NAME.yaml")]
BaselinePath = Annotated[
    Path,
    typer.Argument(
        metavar="BASELINE",
        help="Manifest of the model in production. For `gate`, also a registry name such as models:/NAME@ALIAS.",
    ),
]
CandidatePath = Annotated[Path, typer.Argument(metavar="CANDIDATE", help="manifest of what would serve next")]
PolicyPath = Annotated[Path, typer.Option("--policy", metavar="P", help="checks and margins")]
AsJson = Annotated[bool, typer.Option("--json", help="print the result as JSON on stdout")]
StatedEvalset = Annotated[
    list[str] | None,
    typer.Option(
        "--evalset", metavar="NAME=D",
        help="digest of a set that is not beside the policy, as evalset check prints it; once each",
    ),
]  # fmt: skip
AcceptUnverified = Annotated[
    bool, typer.Option("--accept-unverified", help="accept arms that nobody could verify, such as endpoints")
]
_UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def duration(option: str, text: str) -> timedelta:
    """The time span of ``90m``, ``12h``, ``30d`` or ``2w``. Raises BadInput for another text, naming ``option``."""
    parts = re.fullmatch(r"([1-9][0-9]{0,5})([mhdw])", text)
    if parts is None:
        raise BadInput(
            f"{option}: expected a number and m, h, d or w, such as 12h or 30d, found {text[:40]!r}"
        )
    return timedelta(**{_UNITS[parts[2]]: int(parts[1])})


def console() -> Console:
    from rich.console import Console

    return Console(stderr=True)


def bars() -> Bars:
    from checkweigh.cli.bars import Bars

    return Bars(console())


def say(text: str) -> None:
    """Print a line on stderr, with control characters made visible. A failed write must not change the exit code."""
    if sys.stderr is not None:
        with suppress(OSError, ValueError):
            print(_visible(text), file=sys.stderr, flush=True)


def _visible(text: str) -> str:
    try:
        from checkweigh.report.safe import visible
    except ImportError:  # a broken installation, which is what the line reports
        return ascii(text)[1:-1].replace("\\n", "\n")
    return visible(text)


class _RewritingStream:
    """A stream whose texts are rewritten on their way; in all else the stream itself."""

    def __init__(self, stream: TextIO, change: Callable[[str], str]) -> None:
        self._stream, self._change = stream, change

    def write(self, text: str) -> int:
        return self._stream.write(self._change(text))

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _inert_json(text: str) -> str:
    """The same JSON value, escaped so that no runner sees a command in it."""
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
        streams.stdout = _RewritingStream(sys.stdout, _inert_json)
    if sys.stderr is not None:
        streams.stderr = _RewritingStream(sys.stderr, inert)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
