"""What every command shares: the application, common options, and output."""

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
