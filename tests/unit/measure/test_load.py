"""The open loop against a mock server of known delays: relations, never tight absolute times."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import numpy as np
import pytest

from checkweigh.engines.http.client import (
    Client,
    Deadlines,
    Endpoint,
    Streamed,
    StreamRequest,
)
from checkweigh.engines.mock.mock_knobs import MockKnobs
from checkweigh.engines.mock.serve import in_process, in_thread
from checkweigh.measure.arrivals import BlockPlan, PlannedRequest
from checkweigh.measure.block_metrics import (
    block_values,
    describe_failures,
    discordant_counts,
    kept_slo,
)
from checkweigh.measure.open_loop import (
    MOST_OUTSTANDING,
    OfferedBlock,
    OfferedOutcome,
    backlog_grows,
    offer,
)
from checkweigh.records.evalset import Message
from checkweigh.records.load_spec import Load, Objective, Poisson

HELLO = (Message(role="user", content="weigh this box"),)
SLO = Objective(ttft=0.5, tpot=0.2, e2e=1.0)


def load(**changes: Any) -> Load:
    return Load(arrivals=Poisson(kind="poisson", rate=50.0), slo=SLO, timeout=5.0, washout=0.0, **changes)


def steady(count: int, gap: float, tokens: int = 4) -> BlockPlan:
    requests = [
        PlannedRequest(id=f"r{i}", at=i * gap, messages=HELLO, output_tokens=tokens) for i in range(count)
    ]
    return BlockPlan(pair=0, requests=tuple(requests))


def offered(endpoint: Endpoint, plan: BlockPlan, rules: Load, *, exact: bool = False) -> OfferedBlock:
    async def work() -> OfferedBlock:
        async with Client(endpoint, Deadlines(connect=2, idle=20, total=20)) as client:

            async def stream(planned: PlannedRequest) -> Streamed:
                return await client.stream(
                    StreamRequest(id=planned.id, messages=planned.messages, max_tokens=planned.output_tokens)
                )

            return await offer(stream, plan, rules, exact=exact)

    return asyncio.run(work())


def test_every_request_is_sent_when_it_is_due_however_slow_the_answers_are() -> None:
    """40 requests in .4 s, each answered after .5 s: a loop that waits for answers would take 20 s."""
    started = time.monotonic()
    with in_thread(MockKnobs(first_ms=500.0)) as (endpoint, _):
        found = offered(endpoint, steady(40, 0.01), load())
    assert time.monotonic() - started < 8
    assert len(found.outcomes) == 40
    assert all(not o.failure and o.tokens == 4 for o in found.outcomes)
    assert all(o.first is not None and o.first >= 0.45 for o in found.outcomes)
    assert [o.id for o in found.outcomes] == [f"r{i}" for i in range(40)]


def test_waiting_in_a_queue_counts_from_the_scheduled_moment() -> None:
    """One slot: each request waits for all before it, and its time says so."""
    with in_thread(MockKnobs(slots=1, first_ms=60.0)) as (endpoint, _):
        found = offered(endpoint, steady(12, 0.01), load())
    first = [o.first for o in found.outcomes if o.first is not None]
    assert len(first) == 12
    assert first[-1] > 5 * first[0]
    assert np.all(np.diff(first) > 0)


def test_known_delays_come_back_in_the_right_metric() -> None:
    with in_thread(MockKnobs(first_ms=120.0, token_ms=30.0)) as (endpoint, _):
        slow_first = block_values(offered(endpoint, steady(10, 0.05, 6), load()), load(), "baseline")
    with in_thread(MockKnobs(first_ms=10.0, token_ms=60.0)) as (endpoint, _):
        slow_token = block_values(offered(endpoint, steady(10, 0.05, 6), load()), load(), "baseline")
    assert slow_first["ttft.p50"] > 2 * slow_token["ttft.p50"]
    assert 1.3 * slow_first["tpot.p50"] < slow_token["tpot.p50"]
    assert slow_first["ttft.p50"] + 5 * slow_first["tpot.p50"] == pytest.approx(
        slow_first["e2e.p50"], rel=0.2
    )
    assert slow_first["ttft.p50"] <= slow_first["ttft.p90"] <= slow_first["ttft.p99"]


def test_several_tokens_an_update_are_counted_one_by_one() -> None:
    with in_thread(MockKnobs(token_ms=40.0, acceptance=3.0, drafted=4)) as (endpoint, _):
        drafted = block_values(offered(endpoint, steady(8, 0.05, 12), load()), load(), "candidate")
    with in_thread(MockKnobs(token_ms=40.0)) as (endpoint, _):
        plain = block_values(offered(endpoint, steady(8, 0.05, 12), load()), load(), "candidate")
    assert drafted["tpot.p50"] < 0.75 * plain["tpot.p50"]


@pytest.mark.parametrize(
    ("knobs", "failure"),
    [
        (MockKnobs(error_share=1.0), "refused with 500"),
        (MockKnobs(truncate_share=1.0), "broken off"),
        (MockKnobs(reset_share=1.0), "broken off"),
        (MockKnobs(max_len=1), "refused with 400"),
    ],
    ids=["500", "truncated", "reset", "400"],
)
def test_an_answer_that_is_none_is_an_error_with_a_name(knobs: MockKnobs, failure: str) -> None:
    with in_thread(knobs) as (endpoint, _):
        found = offered(endpoint, steady(5, 0.01), load())
    assert {o.failure for o in found.outcomes} == {failure}
    values = block_values(found, load(), "candidate")
    assert values["error_rate"] == 1
    assert values["goodput"] == 0
    assert not any(name.startswith(("ttft", "tpot", "e2e")) for name in values), "no time without an answer"
    assert describe_failures(found.outcomes) == f"5 {failure}"


def test_a_hanging_server_is_left_after_the_timeout() -> None:
    rules = load().model_copy(update={"timeout": 0.4})
    with in_thread(MockKnobs(hang=True)) as (endpoint, _):
        found = offered(endpoint, steady(4, 0.01), rules)
    assert {o.failure for o in found.outcomes} == {"timeout"}
    assert all(o.ended is not None and 0.35 < o.ended < 3 for o in found.outcomes)


def test_a_server_that_is_not_there_refuses_every_request() -> None:
    found = offered(Endpoint(url="http://127.0.0.1:9/v1", model="m"), steady(3, 0.0), load())
    assert {o.failure for o in found.outcomes} == {"no connection"}


def test_a_server_that_dies_half_way_leaves_the_rest_without_an_answer() -> None:
    with in_process(MockKnobs(crash_after=6, first_ms=20.0)) as mock:
        found = offered(mock.endpoint, steady(12, 0.05), load())
    assert 0 < sum(not o.failure for o in found.outcomes) < 12
    assert found.outcomes[-1].failure
    assert len(found.outcomes) == 12


def test_a_reply_of_another_length_fails_where_the_length_was_asked_for() -> None:
    with in_thread(MockKnobs(reply_tokens=3)) as (endpoint, _):
        found = offered(endpoint, steady(3, 0.0, 8), load(), exact=True)
        allowed = offered(endpoint, steady(3, 0.0, 8), load())
    assert {o.failure for o in found.outcomes} == {"wrong length: 3 tokens, 8 tokens expected"}
    assert not any(o.failure for o in allowed.outcomes)


def test_a_backlog_without_bound_stops_the_block_and_names_it() -> None:
    with in_thread(MockKnobs(slots=1, first_ms=40.0)) as (endpoint, _):
        found = offered(endpoint, steady(400, 0.005), load())
    assert found.saturated.startswith("over-saturated: after ")
    sent = [o for o in found.outcomes if o.late is not None]
    assert len(found.outcomes) == 400
    assert len(sent) < 350, "it stopped sending"
    assert {o.failure for o in found.outcomes if o.late is None} == {"not sent"}
    assert {o.failure for o in sent} <= {"given up", ""}
    values = block_values(found, load(), "candidate")
    assert values["saturated"] == 1
    assert values["goodput"] < 0.5


@pytest.mark.parametrize("count", [30, 60, 200, 1000])
def test_a_queue_that_keeps_up_is_not_called_growing(count: int) -> None:
    rng = np.random.default_rng(count)
    stopped = 0
    for _ in range(100):
        seen, backlog = [], 0
        for _ in range(count):
            backlog = max(0, backlog - int(rng.poisson(1.25))) + 1  # 80% of what the server can do
            seen.append(backlog)
        stopped += any(backlog_grows(seen[: k + 1]) for k in range(count))
    assert stopped <= 1


@pytest.mark.parametrize("served", [0.0, 0.3, 0.6])
def test_a_backlog_that_grows_is_noticed(served: float) -> None:
    rng = np.random.default_rng(7)
    for _ in range(20):
        seen, backlog = [], 0
        for _ in range(600):
            backlog = max(0, backlog - int(rng.poisson(served))) + 1
            seen.append(backlog)
        assert any(backlog_grows(seen[: k + 1]) for k in range(len(seen)))


def test_too_many_open_connections_are_a_backlog_whatever_the_trend() -> None:
    assert backlog_grows([MOST_OUTSTANDING])
    assert not backlog_grows([])
    assert not backlog_grows([5] * 29)


def outcome(**values: Any) -> OfferedOutcome:
    return OfferedOutcome(**{"id": "r", "late": 0.0, "first": 0.1, "ended": 0.4, "tokens": 4} | values)


def test_a_late_sender_is_named_and_a_punctual_one_is_not() -> None:
    rules = load(max_late=0.05)
    punctual = OfferedBlock(outcomes=tuple(outcome(late=0.01) for _ in range(100)))
    once = OfferedBlock(outcomes=(*punctual.outcomes[1:], outcome(late=0.2)))
    twice = OfferedBlock(outcomes=(*punctual.outcomes[2:], outcome(late=0.2), outcome(late=0.3)))
    assert punctual.too_late(rules) == once.too_late(rules) == ""
    assert twice.too_late(rules) == (
        "the sender was late: 2 of 100 requests went out more than 50 ms after their time, up to 300 ms"
    )


def test_a_blocked_sender_says_how_late_it_was() -> None:
    """Nothing else may run while this process sleeps: what was due then is late, and slow by as much."""

    async def answer(planned: PlannedRequest) -> Streamed:
        if planned.id == "r1":
            time.sleep(0.3)  # that it blocks the loop is the point
        from checkweigh.engines.http.client import Event

        now = time.monotonic()
        return Streamed(
            id=planned.id, sent=now, ended=now, events=(Event(now, "x"),), finish="stop", usage=None, prompt_ids=None
        )  # fmt: skip

    found = asyncio.run(offer(answer, steady(6, 0.05), load(), exact=False))
    late = [o.late or 0.0 for o in found.outcomes]
    assert max(late[:2]) < 0.1 < late[2]
    assert all(o.first is not None and o.late is not None and o.first >= o.late for o in found.outcomes)
    assert "the sender was late" in found.too_late(load())


def test_goodput_asks_for_every_limit_and_counts_all_that_was_offered() -> None:
    slo = Objective(ttft=0.2, tpot=0.11, e2e=0.5)
    assert kept_slo(outcome(), slo)
    for bad in ({"first": 0.3}, {"ended": 0.45}, {"ended": 0.6, "tokens": 50}, {"failure": "timeout"}):
        assert not kept_slo(outcome(**bad), slo), bad
    assert kept_slo(outcome(ended=0.1, tokens=1), slo), "one token has no time per token"
    block = OfferedBlock(
        outcomes=(
            outcome(),
            outcome(),
            outcome(failure="timeout", first=None),
            outcome(failure="not sent", late=None),
        )
    )
    assert block_values(block, load().model_copy(update={"slo": slo}), "baseline")["goodput"] == 0.5


def test_failures_count_against_the_candidate_and_for_the_baseline() -> None:
    rows = tuple(outcome(first=0.1 * (i + 1), ended=1.0 + i) for i in range(9))
    block = OfferedBlock(outcomes=(*rows, outcome(failure="timeout", first=None, ended=5.0, tokens=0)))
    rules = load().model_copy(update={"timeout": 60.0})
    one, other = (block_values(block, rules, role) for role in ("baseline", "candidate"))
    assert one["e2e.p50"] == other["e2e.p50"] == 5.0, "quantiles are those of answers"
    assert one["e2e.p99.bound"] < one["e2e.p99"] < other["e2e.p99.bound"]
    assert other["e2e.p99.bound"] > 50
    assert not any(
        name.endswith("bound") for name in block_values(OfferedBlock(outcomes=rows), load(), "candidate")
    )


def test_a_request_given_up_counts_for_as_long_as_it_took() -> None:
    block = OfferedBlock(
        outcomes=(outcome(), outcome(failure="given up", first=None, ended=3.0)), saturated="yes"
    )
    assert block_values(block, load(), "candidate")["e2e.p99"] > 2.9


def test_what_is_unlike_is_counted_request_by_request() -> None:
    good, slow, bad = outcome(), outcome(ended=2.0), outcome(failure="timeout", first=None)
    one, other = (
        OfferedBlock(outcomes=(good, good, slow, bad)),
        OfferedBlock(outcomes=(good, slow, good, bad)),
    )
    assert discordant_counts(one, other, load()) == {"goodput": (1, 1), "error_rate": (0, 0)}
    assert discordant_counts(one, OfferedBlock(outcomes=(bad, bad, bad, bad)), load()) == {
        "goodput": (2, 0),
        "error_rate": (0, 3),
    }
