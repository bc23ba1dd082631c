"""What the guard adds to a request, against a bare aiohttp proxy and LiteLLM's, before the same mock engine.

    python benchmarks/guard_overhead.py [--rounds N] [--litellm BIN] [--out FILE]

Three loads: whole replies one after the other, streams at 32 at once (the time to the first token counts), and whole
replies at 32 at once as fast as they go. Subjects take turns within a round; "added" is against the engine alone in the
same round, and the medians over rounds are reported, with the machine's load. LiteLLM comes from an environment of its
own: python -m venv V && V/bin/pip install 'litellm[proxy]', then --litellm V/bin/litellm.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import aiohttp

from checkweigh.engines.mock.mock_knobs import MockKnobs
from checkweigh.engines.mock.serve import in_process
from checkweigh.engines.vllm.server_launch import free_port
from checkweigh.measure import host_facts

HERE = Path(__file__).resolve().parent
AIMS = {
    "added_p50_ms": 1.0,
    "added_p99_ms": 5.0,
    "requests_s": 1000.0,
    "first_token_ms": 5.0,
    "times_less": 4.0,
}
ROOMY = "admission: {queue: 1000, tiers: {standard: {queue: 1000}}}\ntraffic: {path: '%s'}\n"
KEY = f"sk-{secrets.token_hex(24)}"  # LiteLLM asks for one; the others do not look
Measured = dict[str, float]


async def bare(url: str, port: int) -> None:
    """The least that a proxy in this language can be: raw ASGI, aiohttp, nothing checked."""
    import uvicorn

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def app(scope: Any, receive: Any, send: Any) -> None:
            body = b""
            while True:
                message = await receive()
                body += message.get("body", b"")
                if not message.get("more_body"):
                    break
            kind = {"content-type": "application/json"}
            async with session.post(
                url + scope["path"].removeprefix("/v1"), data=body, headers=kind
            ) as answer:
                headers = [(b"content-type", answer.headers["content-type"].encode())]
                await send({"type": "http.response.start", "status": answer.status, "headers": headers})
                async for chunk in answer.content.iter_any():
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
                await send({"type": "http.response.body", "body": b"", "more_body": False})

        config = uvicorn.Config(
            app, port=port, log_level="error", access_log=False, lifespan="off", http="h11"
        )
        await uvicorn.Server(config).serve()


@contextmanager
def child(command: list[str], url: str, extra: Mapping[str, str] = {}) -> Iterator[str]:
    """A server's process until the block ends; waits until it answers at all."""
    process = subprocess.Popen(
        command, env=os.environ | dict(extra), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        until = time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(url.removesuffix("/v1") + "/", timeout=2)
                break
            except urllib.error.HTTPError:
                break
            except OSError:
                if time.monotonic() > until or process.poll() is not None:
                    raise RuntimeError(f"{command[0]} does not answer at {url}") from None
                time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        process.wait(20)


@contextmanager
def guard(engine: str, folder: Path) -> Iterator[str]:
    """The guard with every check on, its traffic log too."""
    policy = folder / "guard.yaml"
    policy.write_text(ROOMY % (folder / "traffic.jsonl"))
    command = [sys.executable, str(HERE / "guarded.py"), engine, "mock", "256", str(policy)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    try:
        yield str(json.loads(process.stdout.readline())["url"])
    finally:
        process.terminate()
        process.wait(20)
        process.stdout.close()


def litellm(binary: str, engine: str, folder: Path) -> tuple[list[str], str]:
    """The command of LiteLLM's proxy, one worker, without its database."""
    config = folder / "litellm.yaml"
    model = {"model": "openai/mock", "api_base": engine, "api_key": "none"}
    config.write_text(json.dumps({"model_list": [{"model_name": "mock", "litellm_params": model}]}))
    port = free_port()
    return [
        binary,
        "--config",
        str(config),
        "--port",
        str(port),
        "--host",
        "127.0.0.1",
    ], f"http://127.0.0.1:{port}/v1"


async def times(url: str, count: int, together: int, *, stream: bool) -> tuple[list[float], float]:
    """Seconds of each request (to the first token, of streams), and requests a second."""
    body = {
        "model": "mock", "messages": [{"role": "user", "content": "weigh this box"}], "max_tokens": 16,
        "stream": stream,
    }  # fmt: skip
    found: list[float] = []
    headers = {"Authorization": f"Bearer {KEY}"}
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), headers=headers) as session:

        async def one() -> None:
            started = time.perf_counter()
            async with session.post(url + "/chat/completions", json=body) as answer:
                first = None
                async for line in answer.content:
                    if first is None and (not stream or b'"content": "' in line or b'"content":"' in line):
                        first = time.perf_counter() - started
                if answer.status != 200:
                    raise RuntimeError(f"{url}: status {answer.status}")
                found.append(time.perf_counter() - started if not stream or first is None else first)

        async def several(number: int) -> None:
            for _ in range(number):
                await one()

        await several(20)
        found.clear()
        began = time.perf_counter()
        await asyncio.gather(*(several(count // together) for _ in range(together)))
        return found, len(found) / (time.perf_counter() - began)


def round_of(url: str, engine: Any, scale: float) -> Measured:
    """One subject in one round."""
    turn(engine, {"token_ms": 0.0})
    alone, _ = asyncio.run(times(url, max(50, int(400 * scale)), 1, stream=False))
    _, rate = asyncio.run(times(url, max(64, int(1600 * scale)), 32, stream=False))
    turn(engine, {"token_ms": 20.0})
    first, _ = asyncio.run(times(url, max(64, int(320 * scale)), 32, stream=True))
    return {
        "p50_ms": 1e3 * statistics.median(alone), "p99_ms": 1e3 * sorted(alone)[int(0.99 * len(alone))],
        "first_token_p50_ms": 1e3 * statistics.median(first), "requests_s": rate,
    }  # fmt: skip


def turn(engine: Any, knobs: dict[str, float]) -> None:
    """Change the mock's knobs."""
    request = urllib.request.Request(engine.endpoint.root + "/mock/knobs", data=json.dumps(knobs).encode())
    urllib.request.urlopen(request, timeout=5).read()


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scale", type=float, default=1.0, help="of the number of requests")
    parser.add_argument("--litellm", help="LiteLLM's own binary")
    parser.add_argument("--bare", nargs=2, metavar=("URL", "PORT"), help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=HERE / "guard_overhead.json")
    given = parser.parse_args()
    if given.bare:
        asyncio.run(bare(given.bare[0], int(given.bare[1])))
        return
    rounds: dict[str, list[Measured]] = {}
    loads: list[float] = []
    with ExitStack() as stack, tempfile.TemporaryDirectory() as name:
        engine = stack.enter_context(in_process(MockKnobs()))
        port = free_port()
        own = [sys.executable, str(Path(__file__).resolve()), "--bare", engine.endpoint.url, str(port)]
        subjects = {"engine": engine.endpoint.url}
        subjects["bare proxy"] = stack.enter_context(child(own, f"http://127.0.0.1:{port}/v1"))
        subjects["guard"] = stack.enter_context(guard(engine.endpoint.url, Path(name)))
        if given.litellm:
            command, url = litellm(given.litellm, engine.endpoint.url, Path(name))
            subjects["litellm"] = stack.enter_context(
                child(command, url, {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_MASTER_KEY": KEY})
            )
        time.sleep(2)
        for _ in range(given.rounds):
            loads.append(os.getloadavg()[0])
            for subject, url in subjects.items():
                scale = given.scale * (0.25 if subject == "litellm" else 1.0)
                rounds.setdefault(subject, []).append(round_of(url, engine, scale))
    result = summary(rounds)
    result |= {
        "aims": AIMS,
        "rounds": rounds,
        "load_average": loads,
        "hardware": host_facts.hardware(),
        "at": host_facts.now(),
    }
    given.out.write_text(json.dumps(result, indent=2) + "\n")
    print(
        json.dumps(
            {k: result[k] for k in ("added", "requests_s", "litellm_over_guard", "load_average")}, indent=2
        )
    )


def summary(rounds: dict[str, list[Measured]]) -> dict[str, Any]:
    """Medians over rounds of what each subject adds to the engine alone."""
    added = {
        subject: {
            name: statistics.median(own[name] - alone[name] for own, alone in zip(found, rounds["engine"], strict=True))
            for name in ("p50_ms", "p99_ms", "first_token_p50_ms")
        }
        for subject, found in rounds.items() if subject != "engine"
    }  # fmt: skip
    rates = {subject: statistics.median(r["requests_s"] for r in found) for subject, found in rounds.items()}
    times_less = None
    if "litellm" in rounds:
        times_less = added["litellm"]["p50_ms"] / max(1e-6, added["guard"]["p50_ms"])
    return {"added": added, "requests_s": rates, "litellm_over_guard": times_less}


if __name__ == "__main__":
    main()
