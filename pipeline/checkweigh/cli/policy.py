"""``checkweigh policy``: what a change of a policy lets through."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from checkweigh.cli.common import AsJson, app, say

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

    from checkweigh.usecases.policy_change import policy_change

    change = policy_change(old, new)
    if as_json:
        print(json.dumps(change.as_json(), indent=2))
    for line in change.lines():
        say(f"looser: {line}")
    if not change.loosenings:
        say("nothing got looser")
    raise typer.Exit(change.exit_code)
