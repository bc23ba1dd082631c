"""The webhook of the guard's alarms, on a real receiver: once an alarm, and whatever it does no request is late."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from tests.faults.harness import Reply, Running, body, guarded, open_loop, policy

from checkweigh.engines.mock.mock_knobs import MockKnobs
from checkweigh.engines.mock.serve import in_thread

P99 = "monitor: {ttft_p99_s: 0.4, ratio: 1.5, webhook_env: ALERT_URL}"


class Receiver(ThreadingHTTPServer):
    """Keeps what it gets; answers ``status``, or nothing until ``release`` is set."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, status: int) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.status = status
        self.got: list[dict[str, Any]] = []
        self.release = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/alert"


class Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        self.server.got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        if not self.server.status:
            self.server.release.wait(30)
            return
        self.send_response(self.server.status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def receiver(status: int) -> Iterator[Receiver]:
    with Receiver(status) as found:
        thread = threading.Thread(target=found.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield found
        finally:
            found.release.set()
            found.shutdown()
            thread.join()


def ready(run: Running) -> None:
    run.ready()
    run.until(lambda: not any(arm.admission.paused for arm in run.guard.arms.values()))


def load(run: Running, rate: float, seconds: float) -> list[Reply]:
    return asyncio.run(open_loop(run.url, rate, seconds, lambda i: body(f"box {i}", 2, stream=True)))


def alarms(run: Running) -> list[str]:
    return [line for line in run.said if line.startswith("ALARM")]


def test_a_deviating_p99_is_posted_once_and_not_at_every_request() -> None:
    with (
        receiver(204) as hook,
        in_thread(MockKnobs()) as (endpoint, mock),
        guarded(endpoint, policy(P99), environment={"ALERT_URL": hook.url}) as run,
    ):
        ready(run)
        assert all(r.ok for r in load(run, 50, 1))
        assert hook.got == []
        mock.schedule.turn(MockKnobs(first_ms=900))
        load(run, 50, 2)
        run.until(lambda: len(hook.got) > 0)
        (told,) = hook.got
        assert told["text"].startswith("checkweigh: p99 deviates from the gated baseline: ")
        assert "took more than 0.6 s" in told["text"]
        load(run, 50, 1)
        assert len(alarms(run)) == 1
        assert hook.got == [told], "it still deviates, which was said"


def test_replies_in_one_piece_are_not_held_against_a_norm_of_first_tokens() -> None:
    with in_thread(MockKnobs(token_ms=30)) as (endpoint, _), guarded(endpoint, policy(P99)) as run:
        ready(run)
        replies = asyncio.run(open_loop(run.url, 20, 2, lambda i: body("box", 40, ignore_eos=True)))
        assert all(r.ok and r.total_s > 0.6 for r in replies)
        assert alarms(run) == []


def test_requests_that_wait_in_vain_are_the_slowest_of_all() -> None:
    limits = policy(P99 + "\ntimeouts: {first_s: 1.0}\nbreaker: {failures: 100000}")
    with in_thread(MockKnobs()) as (endpoint, mock), guarded(endpoint, limits) as run:
        ready(run)
        assert all(r.ok for r in load(run, 50, 1))
        mock.schedule.turn(MockKnobs(first_ms=5000))
        assert {r.status for r in load(run, 50, 1)} == {504}
        assert alarms(run), "no reply came late, because none came"


@pytest.mark.parametrize(("status", "tries"), [(500, 3), (0, 1)], ids=["answers 500", "hangs"])
def test_a_broken_receiver_delays_no_request_and_no_stop(status: int, tries: int) -> None:
    with (
        receiver(status) as hook,
        in_thread(MockKnobs(first_ms=900)) as (endpoint, _),
        guarded(endpoint, policy(P99), environment={"ALERT_URL": hook.url}) as run,
    ):
        ready(run)
        load(run, 50, 1)
        run.until(lambda: len(hook.got) == tries)
        replies = load(run, 50, 1)
        assert all(r.ok for r in replies)
        assert max(r.total_s for r in replies) < 3
        assert len(hook.got) == tries
        if status:
            run.until(lambda: "the webhook could not be reached" in run.said)
        began = time.monotonic()
        run.do(run.guard.drain)
        assert run.stopped.wait(10)
        assert time.monotonic() - began < 3


def test_without_a_receiver_the_alarm_is_still_said() -> None:
    with (
        in_thread(MockKnobs(first_ms=900)) as (endpoint, _),
        guarded(endpoint, policy(P99), environment={"ALERT_URL": "http://127.0.0.1:9/"}) as run,
    ):
        ready(run)
        assert all(r.ok for r in load(run, 50, 1))
        run.until(lambda: "the webhook could not be reached" in run.said)
        assert len(alarms(run)) == 1


def test_a_slow_candidate_is_told_once_and_again_after_a_revival() -> None:
    limits = policy("routing: {min_requests: 15}\nmonitor: {webhook_env: ALERT_URL}")
    with (
        receiver(200) as hook,
        in_thread(MockKnobs(first_ms=20, token_ms=5)) as (endpoint, _),
        in_thread(MockKnobs(first_ms=200, token_ms=50)) as (slow, _),
        guarded(endpoint, limits, candidate=slow, share=0.5, environment={"ALERT_URL": hook.url}) as run,
    ):
        ready(run)
        load(run, 50, 3)
        run.until(lambda: len(hook.got) > 0)
        assert len(hook.got) == len(alarms(run)) == 1, "one switch, however many of its times are longer"
        assert hook.got[0]["candidate_weight"] == 0.0
        assert hook.got[0]["text"].startswith("checkweigh: candidate switched off: ")
        run.do(run.guard.router.revive)
        load(run, 50, 3)
        run.until(lambda: len(hook.got) > 1)
        assert run.guard.router.weight == 0
        assert len(alarms(run)) == 2
