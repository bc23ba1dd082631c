"""``checkweigh evalset``: sets of items, yours and the shipped ones."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from checkweigh.cli.common import AsJson, app, bars, console

evalset = typer.Typer(help="Evaluation sets: yours and the shipped ones.", no_args_is_help=True)
app.add_typer(evalset, name="evalset")


@evalset.command("check")
def evalset_check(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="folder of a set, with its card.yaml")],
    baseline: Annotated[
        Path | None, typer.Option(metavar="MANIFEST", help="its stored scores tell floor and ceiling")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List everything that is wrong or doubtful about a set, and its digest. Exit 0, or 2 with errors."""
    import json

    from checkweigh.usecases.evalset_check import check_evalset

    with bars() as bar:
        report = check_evalset(folder, baseline, bar.update)
    if as_json:
        print(json.dumps(report.as_json(), indent=2))
    else:
        console().print(report.text(), markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(report.exit_code)
