"""Webhooks: told of blocks and waivers, later if not now, never of secrets, and nobody's verdict."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread
from typing import Any

import pytest
from tests.mlflow_server import free_port
from tests.unit.report import sample
from tests.unit.usecases.gate_bench import PERPLEXITY, GateBench

from checkweigh.cli import main
from checkweigh.records.decision import Verdict
from checkweigh.sinks.webhook_payload import (
    WaiverNotice,
    WebhookTarget,
    build_notice,
    notices_root,
    webhook_target,
)
from checkweigh.usecases.deliver import webhook
from checkweigh.usecases.deliver.webhook import announce, sync

SECRET = "T0PSECRET/B4hunter2/xyzzy-99"
BLOCK = sample.decision(Verdict.BLOCK)


class Receiver:
    """What a webhook was sent, and what it answers."""

    def __init__(self) -> None:
        self.status = 200
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.hold: Event | None = None
        self.url = ""


@contextmanager
def receiving(port: int = 0) -> Iterator[Receiver]:
    receiver = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            receiver.paths.append(self.path)
            receiver.headers.append(dict(self.headers))
            receiver.bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            if receiver.hold is not None:
                receiver.hold.wait(10)
            self.send_response(receiver.status)
            if 300 <= receiver.status < 400:
                self.send_header("Location", f"{receiver.url.rpartition('/')[0]}/elsewhere")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    receiver.url = f"http://127.0.0.1:{server.server_address[1]}/hooks/{SECRET}?sign=alsoS3cret"
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield receiver
    finally:
        if receiver.hold is not None:
            receiver.hold.set()
        server.shutdown()
        server.server_close()
        thread.join(5)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


def assert_no_secret(text: str) -> None:
    for part in (SECRET, *SECRET.split("/"), "alsoS3cret"):
        assert part not in text


def kept() -> str:
    """Everything in the outbox, as text."""
    return "".join(path.read_text() for path in notices_root().rglob("*") if path.is_file())


def test_a_block_is_told_and_a_pass_is_not(
    bench: GateBench, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.policy(PERPLEXITY)
    monkeypatch.setenv("CHECKWEIGH_WEBHOOK", receiver.url)
    assert bench.gate() == 0
    assert receiver.bodies == []
    assert bench.gate({"bias_nats": 0.2}) == 1
    (body,) = receiver.bodies
    decision = bench.decision
    assert (body["schema"], body["event"], body["verdict"]) == ("checkweigh/notice@1", "block", "block")
    assert body["candidate"]["pins"] == decision.candidate.pins
    assert body["decision"] == decision.record_digest()
    assert "perplexity" in body["reasons"][0]
    assert receiver.headers[0]["Idempotency-Key"] == body["id"]
    assert "notify: http://127.0.0.1:" in bench.stderr
    assert_no_secret(bench.stdout + bench.stderr)
    assert_no_secret("".join(p.read_text("utf-8", "replace") for p in bench.out.rglob("*") if p.is_file()))
    assert list(notices_root().glob("[!.]*")) == []


def test_a_receiver_that_is_down_changes_nothing_and_is_told_later(
    bench: GateBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.policy(PERPLEXITY)
    port = free_port()
    url = f"http://127.0.0.1:{port}/hooks/{SECRET}"
    assert bench.gate({"bias_nats": 0.2}, more=["--notify", url]) == 1
    assert "notify: WARNING: not sent (no answer" in bench.stderr
    assert "it waits: checkweigh notify sync" in bench.stderr
    assert_no_secret(bench.stderr + kept())
    assert bench.run("notify", "sync") == 2
    assert bench.run("notify", "sync", "--notify", "http://127.0.0.1:1/x") == 4
    assert f"it is for http://127.0.0.1:{port}" in bench.stderr
    assert bench.run("notify", "sync", "--notify", url) == 4
    with receiving(port) as receiver:
        monkeypatch.setenv("CHECKWEIGH_WEBHOOK", receiver.url)
        assert bench.run("notify", "sync", "--json") == 0
        assert len(json.loads(bench.stdout)["sent"]) == len(receiver.bodies) == 1
        assert bench.run("notify", "sync") == 0
    assert "nothing waits" in bench.stderr
    assert_no_secret(bench.stderr)


@pytest.mark.usefixtures("checkweigh_home")
@pytest.mark.parametrize(
    ("status", "message"), [(302, "it answered 302"), (404, "it answered 404"), (503, "it answered 503")]
)
def test_refusals_wait_and_redirects_are_not_followed(receiver: Receiver, status: int, message: str) -> None:
    receiver.status = status
    lines: list[str] = []
    announce(BLOCK, WebhookTarget(receiver.url), lines.append)
    assert message in lines[0]
    assert_no_secret(lines[0] + kept())
    assert not any("elsewhere" in path for path in receiver.paths)
    receiver.status = 204
    assert sync(WebhookTarget(receiver.url), lines.append)["waiting"] == []
    assert receiver.bodies[0] == receiver.bodies[1], "the same notice, with the same id"


@pytest.mark.usefixtures("checkweigh_home")
def test_a_receiver_that_never_answers_is_left(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    receiver.hold = Event()
    monkeypatch.setattr(webhook, "SECONDS", 2)
    lines: list[str] = []
    started = time.monotonic()
    announce(BLOCK, WebhookTarget(receiver.url), lines.append)
    assert time.monotonic() - started < 6
    assert "not sent (" in lines[0]
    assert len(list(notices_root().glob("[!.]*"))) == 1


@pytest.mark.usefixtures("checkweigh_home")
def test_a_waiver_is_told_with_its_owner_and_reason(receiver: Receiver) -> None:
    lines: list[str] = []
    waiver = WaiverNotice(owner="a\x1b[31m owner", reason="outage\n" * 200, expires="2026-12-01T00:00:00Z")
    announce(BLOCK, WebhookTarget(receiver.url), lines.append, waiver)
    announce(sample.decision(Verdict.INCONCLUSIVE), WebhookTarget(receiver.url), lines.append, waiver)
    first, second = receiver.bodies
    assert (first["event"], first["verdict"], second["verdict"]) == ("waiver", "block", "inconclusive")
    assert first["waiver"]["owner"] == "a⟨ESC⟩[31m owner"
    assert len(first["waiver"]["reason"]) < 600
    assert len({first["id"], second["id"], build_notice(BLOCK).id}) == 3


def test_hostile_reasons_stay_data(checkweigh_home: object, receiver: Receiver) -> None:
    announce(sample.decision(Verdict.BLOCK, hostile=True), WebhookTarget(receiver.url), [].append)
    (body,) = receiver.bodies
    text = json.dumps(body, ensure_ascii=False)
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "very long" not in text, "no reply of a model is in it"


def test_an_outbox_that_cannot_be_written_changes_nothing(bench: GateBench, receiver: Receiver) -> None:
    bench.policy(PERPLEXITY)
    bench.home.mkdir()
    (bench.home / "notices").write_text("in the way")
    assert bench.gate({"bias_nats": 0.2}, more=["--notify", receiver.url]) == 1
    assert "it could not be kept for later" in bench.stderr


def test_an_address_that_is_none_is_bad_input_before_anything_is_measured(bench: GateBench) -> None:
    assert bench.gate(more=["--notify", f"ftp://host/{SECRET}"]) == 2
    assert "--notify: expected an address such as https://HOST/PATH" in bench.stderr
    assert_no_secret(bench.stderr)
    assert bench.records() == []
    assert webhook_target("") is None
    assert main(["notify"]) == 2


def test_only_the_host_is_shown() -> None:
    target = WebhookTarget(f"https://user:p4ss@hooks.example:8443/{SECRET}?key=v4lue#fragment")
    assert target.shown == "https://hooks.example:8443"
    assert target.secret
    message = target.scrub(f"could not POST {target.uri}: /{SECRET} user:p4ss@hooks.example v4lue")
    assert_no_secret(message)
    assert "p4ss" not in message
    assert "v4lue" not in message


def test_what_nobody_verified_comes_first() -> None:
    attached = sample.arm("canary", unverified=sample.UNVERIFIED)
    notice = build_notice(BLOCK.model_copy(update={"candidate": attached}))
    assert notice.reasons[0].startswith("unverified: weights, configuration, dtype of the candidate, canary")
    assert notice.reasons[1:] == build_notice(BLOCK).reasons
