"""Something to be sent -> an outbox -> its receiver, now or later. Nothing here changes a decision or an exit code.

``mlflow`` and ``webhook`` describe the two destinations; keeping, sending and sending again is the same for both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Generic

from checkweigh.errors import CheckweighError
from checkweigh.progress import Say
from checkweigh.sinks import outbox
from checkweigh.sinks.mlflow_target import Target
from checkweigh.sinks.outbox import P
from checkweigh.sinks.sender_process import Delivery


@dataclass(frozen=True, slots=True, kw_only=True)
class Destination(Generic[P]):
    """A kind of receiver, with the outbox before it.

    ``command`` begins every message and is the command whose ``sync`` sends what waits; ``names`` is what a parcel's
    digest is called in JSON, ``later`` what is said of one that waits. ``send`` makes one attempt.
    """

    command: str
    names: str
    later: str
    parcel: type[P]
    root: Callable[[], Path]
    send: Callable[[Path, Target], Delivery]
    announced: bool = False  # whether people are told before it is sent: it takes seconds


def deliver(destination: Destination[P], target: Target, keep: Callable[[], Path], say: Say) -> None:
    """Put a parcel into its outbox with ``keep`` and try to send it. Only ever speaks; never raises.

    Even Ctrl-C: the decision stands, and its exit code with it.
    """
    kept = False
    try:
        folder = keep()
        kept = True
        if destination.announced:
            say(f"{destination.command}: sending to {target.shown}")
        delivery = destination.send(folder, target)
    except (Exception, KeyboardInterrupt) as error:
        # Whatever is wrong with the receiver, the disk or this code: the gate has decided, and its exit code says so.
        text = target.scrub(f"{type(error).__name__}: {error}".rstrip(": "))
        delivery = Delivery(sent=False, reachable=False, text=text)
    if delivery.sent:
        say(f"{destination.command}: {delivery.text}")
    else:
        later = destination.later if kept else "it could not be kept for later"
        say(f"{destination.command}: WARNING: not sent ({delivery.text}); {later}")


def send_waiting(
    destination: Destination[P], choose: Callable[[P], Target | str], scrub: Callable[[str], str], say: Say
) -> Mapping[str, list[dict[str, str]]]:
    """Send what waits in an outbox, oldest first: what was sent and what still waits, by digest.

    ``choose`` gives a parcel's target, or says why it has to wait; ``scrub`` takes secrets out of an error's text. A
    target that does not answer is tried once.
    """
    sent: list[dict[str, str]] = []
    left: list[dict[str, str]] = []
    silent: set[str] = set()
    for folder in outbox.waiting_folders(destination.root()):
        delivery = _retry(destination, folder, choose, scrub, silent)
        (sent if delivery.sent else left).append(
            {destination.names: f"sha256:{folder.name}", "text": delivery.text}
        )
        came = "sent to" if delivery.sent else "still waits:"
        say(f"{destination.command}: {folder.name[:12]} {came} {delivery.text}")
    if not sent and not left:
        say(f"{destination.command}: nothing waits")
    return {"sent": sent, "waiting": left}


def _retry(
    destination: Destination[P],
    folder: Path,
    choose: Callable[[P], Target | str],
    scrub: Callable[[str], str],
    silent: set[str],
) -> Delivery:
    """One more attempt, unless its target is among the ``silent``; a target that does not answer joins them."""
    try:
        target = choose(outbox.read_parcel(destination.parcel, folder))
    except CheckweighError as error:
        return Delivery(sent=False, reachable=True, text=scrub(str(error)))
    if isinstance(target, str):
        return Delivery(sent=False, reachable=True, text=target)
    if target.shown in silent:
        return Delivery(sent=False, reachable=False, text=f"{target.shown} does not answer")
    delivery = destination.send(folder, target)
    if not delivery.reachable:
        silent.add(target.shown)
    return delivery
