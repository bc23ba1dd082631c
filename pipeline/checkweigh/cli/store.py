"""``checkweigh store``: what was measured, and sweeping it."""

from __future__ import annotations

from typing import Annotated

import typer

from checkweigh.cli.common import AsJson, app, say
from checkweigh.errors import ExitCode

stores = typer.Typer(help="The measurement store: what it holds, and sweeping it.", no_args_is_help=True)
app.add_typer(stores, name="store")


@stores.command("ls")
def store_ls(as_json: AsJson = False) -> None:
    """List every measurement: what it is of, how far it came, what it takes."""
    import json

    from rich.console import Console

    from checkweigh.report.commands.show_store import listing
    from checkweigh.usecases.store_maintenance import list_entries, store_root

    listed = list_entries(store_root())
    if as_json:
        print(json.dumps([entry.as_json() for entry in listed], indent=2))
    else:
        Console().print(listing(listed), highlight=False)


@stores.command("verify")
def store_verify(as_json: AsJson = False) -> None:
    """Check every record against its digests. Exit 2 when one is damaged."""
    import json

    from checkweigh.usecases.store_maintenance import list_entries, store_root

    listed = list_entries(store_root())
    damaged = [entry for entry in listed if entry.state == "damaged"]
    if as_json:
        print(json.dumps([entry.as_json() for entry in damaged], indent=2))
    for entry in damaged:
        say(f"damaged: {entry.path}: {entry.problem}")
    old = [entry for entry in listed if entry.state == "unverified"]
    if old:
        say(f"{len(old)} {old[0].problem} (checkweigh store gc removes them)")
    say(f"{len(listed)} measurements, {len(damaged)} damaged")
    raise typer.Exit(ExitCode.BAD_INPUT if damaged else ExitCode.PASS)


@stores.command("gc")
def store_gc(
    older_than: Annotated[
        float | None, typer.Option(metavar="DAYS", min=0, help="also what was last changed before")
    ] = None,
    incomplete: Annotated[bool, typer.Option("--incomplete", help="also interrupted measurements")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="say it, do not do it")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove damaged records and leftovers; never what is being measured."""
    import json

    from checkweigh.decision.formatting import size
    from checkweigh.usecases.store_maintenance import store_root, sweep

    done = sweep(store_root(), older_than=older_than, incomplete=incomplete, dry_run=dry_run)
    if as_json:
        print(json.dumps([{"path": str(s.path), "bytes": s.bytes, "why": s.why} for s in done], indent=2))
    for swept in done:
        say(f"{'would remove' if dry_run else 'removed'} {swept.path} ({size(swept.bytes)}): {swept.why}")
    say(f"{len(done)} things, {size(sum(s.bytes for s in done))}")
