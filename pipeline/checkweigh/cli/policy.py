"""``checkweigh policy``: what a change of a policy lets through."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from checkweigh.cli.common import AsJson, app, say
from checkweigh.errors import ExitCode

policies = typer.Typer(help="Policies: what a change of one lets through.", no_args_is_help=True)
app.add_typer(policies, name="policy")


@policies.command("diff")
def policy_diff(
    old: Annotated[Path, typer.Argument(metavar="OLD", help="the policy as it was")],
    new: Annotated[Path, typer.Argument(metavar="NEW", help="the policy as it would be")],
    as_json: AsJson = False,
) -> None:
    """List everything that got looser. Exit 1 unless each carries a because that is newer than the change."""
    import json
    from dataclasses import asdict

    from checkweigh.decision.policy_diff import loosenings
    from checkweigh.sources.documents import read_policy

    found = loosenings(read_policy(old), read_policy(new))
    if as_json:
        print(json.dumps([asdict(line) for line in found], indent=2))
    for line in found:
        reason = "with a new reason" if line.excused else "WITHOUT a new reason (because)"
        say(f"looser: {line.path}: {line.old} -> {line.new}, {reason}")
    if not found:
        say("nothing got looser")
    raise typer.Exit(ExitCode.PASS if all(line.excused for line in found) else ExitCode.BLOCK)
