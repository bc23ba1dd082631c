"""A finished gate -> the outbox -> MLflow. Nothing that goes wrong here changes a decision or an exit code."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from checkweigh import report
from checkweigh.errors import BadInput
from checkweigh.progress import Say
from checkweigh.records.manifest import Lock
from checkweigh.report.html.figures import figures
from checkweigh.sinks import outbox
from checkweigh.sinks.items_table import TABLE, items_table
from checkweigh.sinks.mlflow_content import FinishedGate, build_bundle, experiment_name
from checkweigh.sinks.mlflow_target import INSTALL, OFF, VARIABLE, Target, installed, resolve_target, scrub
from checkweigh.sinks.outbox import Bundle
from checkweigh.sinks.sender_process import Delivery, mlflow_limit_s, run_delivery
from checkweigh.usecases.deliver.delivery import Destination, deliver, send_waiting

SIGNED = ("attestation.json", "weights.sig")  # if there are any
MANIFEST, LOCK = "manifest.yaml", "manifest.lock.json"  # of an arm: JSON is YAML
REPORTS = ("report.html", "summary.md", "junit.xml")


def publish(finished: FinishedGate, out: Path, target: Target, say: Say) -> None:
    """Keep a finished gate in the outbox and try to send it to MLflow. Only ever speaks; never raises."""
    deliver(MLFLOW, target, lambda: keep(finished, out, target, outbox.outbox_root()), say)


def keep(finished: FinishedGate, out: Path, target: Target, root: Path) -> Path:
    """Put a finished gate and all its files into the outbox; the folder."""
    files = {
        report.DECISION: report.decision_json(finished.decision).encode(),
        TABLE: items_table(finished.pairs),
    }
    files |= {name: (out / name).read_bytes() for name in REPORTS}
    files |= {
        f"plots/{name}.svg": text.encode()
        for name, text in figures(finished.decision, finished.pairs).items()
    }
    files |= {name: (out / name).read_bytes() for name in SIGNED if (out / name).is_file()}
    for role, arm in finished.arms.items():
        lock = Lock(name=arm.manifest.name, pins=arm.pins)
        files[f"arms/{role}/{MANIFEST}"] = arm.manifest.model_dump_json(by_alias=True, indent=1).encode()
        files[f"arms/{role}/{LOCK}"] = lock.model_dump_json(by_alias=True, indent=1).encode()
    experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME") or experiment_name(
        finished.arms["baseline"].manifest
    )
    return outbox.put(build_bundle(finished, target, experiment, sorted(files)), files, root)


def sync(option: str | None, say: Say) -> Mapping[str, list[dict[str, str]]]:
    """Send what waits: where it was meant to go, or all of it to ``option``. What was sent and what still waits.

    BadInput when MLflow is not installed or ``option`` is no address. An MLflow that does not answer is tried once.
    """
    if not installed():
        raise BadInput(f"mlflow sync: MLflow is not installed here; {INSTALL}")
    if option == OFF:
        raise BadInput("mlflow sync --mlflow: expected an address, found 'none'")
    variable = os.environ.get(VARIABLE)
    target = resolve_target(
        option or (variable if variable != OFF else None)
    )  # knows what an address had to leave out

    def choose(waiting: Bundle) -> Target | str:
        if target is not None and (option is not None or waiting.destination == target.shown):
            return target
        if waiting.secret:
            return f"{waiting.destination} needs what was left out of its address; name it with --mlflow URI"
        return Target(waiting.destination)

    return send_waiting(MLFLOW, choose, scrub, say)


def send(folder: Path, target: Target) -> Delivery:
    """Send one folder of the outbox to MLflow, for as long as the limit allows."""
    return run_delivery(
        "checkweigh.sinks.mlflow", folder, target, mlflow_limit_s(), lambda out: _where(out, target)
    )


def _where(out: bytes, target: Target) -> str:
    """Where the run can be looked at."""
    sent = json.loads(out)
    if not sent:
        return f"{target.shown} (already there)"
    if target.shown.startswith("http"):
        return f"{target.shown.rstrip('/')}/#/experiments/{sent['experiment']}/runs/{sent['run']}"
    return f"{target.shown} (run {sent['run']})"


MLFLOW = Destination(
    command="mlflow", names="decision", later="it waits in the outbox: checkweigh mlflow sync",
    parcel=Bundle, root=outbox.outbox_root, send=send, announced=True,
)  # fmt: skip
