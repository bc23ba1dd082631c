"""MLflow's model registry: ``promote`` and ``rollback``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from checkweigh.cli.common import AcceptUnverified, AsJson, PolicyPath, StatedEvalset, app, say
from checkweigh.cli.gate import Mlflow

if TYPE_CHECKING:
    from checkweigh.usecases.release.registry import AliasMove

ModelName = Annotated[str, typer.Option("--model", metavar="NAME", help="the registered model")]
AliasName = Annotated[str, typer.Option("--alias", metavar="ALIAS", help="the alias that is served")]


@app.command()
def promote(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="directory of a gate that passed")],
    model: ModelName,
    alias: AliasName = "champion",
    policy: PolicyPath = Path("gates/default.yaml"),
    first: Annotated[
        bool, typer.Option("--first", help="the first release: there is no champion yet")
    ] = False,
    key: Annotated[
        Path | None,
        typer.Option(
            "--key", metavar="K", envvar="CHECKWEIGH_PUBLIC_KEY", help="require attestation.json signed by it"
        ),
    ] = None,
    evalset: StatedEvalset = None,
    accept_unverified: AcceptUnverified = False,
    mlflow: Mlflow = None,
    as_json: AsJson = False,
) -> None:
    """Register the candidate and move the alias, on a pass against the champion. Exit 0 moved, 1 refused, 4 broken."""
    from checkweigh.sinks.mlflow_target import resolve_target
    from checkweigh.usecases.release.policy_content import stated_evalsets
    from checkweigh.usecases.release.registry import PromotionRequest, registry_target
    from checkweigh.usecases.release.registry import promote as move

    request = PromotionRequest(
        run=run, policy=policy, where=registry_target(resolve_target(mlflow), model, alias), first=first, key=key,
        evalsets=stated_evalsets(evalset or [], [policy]), accept_unverified=accept_unverified,
    )  # fmt: skip
    _show_move(move(request), as_json)


@app.command()
def rollback(
    model: ModelName,
    alias: AliasName = "champion",
    reason: Annotated[str, typer.Option(help="kept with the version that is rolled back")] = "",
    mlflow: Mlflow = None,
    as_json: AsJson = False,
) -> None:
    """Move the alias back to the version before. Exit 0 moved, 1 there is none, 4 broken."""
    from checkweigh.sinks.mlflow_target import resolve_target
    from checkweigh.usecases.release.registry import registry_target
    from checkweigh.usecases.release.registry import rollback as move

    _show_move(move(registry_target(resolve_target(mlflow), model, alias), reason), as_json)


def _show_move(moved: AliasMove, as_json: bool) -> None:
    import json

    if as_json:
        print(json.dumps(moved.as_json(), indent=2))
    for refusal in moved.refusals:
        say(f"refused: {refusal}")
    if not moved.refusals:
        say(moved.text)
    raise typer.Exit(moved.exit_code)
