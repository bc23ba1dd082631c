"""A real MLflow server for tests, and a gateway before it that cuts lines, swallows requests and listens."""

from __future__ import annotations

import base64
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from threading import Lock, Thread
from typing import Any, ClassVar

import pytest
from tests.conftest import missing
from tests.waiting import InVain, until

from checkweigh.records.decision import Decision
from checkweigh.report import write_all
from checkweigh.report.worst_items import ItemPair
from checkweigh.sinks.mlflow_content import ArmEvidence, FinishedGate
from checkweigh.sinks.mlflow_target import Target
from checkweigh.sources.pin import Resolved
from checkweigh.usecases.deliver.mlflow import keep

START_S = 120


def free_port() -> int:
    """A port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Api:
    """What MLflow says over its own REST interface, without MLflow's client."""

    def __init__(self, url: str) -> None:
        self.url = url

    def get(self, method: str, /, **query: str) -> Any:
        """JSON of a GET."""
        return json.loads(self.raw(f"api/2.0/mlflow/{method}?{urllib.parse.urlencode(query)}"))

    def post(self, path: str, **body: Any) -> Any:
        """JSON of a POST."""
        return json.loads(self.raw(f"api/2.0/mlflow/{path}", json.dumps(body).encode()))

    def raw(self, path: str, data: bytes | None = None) -> bytes:
        """The bytes of an answer."""
        request = urllib.request.Request(f"{self.url}/{path}", data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=30) as answer:
            return bytes(answer.read())

    def runs(self, decision: str, role: str = "") -> list[dict[str, Any]]:
        """Runs of a decision in all experiments, found by their digest tags."""
        experiments = self.post("experiments/search", max_results=100).get("experiments", [])
        ids = [experiment["experiment_id"] for experiment in experiments]
        wanted = f"tags.`checkweigh.decision` = '{decision}'"
        wanted += f" and tags.`checkweigh.role` = '{role}'" if role else ""
        answer = self.post("runs/search", experiment_ids=ids, filter=wanted)
        return list(answer.get("runs", []))

    def traces(self, decision: str, experiment: str) -> list[dict[str, Any]]:
        """Traces of a decision: information only."""
        where = {"type": "MLFLOW_EXPERIMENT", "mlflow_experiment": {"experiment_id": experiment}}
        wanted = f"tags.`checkweigh.decision` = '{decision}'"
        body = json.dumps({"locations": [where], "filter": wanted, "max_results": 100}).encode()
        return list(json.loads(self.raw("api/3.0/mlflow/traces/search", body)).get("traces", []))

    def artifact(self, run: str, path: str) -> bytes:
        """An artifact's bytes, as the UI fetches them."""
        return self.raw(f"get-artifact?{urllib.parse.urlencode({'path': path, 'run_uuid': run})}")

    def artifacts(self, run: str, path: str = "") -> dict[str, int]:
        """Path -> size of a run's artifacts in one folder."""
        listing = self.get("artifacts/list", run_id=run, **({"path": path} if path else {}))
        return {f["path"]: int(f.get("file_size", 0)) for f in listing.get("files", [])}


def named(pairs: list[dict[str, Any]]) -> dict[str, Any]:
    """``[{key, value}]`` as a dictionary."""
    return {pair["key"]: pair["value"] for pair in pairs}


@contextmanager
def running(folder: Path) -> Iterator[Api]:
    """``mlflow server`` on a port of its own, with its database and artifacts below ``folder``."""
    if find_spec("mlflow") is None or find_spec("sqlalchemy") is None:
        missing("MLflow (the extra 'mlflow')")
    port = free_port()
    folder.mkdir(parents=True, exist_ok=True)
    command = [
        sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
        "--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", str(folder / "artifacts"),
    ]  # fmt: skip
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (folder / "server.log").open("wb") as log:
        server = subprocess.Popen(
            command, stdout=log, stderr=log, env=dict(os.environ) | quiet, cwd=folder, start_new_session=True
        )
    try:
        api = Api(f"http://127.0.0.1:{port}")
        with suppress(InVain):
            until(lambda: _healthy(api) or server.poll() is not None, START_S, look_s=0.1)
        if not _healthy(api):
            pytest.fail((folder / "server.log").read_text()[-3000:])
        yield api
    finally:
        with suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()
        shutil.rmtree(folder / "artifacts", ignore_errors=True)


def _healthy(api: Api) -> bool:
    try:
        return api.raw("health") == b"OK"
    except OSError:
        return False


class Gateway:
    """Stands before an MLflow server: lets ``left`` requests through (None: all), then hangs up.

    Requests whose path contains ``swallow`` are answered with ``{}`` and go nowhere. ``users`` are the logins seen.
    ``then`` is done once after a request whose path contains its key, before that is answered.
    """

    def __init__(self, upstream: str) -> None:
        self.left: int | None = None
        self.swallow: str | None = None
        self.then: dict[str, Callable[[], None]] = {}
        self.users: set[str] = set()
        self.seen = 0
        self._lock = Lock()
        _Forward.gateways[upstream] = self
        handler = type("Forward", (_Forward,), {"upstream": upstream})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def admits(self) -> bool:
        """Count a request; whether it may pass."""
        with self._lock:
            self.seen += 1
            if self.left is None:
                return True
            self.left -= 1
            return self.left >= 0


class _Forward(BaseHTTPRequestHandler):
    gateways: ClassVar[dict[str, Gateway]] = {}
    upstream = ""

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def _pass(self) -> None:
        gateway = self.gateways[self.upstream]
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if login := self.headers.get("Authorization", "").removeprefix("Basic "):
            gateway.users.add(base64.b64decode(login).decode())
        if not gateway.admits():
            self.close_connection = True
            return
        if gateway.swallow is not None and gateway.swallow in self.path:
            self._answer(200, {"Content-Type": "application/json"}, b"{}")
            return
        host = self.upstream.removeprefix("http://")
        link = http.client.HTTPConnection(host, timeout=60)
        kept = {
            k: v for k, v in self.headers.items() if k.lower() not in ("host", "connection", "authorization")
        }
        link.request(self.command, self.path, body, kept)
        answer = link.getresponse()
        data = answer.read()
        link.close()
        for part in [part for part in gateway.then if part in self.path]:
            gateway.then.pop(part)()
        self._answer(answer.status, {"Content-Type": answer.headers.get("Content-Type", "")}, data)

    def _answer(self, status: int, headers: Mapping[str, str], data: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _pass


@contextmanager
def gateway(upstream: str) -> Iterator[Gateway]:
    """A gateway while it is open."""
    forwarding = Gateway(upstream)
    thread = Thread(target=forwarding.server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield forwarding
    finally:
        forwarding.server.shutdown()
        thread.join()
        forwarding.server.server_close()


def kept(
    decision: Decision, pairs: list[ItemPair], arms: Mapping[str, Resolved], home: Path, target: Target
) -> Path:
    """A decision made up for a test, in the outbox below ``home`` as a gate would leave it; its folder."""
    write_all(decision, pairs, home / "out")
    evidence = {r: ArmEvidence(manifest=a.manifest, pins=a.pins, records={}) for r, a in arms.items()}
    finished = FinishedGate(decision=decision, arms=evidence, evalsets=(), pairs=pairs)
    return keep(finished, home / "out", target, home / "outbox")
