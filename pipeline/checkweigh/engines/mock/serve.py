"""Running the mock: in this process's own thread, in a child process, or for the command line."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import uvicorn

from checkweigh.engines.http.client import Endpoint
from checkweigh.engines.mock.app import MockApp
from checkweigh.engines.mock.mock_knobs import MockKnobs
from checkweigh.errors import EngineDied

HOST = "127.0.0.1"
_START_S = 20.0


def listen(port: int = 0, host: str = HOST) -> socket.socket:
    """A listening socket; port 0 takes a free one. EngineDied when it cannot be had."""
    # asyncio turns Nagle's algorithm off (44 ms an answer) only where the protocol is named.
    bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
        bound.listen(2048)
    except OSError as error:
        bound.close()
        raise EngineDied(f"port {port} of {host} cannot be had ({error.strerror})") from error
    return bound


def server(app: object) -> uvicorn.Server:
    """A quiet uvicorn for one ASGI application, without lifespan."""
    config = uvicorn.Config(
        app,  # type: ignore[arg-type]
        log_config=None, access_log=False, lifespan="off", proxy_headers=False, server_header=False,
        date_header=False, timeout_keep_alive=75, timeout_graceful_shutdown=1,
    )  # fmt: skip
    return uvicorn.Server(config)


async def serve(knobs: MockKnobs, *, port: int, key: str | None) -> None:
    """Serve until interrupted; says on stdout, as one line of JSON, where."""
    with listen(port) as bound:
        app = MockApp(knobs, key=key, die=os._exit)
        where = {
            "url": f"http://{HOST}:{bound.getsockname()[1]}/v1",
            "model": knobs.model,
            "pid": os.getpid(),
        }
        print(json.dumps(where), flush=True)
        await server(app).serve(sockets=[bound])


@contextmanager
def in_thread(
    knobs: MockKnobs | None = None, *, key: str | None = None
) -> Iterator[tuple[Endpoint, MockApp]]:
    """A mock in a thread of this process, for tests. A crash closes its socket and every connection."""
    knobs = knobs or MockKnobs()
    bound = listen()
    box: list[tuple[MockApp, uvicorn.Server]] = []
    ready = threading.Event()

    async def main() -> None:
        http_server = server(None)
        app = MockApp(knobs, key=key, die=lambda code: _drop(http_server, bound))
        http_server.config.app = app
        http_server.config.load()
        box.append((app, http_server))
        ready.set()
        await http_server.serve(sockets=[bound])

    thread = threading.Thread(target=lambda: asyncio.run(main()), daemon=True)
    thread.start()
    try:
        if not ready.wait(_START_S):
            raise EngineDied("the mock engine did not start")
        url = f"http://{HOST}:{bound.getsockname()[1]}/v1"
        yield Endpoint(url=url, model=knobs.model, key=key), box[0][0]
    finally:
        if box:
            box[0][1].should_exit = box[0][1].force_exit = True
        thread.join(_START_S)
        bound.close()


def _drop(http_server: uvicorn.Server, bound: socket.socket) -> None:
    bound.close()
    for connection in list(http_server.server_state.connections):
        connection.transport.abort()
    http_server.should_exit = http_server.force_exit = True
    raise asyncio.CancelledError


@dataclass(frozen=True, slots=True)
class MockProcess:
    """A running child."""

    endpoint: Endpoint
    process: subprocess.Popen[str]

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to it."""
        self.process.send_signal(number)


def command(knobs: MockKnobs, *, port: int = 0) -> list[str]:
    """The command line that starts a mock with these knobs; its key comes from CHECKWEIGH_MOCK_KEY."""
    given = knobs.model_dump(exclude_defaults=True)
    sets = [word for name, value in given.items() for word in ("--set", f"{name}={json.dumps(value)}")]
    return [sys.executable, "-m", "checkweigh", "mock-engine", "--port", str(port), *sets]


@contextmanager
def in_process(knobs: MockKnobs | None = None, *, key: str | None = None) -> Iterator[MockProcess]:
    """A mock in a process of its own, killed when the block ends."""
    knobs = knobs or MockKnobs()
    environment = dict(os.environ) | ({} if key is None else {"CHECKWEIGH_MOCK_KEY": key})
    environment["PYTHONPATH"] = str(Path(__file__).resolve().parents[3])
    child = subprocess.Popen(
        command(knobs), stdout=subprocess.PIPE, text=True, env=environment, start_new_session=True
    )
    assert child.stdout is not None
    try:
        line = child.stdout.readline()
        if not line:
            raise EngineDied(f"the mock engine ended with code {child.wait(_START_S)} before it served")
        yield MockProcess(Endpoint(url=json.loads(line)["url"], model=knobs.model, key=key), child)
    finally:
        with suppress(ProcessLookupError):
            child.send_signal(signal.SIGCONT)
            child.kill()
        child.wait()
        child.stdout.close()
