"""Promotion against servers that are silent, speak junk, or say that nothing exists: exit 4, in time, and no pass."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread

import pytest
from tests.unit.attest.conftest import Door

from checkweigh.cli import main
from checkweigh.errors import BadInput
from checkweigh.records.decision import Verdict
from checkweigh.sinks.mlflow_target import Target
from checkweigh.sinks.sender_process import LIMIT
from checkweigh.usecases.release.registry import registered_baseline, registry_target

ABSENT = b'{"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "not found"}'


@contextmanager
def speaking(body: bytes | None, status: int = 200) -> Iterator[str]:
    """A server that gives everybody one answer; None: none at all."""
    over = Event()

    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if body is None:
                over.wait(60)
                self.close_connection = True
                return
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = do_PATCH = do_DELETE = _answer

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        over.set()
        server.shutdown()
        thread.join()
        server.server_close()


def promote(door: Door, uri: str, *more: str) -> int:
    return main(
        ["promote", str(door.out), "--policy", str(door.policy), "--model", "m", "--mlflow", uri, *more]
    )


@pytest.mark.parametrize(
    ("body", "status"), [(b"<html>sign in</html>", 200), (b"", 200), (b'{"a": [', 200), (ABSENT, 404), (b"{}", 500)]
)  # fmt: skip
def test_a_server_of_another_kind(
    door: Door, body: bytes, status: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(LIMIT, "40")
    with speaking(body, status) as uri:
        assert promote(door, uri, "--first") == 4
        assert uri in capsys.readouterr().err


def test_a_server_that_never_answers(
    door: Door, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(LIMIT, "3")
    with speaking(None) as uri:
        started = time.monotonic()
        assert promote(door, uri) == 4
        assert time.monotonic() - started < 20
    assert "does not answer" in capsys.readouterr().err


@pytest.mark.parametrize("verdict", [Verdict.BLOCK, Verdict.INCONCLUSIVE])
def test_what_is_no_pass_is_refused_before_a_server_is_asked(
    door: Door, verdict: Verdict, capsys: pytest.CaptureFixture[str]
) -> None:
    door.decide(verdict)
    assert promote(door, "http://127.0.0.1:1", "--key", str(door.public)) == 1
    said = capsys.readouterr().err
    assert said.count("refused: verdict") == 2, "the decision's, and what was signed"


def test_a_signature_of_another_policy_is_listed_with_the_rest(
    door: Door, capsys: pytest.CaptureFixture[str]
) -> None:
    door.policy.write_text(door.policy.read_text().replace("name: release", "name: other"))
    door.attestation.unlink()
    assert promote(door, "http://127.0.0.1:1", "--key", str(door.public)) == 1
    said = capsys.readouterr().err
    assert "refused: policy" in said
    assert "refused: attestation" in said


@pytest.mark.parametrize("alias", ["v1", "latest", "previous", "Champion", "", "a b"])
def test_an_alias_that_is_none(alias: str) -> None:
    with pytest.raises(BadInput, match="--alias"):
        registry_target(Target("http://host"), "m", alias)


def test_a_registry_must_be_named() -> None:
    with pytest.raises(BadInput, match="--mlflow"):
        registry_target(None, "m", "champion")
    with pytest.raises(BadInput, match="--mlflow"):
        registered_baseline(Path("models:/m@champion"), None)
