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
from checkweigh.sinks.mlflow_target import Target
from checkweigh.sinks.sender_main import UNREACHABLE

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


@dataclass(frozen=True, slots=True, kw_only=True)
class SenderResult:
    """How a sender ended: its exit code (None: it was ended at the limit), its stdout, and why in words."""

    code: int | None
    out: bytes = b""
    why: str = ""

    @property
    def reachable(self) -> bool:
        """Whether the receiver answered at all."""
        return self.code not in (None, UNREACHABLE)


def mlflow_limit_s() -> float:
    """Seconds that one attempt to reach MLflow may take."""
    with suppress(ValueError):
        return max(1.0, float(os.environ.get(LIMIT, SECONDS)))
    return SECONDS


def run_delivery(
    module: str, folder: Path, target: Target, limit_s: float, describe: Callable[[bytes], str]
) -> Delivery:
    """Let a sender deliver one folder of an outbox. ``describe`` makes words of its stdout when all of it arrived."""
    result = run_sender(module, target, {"folder": str(folder)}, limit_s)
    sent = result.code == 0
    return Delivery(sent=sent, reachable=result.reachable, text=describe(result.out) if sent else result.why)


def run_sender(module: str, target: Target, request: Mapping[str, object], limit_s: float) -> SenderResult:
    """Run a sender (see ``sender_main``) with a request, the address and the limit added; it is ended at the limit."""
    ours = {"PYTHONPATH": str(Path(checkweigh.__file__).resolve().parents[1]), "PYTHONWARNINGS": "ignore"}
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", module],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env=QUICK | dict(os.environ) | ours, start_new_session=True,
    )  # fmt: skip
    document = json.dumps({"uri": target.uri, "seconds": limit_s, **request})
    try:
        out, err = process.communicate(document.encode(), timeout=limit_s)
    except subprocess.TimeoutExpired:
        return SenderResult(code=None, why=f"no answer that could be used in {limit_s:g} s")
    finally:
        _end(process)
    if process.returncode == 0:
        return SenderResult(code=0, out=out)
    lines = err.decode("utf-8", "replace").strip().splitlines() or ["it ended without a word"]
    return SenderResult(code=process.returncode, out=out, why=target.scrub(lines[-1]))


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
