"""A finished gate -> the outbox -> MLflow. Nothing that goes wrong here changes a decision or an exit code."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from checkweigh import report
from checkweigh.errors import BadInput, CheckweighError
from checkweigh.progress import Say
from checkweigh.records.manifest import Lock
from checkweigh.report.html.figures import figures
from checkweigh.sinks import outbox
from checkweigh.sinks.items_table import TABLE, table
from checkweigh.sinks.mlflow_content import Finished, bundle, experiment_of
from checkweigh.sinks.mlflow_target import (
    INSTALL,
    OFF,
    VARIABLE,
    Target,
    installed,
    resolve,
    scrub,
)
from checkweigh.sinks.sender_process import Delivery, deliver

LATER = "it waits in the outbox: checkweigh mlflow sync"
SIGNED = ("attestation.json", "weights.sig")  # if there are any
MANIFEST, LOCK = "manifest.yaml", "manifest.lock.json"  # of an arm: JSON is YAML
REPORTS = ("report.html", "summary.md", "junit.xml")


def publish(found: Finished, out: Path, target: Target, say: Say) -> None:
    """Keep a finished gate in the outbox and try to send it. Only ever speaks; never raises.

    Even Ctrl-C: the decision stands, and its exit code with it.
    """
    kept = False
    try:
        folder = keep(found, out, target, outbox.outbox_root())
        kept = True
        say(f"mlflow: sending to {target.shown}")
        delivery = deliver(folder, target)
    except (Exception, KeyboardInterrupt) as error:
        # Whatever is wrong with MLflow, the disk or this code: the gate has decided, and says so with its exit code.
        said = scrub(f"{type(error).__name__}: {error}".rstrip(": "), target.uri)
        delivery = Delivery(sent=False, reachable=False, text=said)
    if delivery.sent:
        say(f"mlflow: {delivery.text}")
    else:
        say(
            f"mlflow: WARNING: not sent ({delivery.text}); {LATER if kept else 'it could not be kept for later'}"
        )


def keep(found: Finished, out: Path, target: Target, root: Path) -> Path:
    """Put a finished gate and all its files into the outbox; the folder."""
    files = {report.DECISION: report.decision_json(found.decision).encode(), TABLE: table(found.pairs)}
    files |= {name: (out / name).read_bytes() for name in REPORTS}
    files |= {
        f"plots/{name}.svg": text.encode() for name, text in figures(found.decision, found.pairs).items()
    }
    files |= {name: (out / name).read_bytes() for name in SIGNED if (out / name).is_file()}
    for role, arm in found.arms.items():
        lock = Lock(name=arm.manifest.name, pins=arm.pins)
        files[f"arms/{role}/{MANIFEST}"] = arm.manifest.model_dump_json(by_alias=True, indent=1).encode()
        files[f"arms/{role}/{LOCK}"] = lock.model_dump_json(by_alias=True, indent=1).encode()
    experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME") or experiment_of(found.arms["baseline"].manifest)
    return outbox.put(bundle(found, target, experiment, sorted(files)), files, root)


def sync(option: str | None, say: Say) -> Mapping[str, list[dict[str, str]]]:
    """Send what waits: where it was meant to go, or all of it to ``option``. What was sent and what still waits.

    BadInput when MLflow is not installed or ``option`` is no address. An MLflow that does not answer is asked once.
    """
    if not installed():
        raise BadInput(f"mlflow sync: MLflow is not installed here; {INSTALL}")
    if option == OFF:
        raise BadInput("mlflow sync --mlflow: expected an address, found 'none'")
    own = os.environ.get(VARIABLE)
    target = resolve(option or (own if own != OFF else None))  # knows what had to be left out of an address
    sent: list[dict[str, str]] = []
    left: list[dict[str, str]] = []
    silent: set[str] = set()
    for folder in outbox.waiting(outbox.outbox_root()):
        delivery = _again(folder, target, option is not None, silent)
        (sent if delivery.sent else left).append({"decision": f"sha256:{folder.name}", "text": delivery.text})
        say(f"mlflow: {folder.name[:12]} {'sent to' if delivery.sent else 'still waits:'} {delivery.text}")
    if not sent and not left:
        say("mlflow: nothing waits")
    return {"sent": sent, "waiting": left}


def _again(folder: Path, target: Target | None, named: bool, silent: set[str]) -> Delivery:
    """One more attempt, unless its MLflow did not answer a moment ago."""
    try:
        waiting = outbox.read(folder)
    except CheckweighError as error:
        return Delivery(sent=False, reachable=True, text=scrub(str(error)))
    if target is None or (not named and waiting.destination != target.shown):
        if waiting.secret:
            said = f"{waiting.destination} needs what was left out of its address; name it with --mlflow URI"
            return Delivery(sent=False, reachable=True, text=said)
        target = Target(waiting.destination)
    if target.shown in silent:
        return Delivery(sent=False, reachable=False, text=f"{target.shown} does not answer")
    delivery = deliver(folder, target)
    if not delivery.reachable:
        silent.add(target.shown)
    return delivery
