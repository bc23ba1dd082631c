"""Runs a sender in a process of its own, under a hard limit: whatever the receiver does, a gate goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import checkweigh
from checkweigh.sinks.mlflow import UNREACHABLE
from checkweigh.sinks.mlflow_target import Target

SECONDS = 60
LIMIT = "CHECKWEIGH_MLFLOW_SECONDS"  # environment: another limit
# MLflow's own patience is minutes for every request; the user's settings come first.
QUICK = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_ARTIFACT_UPLOAD_DOWNLOAD_TIMEOUT": "30",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ASYNC_TRACE_LOGGING": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """What came of one attempt. ``text`` is for people: harmless, without secrets."""

    sent: bool
    reachable: bool
    text: str


def seconds() -> float:
    """The limit of one attempt."""
    with suppress(ValueError):
        return max(1.0, float(os.environ.get(LIMIT, SECONDS)))
    return SECONDS


def deliver(folder: Path, target: Target) -> Delivery:
    """Send one folder of the outbox to MLflow, for as long as the limit allows."""
    return run_sender("checkweigh.sinks.mlflow", folder, target, seconds(), lambda out: _where(out, target))


def run_sender(
    module: str, folder: Path, target: Target, limit: float, told: Callable[[bytes], str]
) -> Delivery:
    """Let a module send one folder: it reads ``{"uri", "folder", "seconds"}`` from stdin, and exits 0 when all of it
    has arrived, 75 when nobody answered. ``told`` makes words of what it wrote to stdout."""
    answer = ask(module, target, {"folder": str(folder)}, limit)
    text = told(answer.out) if answer.code == 0 else answer.why
    return Delivery(sent=answer.code == 0, reachable=answer.code not in (None, UNREACHABLE), text=text)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """How a module ended: its exit code (None: it was ended at the limit), its stdout, and why in words."""

    code: int | None
    out: bytes = b""
    why: str = ""


def ask(module: str, target: Target, request: Mapping[str, object], limit: float) -> Answer:
    """Run a module with a request on its stdin, the address and the limit added, in a process that is ended at it."""
    own = {"PYTHONPATH": str(Path(checkweigh.__file__).resolve().parents[1]), "PYTHONWARNINGS": "ignore"}
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", module],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env=QUICK | dict(os.environ) | own, start_new_session=True,
    )  # fmt: skip
    asked = json.dumps({"uri": target.uri, "seconds": limit, **request})
    try:
        out, err = process.communicate(asked.encode(), timeout=limit)
    except subprocess.TimeoutExpired:
        return Answer(code=None, why=f"no answer that could be used in {limit:g} s")
    finally:
        _end(process)
    lines = err.decode("utf-8", "replace").strip().splitlines() or ["it ended without a word"]
    return Answer(
        code=process.returncode, out=out, why="" if process.returncode == 0 else target.scrub(lines[-1])
    )


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill it and all it started, and reap it."""
    if process.poll() is None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            with suppress(OSError):
                pipe.close()


def _where(out: bytes, target: Target) -> str:
    """Where the run can be looked at."""
    sent = json.loads(out) if out.strip() else {}
    if not sent:
        return f"{target.shown} (already there)"
    if target.shown.startswith("http"):
        return f"{target.shown.rstrip('/')}/#/experiments/{sent['experiment']}/runs/{sent['run']}"
    return f"{target.shown} (run {sent['run']})"
