"""``checkweigh mlflow`` and ``checkweigh notify``: what could not be sent."""

from __future__ import annotations

from typing import Annotated

import typer

from checkweigh.cli.common import AsJson, app, say
from checkweigh.errors import ExitCode

later = typer.Typer(name="mlflow", help="What concerns MLflow.", no_args_is_help=True)
app.add_typer(later)


@later.callback()
def _mlflow() -> None:
    """What concerns MLflow: results that could not be sent."""


@later.command()
def sync(
    mlflow: Annotated[
        str | None, typer.Option(metavar="URI", help="send all of it here, not where it was meant to go")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Send what waits in the outbox. Exit 4 when something still waits."""
    import json

    from checkweigh.usecases.deliver.mlflow import sync as run

    deliveries = run(mlflow, say)
    if as_json:
        print(json.dumps(deliveries, indent=2))
    raise typer.Exit(ExitCode.BROKEN if deliveries["waiting"] else ExitCode.PASS)


notices = typer.Typer(name="notify", help="What concerns the webhook.", no_args_is_help=True)
app.add_typer(notices)


@notices.callback()
def _notify() -> None:
    """What concerns the webhook: notices that could not be sent."""


@notices.command("sync")
def notify_sync(
    notify: Annotated[
        str | None, typer.Option(metavar="URL", envvar="CHECKWEIGH_WEBHOOK", help="the webhook's address")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Send the notices that wait for this webhook. Exit 4 when something still waits."""
    import json

    from checkweigh.sinks.webhook_payload import webhook_target
    from checkweigh.usecases.deliver.webhook import sync as run

    deliveries = run(webhook_target(notify), say)
    if as_json:
        print(json.dumps(deliveries, indent=2))
    raise typer.Exit(ExitCode.BROKEN if deliveries["waiting"] else ExitCode.PASS)
