"""Before a gate: what a policy's sets can settle, and how it would decide."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from checkweigh.cli.common import AsJson, PolicyPath, app, bars, console, say


@app.command()
def plan(
    policy: PolicyPath = Path("gates/default.yaml"),
    baseline: Annotated[
        Path | None, typer.Option(metavar="MANIFEST", help="its stored measurements tell noise and time")
    ] = None,
    candidate: Annotated[Path | None, typer.Option(metavar="MANIFEST", help="likewise")] = None,
    as_json: AsJson = False,
) -> None:
    """Show items needed, the smallest margin the items hold, and the expected cost. Exit 3 when it cannot settle."""
    from checkweigh.errors import ExitCode
    from checkweigh.report.commands.show_plan import table
    from checkweigh.usecases.plan import plan as run

    with bars() as bar:
        sizing = run(policy, baseline, candidate, bar.update)
    if as_json:
        print(sizing.model_dump_json(indent=2, by_alias=True))
    console().print(table(sizing), highlight=False)
    raise typer.Exit(ExitCode.INCONCLUSIVE if sizing.problems else ExitCode.PASS)


@app.command()
def simulate(
    policy: PolicyPath = Path("gates/default.yaml"),
    runs: Annotated[
        int, typer.Option(metavar="N", min=50, max=100_000, help="simulated gates of each kind")
    ] = 400,
    seed: Annotated[int, typer.Option(min=0, help="of the draws")] = 0,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="for a page with a plot, simulation.html")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Draw candidates through the decision code of a gate: how often each kind ships, blocks, stays open."""
    from checkweigh.report.commands.show_simulation import table, write
    from checkweigh.usecases.plan import characteristics

    with bars() as bar:
        simulation = characteristics(policy, runs, seed, bar.update)
    page = write(simulation, out) if out is not None else None
    if as_json:
        print(simulation.model_dump_json(indent=2, by_alias=True))
    console().print(table(simulation), highlight=False)
    if page is not None:
        say(f"report: {page}")
