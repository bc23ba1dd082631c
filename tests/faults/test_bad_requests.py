"""What clients send wrongly, on purpose or not: the right status, OpenAI's shape, nothing upstream, nothing leaked."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.faults.harness import Running, body, guarded, policy

from checkweigh.engines.mock.app import MockApp
from checkweigh.engines.mock.mock_knobs import MockKnobs
from checkweigh.engines.mock.serve import in_thread
from checkweigh.guard.http import request_schema
from checkweigh.guard.http.error_responses import ErrorResponse
from checkweigh.guard.http.request_schema import Bounds

KEY, ENGINE_KEY = "client-key-0123456789", "engine-key-9876543210"
HEAD = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\n".encode()
LIMITS = """
surface: {keys: {CHAT_KEY: interactive, BULK_KEY: bulk}, header_s: 0.6, body_s: 0.6, max_body: 20000, max_header: 4096}
"""


@dataclass
class Site:
    run: Running
    mock: MockApp
    secrets: tuple[str, ...]

    @property
    def port(self) -> int:
        return int(self.run.url.rsplit(":", 1)[1])


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    keys = {
        "CHAT_KEY": KEY,
        "BULK_KEY": "bulk-key-0123456789",
        "CHECKWEIGH_ADMIN_KEY": "admin-key-0123456789",
    }
    with (
        in_thread(MockKnobs(max_len=512), key=ENGINE_KEY) as (endpoint, mock),
        guarded(endpoint, policy(LIMITS), max_sequence=512, environment=keys) as run,
    ):
        run.ready()
        yield Site(run, mock, (ENGINE_KEY, endpoint.root.removeprefix("http://"), KEY))


def raw(site: Site, data: bytes, *, wait_s: float = 5.0) -> bytes:
    """What the server answers to these bytes, until it closes or is silent."""
    with socket.create_connection(("127.0.0.1", site.port), timeout=wait_s) as connection:
        connection.sendall(data)
        found = b""
        try:
            while part := connection.recv(65536):
                found += part
                head, _, rest = found.partition(b"\r\n\r\n")
                lengths = [
                    line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")
                ]
                if lengths and len(rest) >= int(lengths[0].split(b":")[1]):
                    break
        except (TimeoutError, ConnectionError):
            pass
    return found


def post(
    site: Site, data: bytes, *, path: str = "/v1/chat/completions", key: str | None = KEY, extra: str = "",
    method: str = "POST",
) -> tuple[int, dict[str, Any]]:  # fmt: skip
    """Status and JSON of an answer; whatever is secret must not be in it."""
    authorization = "" if key is None else f"authorization: Bearer {key}\r\n"
    head = f"{method} {path} HTTP/1.1\r\nhost: x\r\n{authorization}{extra}content-length: {len(data)}\r\n\r\n"
    found = raw(site, head.encode() + data)
    assert not any(secret.encode() in found for secret in site.secrets)
    top, _, rest = found.partition(b"\r\n\r\n")
    return int(top.split()[1]), json.loads(rest)


def refused(found: tuple[int, dict[str, Any]], status: int) -> dict[str, Any]:
    assert found[0] == status, found
    error: dict[str, Any] = found[1]["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    assert error["type"]
    return error


def dumped(**fields: Any) -> bytes:
    return json.dumps(body(**fields)).encode()


BAD = [
    (b"", 400), (b"{", 400), (b"[]", 400), (b"null", 400), (b"1e999", 400), (b"[" * 9000, 400),
    (b'{"model": "mock", "messages": [{"role": "user", "content": "\xff\xfe"}]}', 400),
    (b'{"model": "mock", "messages": [{"role": "user", "content": "\\ud800"}]}', 400),
    (b'{"model": "mock", "temperature": NaN, "messages": [{"role": "user", "content": "x"}]}', 400),
    (dumped(tokens=-1), 400), (dumped(tokens=0), 400), (dumped(tokens=10**30), 400), (dumped(tokens=True), 400),
    (dumped(tokens=1.5), 400), (dumped(tokens="4"), 400), (dumped(prompt="x" * 3000), 400),
    (dumped(temperature="hot"), 400), (dumped(temperature=-0.1), 400), (dumped(top_p=2), 400), (dumped(n=5), 400),
    (dumped(stream="yes"), 400), (dumped(stop=[""]), 400), (dumped(stop=["x"] * 17), 400), (dumped(seed=1.5), 400),
    (dumped(priority=-100), 400), (dumped(lora_request={}), 400), (dumped(prompt_logprobs=10**6), 400),
    (dumped(messages=[]), 400), (dumped(messages="hi"), 400), (dumped(messages=[1]), 400),
    (dumped(messages=[{"role": "root", "content": "x"}]), 400), (dumped(messages=[{"role": "user"}]), 400),
    (dumped(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x"}}]}]), 400),
    (dumped(model="gpt-4"), 404), (dumped(model=None), 400), (dumped(model=["mock"]), 400),
    (dumped(prompt="x" * 30000), 413),
    # What a chat template may render counts, wherever it stands.
    (dumped(tools=[{"type": "function", "function": {"name": "f", "description": "word " * 500}}]), 400),
    (dumped(messages=[{"role": "user", "content": "x", "name": "word " * 500}]), 400),
    (dumped(messages=[{"role": "assistant", "content": "x", "tool_calls": [{"function": "word " * 500}]}]), 400),
    (dumped(messages=[{"role": "user", "content": "x", "documents": ["word"]}]), 400),
    (dumped(messages=[{"role": "user", "content": [{"type": "text", "text": "x", "cache": "word"}]}]), 400),
    # What the engine could not read.
    (dumped(tools="DEEP").replace(b'"DEEP"', b"[" * 977 + b"]" * 977), 400), (dumped(temperature=10**400), 400),
    (dumped(logit_bias={"5": 7.5}).replace(b"7.5", b"1e999"), 400),
]  # fmt: skip


@pytest.mark.parametrize(("data", "status"), BAD, ids=range(len(BAD)))
def test_a_bad_body_is_refused_before_the_engine(site: Site, data: bytes, status: int) -> None:
    seen = site.mock.schedule.seen
    error = refused(post(site, data), status)
    assert "traceback" not in json.dumps(error).lower()
    assert site.mock.schedule.seen == seen


def test_a_near_miss_is_suggested(site: Site) -> None:
    error = refused(post(site, dumped(temprature=1)), 400)
    assert "did you mean 'temperature'?" in error["message"]
    assert error["param"] == "temprature"


@pytest.mark.parametrize("key", [None, "", "wrong", KEY[:-1], KEY + "x", "x" * 3000, "\u00e9"])
def test_a_wrong_key_is_401(site: Site, key: str | None) -> None:
    seen = site.mock.schedule.seen
    assert refused(post(site, dumped(), key=key), 401)["code"] == "invalid_api_key"
    assert site.mock.schedule.seen == seen


@pytest.mark.parametrize(
    "path",
    ["/", "/v1", "/v1/embeddings", "/v1/load_lora_adapter", "/health", "/version", "/tokenize", "/docs",
     "/openapi.json", "/mock/crash", "/v1/../mock/crash", "/v1/chat/completions/../../../mock/crash",
     "/v1/%2e%2e/mock/crash",
     "//v1/chat/completions", "/v1/chat/completions/", "/V1/chat/completions", "/v1/chat%2fcompletions%00",
     "/admin/kill", "http://127.0.0.1/mock/crash"],
)  # fmt: skip
def test_only_the_allow_list_exists(site: Site, path: str) -> None:
    seen = site.mock.schedule.seen
    refused(post(site, dumped(), path=path), 404)
    assert site.mock.schedule.seen == seen


def test_other_methods_queries_and_media_types(site: Site) -> None:
    refused(post(site, b"", method="GET"), 405)
    refused(post(site, dumped(), method="PUT"), 405)
    refused(post(site, dumped(), path="/v1/models"), 405)
    refused(post(site, dumped(), path="/v1/chat/completions?x=1"), 400)
    refused(post(site, dumped(), extra="content-type: text/xml\r\n"), 415)
    refused(post(site, dumped(), extra="content-encoding: gzip\r\n"), 415)
    refused(post(site, dumped(), extra="x-checkweigh-tier: vip\r\n"), 400)
    refused(post(site, dumped(), extra="x-checkweigh-deadline-ms: -5\r\n"), 400)


def test_tiers_go_down_with_a_header_and_never_up(site: Site) -> None:
    ok = 'checkweigh_requests_total{arm="baseline",outcome="ok",tier='

    def count(tier: str) -> float:
        text = raw(site, b"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").decode()
        return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(f'{ok}"{tier}"'))

    before = [count(t) for t in ("interactive", "bulk")]
    assert post(site, dumped())[0] == 200
    assert post(site, dumped(), extra="x-checkweigh-tier: bulk\r\n")[0] == 200
    assert (
        post(site, dumped(), key="bulk-key-0123456789", extra="x-checkweigh-tier: interactive\r\n")[0] == 200
    )
    assert [count(t) for t in ("interactive", "bulk")] == [before[0] + 1, before[1] + 2]


def test_large_headers_and_what_is_no_http(site: Site) -> None:
    assert (
        refused(post(site, dumped(), extra=f"x-filler: {'a' * 9000}\r\n"), 431)["code"] == "headers_too_large"
    )
    for data in (b"\x16\x03\x01\x02\x00" * 20 + b"\r\n\r\n", b"GET\r\n\r\n",
                 b"GET / HTTP/1.1\r\nhost x\r\n\r\n"):  # fmt: skip
        found = raw(site, data)
        assert found.startswith(b"HTTP/1.1 400"), (data, found)
        assert json.loads(found.partition(b"\r\n\r\n")[2])["error"]["code"] == "invalid_http"
    smuggled = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\n"
    smuggled += b"transfer-encoding: chunked\r\n\r\n0\r\n\r\n"
    assert not raw(site, smuggled).startswith(b"HTTP/1.1 200")


def test_junk_after_a_request_gets_no_second_answer_of_value(site: Site) -> None:
    data = dumped()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\n"
    seen = site.mock.schedule.seen
    found = raw(site, f"{head}content-length: {len(data)}\r\n\r\n".encode() + data + b"JUNK\r\nMORE\r\n\r\n")
    assert found.startswith(b"HTTP/1.1 200")
    assert found.count(b"HTTP/1.1 200") == 1
    assert site.mock.schedule.seen == seen + 1


@pytest.mark.parametrize("start", [b"", b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nx-a: "])
def test_slow_headers_are_cut_off(site: Site, start: bytes) -> None:
    began = time.monotonic()
    with socket.create_connection(("127.0.0.1", site.port), timeout=5) as connection:
        connection.sendall(start)
        found = b""
        while time.monotonic() - began < 4:
            try:
                connection.sendall(b"a" if start else b"")
                connection.settimeout(0.1)
                part = connection.recv(4096)
            except TimeoutError:
                continue
            except ConnectionError:
                break
            found += part
            if not part:
                break
    assert 0.4 < time.monotonic() - began < 3
    assert found.startswith(b"HTTP/1.1 408")


def test_a_slow_body_is_408(site: Site) -> None:
    found = raw(site, HEAD + b"content-length: 100\r\n\r\n{")
    assert found.startswith(b"HTTP/1.1 408")


def test_a_body_without_end_is_cut_at_its_limit(site: Site) -> None:
    head = HEAD + b"transfer-encoding: chunked\r\n\r\n"
    found = raw(site, head + b"1000\r\n" + b"x" * 4096 + b"\r\n" + (b"1000\r\n" + b"x" * 4096 + b"\r\n") * 8)
    assert found.startswith(b"HTTP/1.1 413")


def test_the_operators_switch_needs_the_operators_key(site: Site) -> None:
    assert post(site, b"", path="/admin/kill", key="admin-key-0123456789")[0] == 200
    assert site.run.guard.router.killed
    assert post(site, b"", path="/admin/revive", key="admin-key-0123456789")[0] == 200
    assert not site.run.guard.router.killed


BOUNDS = Bounds(
    model="mock", max_sequence=512, max_tokens=256, default_tokens=16, count=lambda text: len(text) // 4
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda children: (
        st.lists(children, max_size=4) | st.dictionaries(st.text(max_size=8), children, max_size=4)
    ),
    max_leaves=12,
)


def read(data: bytes, *, chat: bool) -> request_schema.ValidatedRequest | ErrorResponse:
    try:
        return request_schema.parse_request(data, chat=chat, bounds=BOUNDS)
    except ErrorResponse as refusal:
        return refusal


@settings(max_examples=300, deadline=None)
@given(raw_body=st.binary(max_size=200) | JSON.map(lambda v: json.dumps(v).encode()), chat=st.booleans())
def test_any_bytes_are_a_refusal_or_a_request(raw_body: bytes, chat: bool) -> None:
    found = read(raw_body, chat=chat)
    if isinstance(found, ErrorResponse):
        assert found.status in (400, 404)
        json.loads(found.body())


@settings(max_examples=400, deadline=None)
@given(changes=st.dictionaries(st.sampled_from(sorted(request_schema.KNOWN)), JSON, max_size=3))
def test_any_value_of_any_field_is_a_refusal_or_is_within_bounds(changes: dict[str, Any]) -> None:
    found = read(json.dumps(body() | changes).encode(), chat=True)
    if isinstance(found, ErrorResponse):
        assert found.status in (400, 404)
        return
    assert 1 <= found.max_tokens <= 256
    assert found.prompt_tokens + found.max_tokens <= 512
    assert json.loads(found.upstream("engine", found.max_tokens))["max_tokens"] == found.max_tokens


TEXT = {"type": "string"}
SCHEMA = {
    "openapi": "3.0.0",
    "info": {"title": "guard", "version": "1"},
    "paths": {
        path: {
            "post": {
                "requestBody": {"required": True, "content": {"application/json": {"schema": {
                    "type": "object", "required": ["model", field],
                    "properties": {
                        "model": {"enum": ["mock"]}, field: kind, "max_tokens": {"type": "integer"},
                        "temperature": {"type": "number"}, "stream": {"enum": [False]}, "stop": {"type": "string"},
                    },
                }}}},
                "responses": {str(status): {"description": "", "content": {"application/json": {"schema": {
                    "type": "object", "required": ["choices" if status == 200 else "error"],
                }}}} for status in (200, 400, 404, 405, 408, 413, 415, 429, 431, 503)},
            }
        }
        for path, field, kind in (
            ("/v1/completions", "prompt", {"type": "string"}),
            ("/v1/chat/completions", "messages", {"type": "array", "items": {
                "type": "object", "properties": {"role": {"enum": ["user", "assistant"]}, "content": TEXT},
            }}),
        )
    },
}  # fmt: skip
schema = schemathesis.openapi.from_dict(SCHEMA)


@schema.parametrize()
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
def test_generated_requests_get_documented_answers(case: Any, site: Site) -> None:
    answer = case.call(base_url=site.run.url, headers={"Authorization": f"Bearer {KEY}"}, timeout=10)
    assert answer.status_code in (200, 400, 404, 405, 408, 413, 415, 429, 431, 503), answer.text
    assert "error" in answer.json() or "choices" in answer.json()
    assert not any(secret in answer.text for secret in site.secrets)
