"""A block, or a waiver that was used -> the outbox -> a webhook. Nothing here changes a decision or an exit code."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from checkweigh.errors import BadInput, ExitCode
from checkweigh.progress import Say
from checkweigh.records.decision import Decision
from checkweigh.sinks import outbox
from checkweigh.sinks.mlflow_target import Target
from checkweigh.sinks.sender_process import Delivery, run_delivery
from checkweigh.sinks.webhook_payload import (
    Notice,
    WaitingNotice,
    WaiverNotice,
    WebhookTarget,
    build_notice,
    notices_root,
)
from checkweigh.usecases.deliver.delivery import Destination, deliver, send_waiting

SECONDS = 15


def announce(decision: Decision, target: WebhookTarget, say: Say, waiver: WaiverNotice | None = None) -> None:
    """Tell the webhook of a block, or of a waiver that was used; of nothing else. Only ever speaks; never raises."""
    if waiver is not None or decision.exit_code is ExitCode.BLOCK:
        deliver(WEBHOOK, target, lambda: _keep(build_notice(decision, waiver), target), say)


def sync(target: WebhookTarget | None, say: Say) -> Mapping[str, list[dict[str, str]]]:
    """Send what waits for this hook's host; what was sent and what still waits. A silent host is tried once."""
    if target is None:
        raise BadInput("notify sync: expected --notify URL or CHECKWEIGH_WEBHOOK: no address is ever kept")

    def choose(waiting: WaitingNotice) -> Target | str:
        return target if waiting.destination == target.shown else f"it is for {waiting.destination}"

    return send_waiting(WEBHOOK, choose, target.scrub, say)


def _keep(news: Notice, target: WebhookTarget) -> Path:
    return outbox.put(
        WaitingNotice(notice=news, destination=target.shown, secret=target.secret), {}, notices_root()
    )


def _send(folder: Path, target: Target) -> Delivery:
    def describe(out: bytes) -> str:
        return f"{target.shown} ({json.loads(out).get('status', 'already there')})"

    return run_delivery("checkweigh.sinks.webhook", folder, target, SECONDS, describe)


WEBHOOK = Destination(
    command="notify", names="notice", later="it waits: checkweigh notify sync",
    parcel=WaitingNotice, root=notices_root, send=_send,
)  # fmt: skip
