"""``init`` and ``doctor``: a first gate of your own, and what is missing on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from checkweigh.cli.common import AsJson, app, bars, console, say
from checkweigh.errors import ExitCode

Manifests = Annotated[
    list[Path] | None,
    typer.Argument(metavar="[MANIFEST]...", help="whose locks are looked at; default: manifests/*.yaml"),
]


@app.command()
def doctor(manifests: Manifests = None, as_json: AsJson = False) -> None:
    """Say what is missing on this machine. Exit 0, or 4 where a gate could not run."""
    import json

    from checkweigh.report.commands.show_doctor import findings
    from checkweigh.usecases.doctor import examine

    report = examine(tuple(manifests or sorted(Path("manifests").glob("*.yaml"))))
    if as_json:
        print(json.dumps(report.as_json(), indent=2))
    else:
        console().print(findings(report.findings), highlight=False)
    ready = report.exit_code == ExitCode.PASS
    say("a gate can run here" if ready else "a gate cannot run here: see what is missing")
    raise typer.Exit(report.exit_code)


@app.command()
def init(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="directory of safetensors, or OWNER/NAME[@COMMIT] of the hub"),
    ],
    into: Annotated[Path, typer.Option(metavar="DIR", help="where the files go")] = Path("."),
    name: Annotated[str | None, typer.Option(help="of the manifests; default: the model's own")] = None,
    as_json: AsJson = False,
) -> None:
    """Write two manifests, a policy, a small set and a workflow for a model, and pin both manifests."""
    import json

    from checkweigh.usecases.scaffold import scaffold

    with bars() as bar:
        created = scaffold(model, into, name, bar.update)
    if as_json:
        print(json.dumps(created.as_json(), indent=2))
    for line in created.lines():
        say(line)
