"""What every command shares: the application, its options, and how it speaks."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

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
Baseline = Annotated[
    Path, typer.Argument(metavar="BASELINE", help="what serves now: a manifest; gate: or models:/NAME@ALIAS")
]
Candidate = Annotated[Path, typer.Argument(metavar="CANDIDATE", help="manifest of what would serve next")]
PolicyPath = Annotated[Path, typer.Option("--policy", metavar="P", help="checks and margins")]
AsJson = Annotated[bool, typer.Option("--json", help="print the result as JSON on stdout")]


def console() -> Console:
    from rich.console import Console

    return Console(stderr=True)


def bars() -> Bars:
    from checkweigh.cli.bars import Bars

    return Bars(console())


def say(text: str) -> None:
    """A line on stderr, harmless whatever stands in it. One that cannot be written must not change the exit code."""
    if sys.stderr is not None:
        with suppress(OSError, ValueError):
            print(_harmless(text), file=sys.stderr, flush=True)


def _harmless(text: str) -> str:
    try:
        from checkweigh.report.safe import visible
    except ImportError:  # a broken installation: it is what has to be told
        return ascii(text)[1:-1].replace("\\n", "\n")
    return visible(text)
