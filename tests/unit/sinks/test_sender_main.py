"""The process of a sender: what it writes where, and which exit code says what."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

SCRIPT = """
import sys
from checkweigh.errors import HostBusy
from checkweigh.sinks.sender_main import DeliveryFailed, Unreachable, serve

def handle(request):
    print("a library that prints")
    {body}
    return {{"uri": request["uri"]}}

sys.exit(serve(handle))
"""


def sender(body: str) -> subprocess.CompletedProcess[str]:
    request = json.dumps({"uri": "http://host", "seconds": 60})
    command = [sys.executable, "-c", SCRIPT.format(body=body)]
    return subprocess.run(command, input=request, capture_output=True, text=True, timeout=120)


def test_the_reply_alone_is_on_stdout() -> None:
    done = sender("pass")
    assert (done.returncode, json.loads(done.stdout)) == (0, {"uri": "http://host"})
    assert "a library that prints" in done.stderr


@pytest.mark.parametrize(
    ("body", "code", "why"),
    [
        ("raise Unreachable('nobody is there')", 75, "nobody is there"),
        ("raise HostBusy('another sender')", 75, "another sender"),
        ("raise DeliveryFailed('it lacks a part')", 1, "it lacks a part"),
        ("1 / 0", 1, "ZeroDivisionError: division by zero"),
    ],
)
def test_exit_codes_tell_a_silent_receiver_from_one_that_refused(body: str, code: int, why: str) -> None:
    done = sender(body)
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.splitlines()[-1] == why
