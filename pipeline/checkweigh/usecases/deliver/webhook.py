"""A block, or a waiver that was used -> the outbox -> a webhook. Nothing here changes a decision or an exit code."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from checkweigh.errors import BadInput, CheckweighError, ExitCode
from checkweigh.progress import Say
from checkweigh.records.decision import Decision
from checkweigh.sinks import outbox
from checkweigh.sinks.sender_process import Delivery, run_sender
from checkweigh.sinks.webhook_payload import (
    Hook,
    Notice,
    Waiting,
    WaiverNotice,
    notice,
    notices_root,
)

SECONDS = 15
LATER = "it waits: checkweigh notify sync"


def announce(decision: Decision, hook: Hook, say: Say, waiver: WaiverNotice | None = None) -> None:
    """Tell the webhook of a block, or of a waiver that was used; of nothing else. Only ever speaks; never raises."""
    if waiver is None and decision.exit_code is not ExitCode.BLOCK:
        return
    kept = False
    try:
        folder = _keep(notice(decision, waiver), hook)
        kept = True
        delivery = _deliver(folder, hook)
    except (Exception, KeyboardInterrupt) as error:  # whatever it is: the gate has decided
        said = hook.scrub(f"{type(error).__name__}: {error}".rstrip(": "))
        delivery = Delivery(sent=False, reachable=False, text=said)
    if delivery.sent:
        say(f"notify: {delivery.text}")
    else:
        say(
            f"notify: WARNING: not sent ({delivery.text}); {LATER if kept else 'it could not be kept for later'}"
        )


def sync(hook: Hook | None, say: Say) -> Mapping[str, list[dict[str, str]]]:
    """Send what waits for this hook's host; what was sent and what still waits. A host that is silent is asked once."""
    if hook is None:
        raise BadInput("notify sync: expected --notify URL or CHECKWEIGH_WEBHOOK: no address is ever kept")
    sent: list[dict[str, str]] = []
    left: list[dict[str, str]] = []
    silent = False
    for folder in outbox.waiting(notices_root()):
        delivery = _again(folder, hook, silent)
        silent = silent or not delivery.reachable
        (sent if delivery.sent else left).append({"notice": f"sha256:{folder.name}", "text": delivery.text})
        say(f"notify: {folder.name[:12]} {'sent to' if delivery.sent else 'still waits:'} {delivery.text}")
    if not sent and not left:
        say("notify: nothing waits")
    return {"sent": sent, "waiting": left}


def _again(folder: Path, hook: Hook, silent: bool) -> Delivery:
    try:
        waiting = outbox.read_as(Waiting, folder)
    except CheckweighError as error:
        return Delivery(sent=False, reachable=True, text=hook.scrub(str(error)))
    if waiting.destination != hook.shown:
        return Delivery(sent=False, reachable=True, text=f"it is for {waiting.destination}")
    if silent:
        return Delivery(sent=False, reachable=False, text=f"{hook.shown} does not answer")
    return _deliver(folder, hook)


def _keep(told: Notice, hook: Hook) -> Path:
    return outbox.put(Waiting(notice=told, destination=hook.shown, secret=hook.secret), {}, notices_root())


def _deliver(folder: Path, hook: Hook) -> Delivery:
    def told(out: bytes) -> str:
        status = json.loads(out)["status"] if out.strip() else "already there"
        return f"{hook.shown} ({status})"

    return run_sender("checkweigh.sinks.webhook", folder, hook, SECONDS, told)
