"""What the monitors are shown of a request, and the waits that follow from it."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from tests.unit.monitors.traffic import outcome, request

from checkweigh.guard.http.request_schema import Bounds, parse_request
from checkweigh.guard.request_context import RequestContext
from checkweigh.guard.routing import Route

BOUNDS = Bounds(model="mock", max_sequence=512, max_tokens=256, default_tokens=16, count=len)
REQUEST = parse_request(
    json.dumps({"model": "mock", "prompt": "a", "stream": True}).encode(), chat=False, bounds=BOUNDS
)


def context(**fields: Any) -> RequestContext:
    """A stream of the baseline's that was answered."""
    own: dict[str, Any] = {
        "id": "v", "tier": "standard", "request": REQUEST, "session": "s", "deadline_s": None, "arrived": 1.0,
        "route": Route("baseline", "baseline", revivals=3), "outcome": "ok", "status": 200, "over": True,
    }  # fmt: skip
    return RequestContext(**own | fields)


def test_what_is_known_of_a_request_is_passed_on() -> None:
    done = context(sent=2.0, trips=4, first=3.0, last=5.0, ended=6.0, tokens=9, unhurried=True, degraded="x")
    assert done.finished(7.0) == request(
        7.0, outcome("baseline", trips=4, degraded=True), revivals=3, tokens=9, arrived=1.0, sent=2.0, first=3.0,
        last=5.0, engine_done=6.0, unhurried=True,
    )  # fmt: skip
    away = context(route=Route("candidate", "baseline")).finished(7.0)
    assert (away.assigned, away.outcome.arm) == ("candidate", "baseline")


@pytest.mark.parametrize(
    ("became", "status", "failed", "expected"),
    [
        ("ok", 200, False, (True, False, False)),
        ("client_gone", 499, False, (False, False, True)),
        ("timeout", 504, False, (False, False, True)),
        ("timeout", 499, False, (False, False, False)),  # it stopped reading: a wait of its own
        ("shed", 503, False, (False, False, False)),
        ("refused", 400, False, (False, False, False)),
        ("upstream_error", 502, True, (False, True, False)),
        ("upstream_error", 503, False, (False, False, False)),  # it was full
    ],
)
def test_what_became_of_it(became: Any, status: int, failed: bool, expected: tuple[bool, ...]) -> None:
    done = context(outcome=became, status=status, failed=failed).finished(7.0)
    assert (done.outcome.answered, done.outcome.failed, done.given_up) == expected


def test_of_a_request_and_its_copy_the_second_to_end_sees_both() -> None:
    original = context(route=Route("baseline", "baseline", shadow=True), shadow=object(), over=False)
    copy = context(route=Route("candidate", "candidate"), twin=original, outcome="shed")
    original.twin = copy
    assert (copy.finished(7.0).copied, copy.finished(7.0).twin) == (True, None), "it still runs"
    original.over = True
    assert copy.finished(7.0).twin == original.finished(7.0).outcome
    assert original.finished(7.0).twin == outcome("candidate", "shed")
    assert not original.finished(7.0).copy_missing
    assert context(route=Route("baseline", "baseline", shadow=True)).finished(7.0).copy_missing


STREAM = {"arrived": 0.0, "sent": 1.0, "first": 3.0, "last": 7.0, "engine_done": 8.0, "tokens": 5}
WHOLE = {**STREAM, "stream": False, "first": 8.0, "last": 8.0}
GONE = {"outcome": outcome("baseline", "gone"), "given_up": True}
SHORT = {"outcome": outcome("baseline", degraded=True)}


@pytest.mark.parametrize(
    ("fields", "waits"),
    [
        (STREAM, (2.0, 1.0)),
        ({**STREAM, **SHORT}, (2.0, 1.0)),
        ({**STREAM, "tokens": 1}, (2.0, None)),
        ({**STREAM, **GONE}, (2.0, 1.25)),  # the silence after the last token counts
        ({**STREAM, **GONE, "tokens": 1}, (2.0, 5.0)),
        ({**STREAM, **GONE, "first": None}, (7.0, None)),
        (WHOLE, (7.0, None)),
        ({**WHOLE, **SHORT}, (None, None)),
        ({**WHOLE, **GONE, "first": None}, (7.0, None)),
        ({**STREAM, "outcome": outcome("baseline", "failed")}, (None, None)),
        ({**STREAM, "sent": None}, (None, None)),
        ({**STREAM, "engine_done": None}, (None, None)),
    ],
)
def test_how_long_the_engine_was_waited_for(
    fields: dict[str, Any], waits: tuple[float | None, float | None]
) -> None:
    assert replace(request(9.0, outcome("baseline")), **fields).waits_s == waits
