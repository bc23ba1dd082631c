"""Goodput against offered load from half of an engine's capacity to five times it, with and without the guard.

    python benchmarks/overload.py [--vllm MANIFEST] [--seconds S] [--out FILE]

Open loop: requests are sent on a schedule whatever becomes of the others, and times count from the scheduled moment.
Goodput is the share of the *offered* requests that came whole within the SLO, times the offered rate; sheds are misses.
Without ``--vllm`` the engine is the mock (8 at once, 160 ms each). With it, the capacity is measured first. Writes JSON
and, beside it, the curve as SVG; exit 1 when the guarded goodput falls below 90% of its knee beyond it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp

from checkweigh.engines.launch import open_engine
from checkweigh.engines.mock.mock_knobs import MockKnobs
from checkweigh.engines.mock.serve import in_process
from checkweigh.measure import host_facts
from checkweigh.report.html.svg import (
    el,
    label,
    line,
    path,
)
from checkweigh.sources.pin import verify
from checkweigh.usecases.gate.arms.open_engine import engine_spec

HERE = Path(__file__).resolve().parent
FACTORS = (0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0)
MOCK = MockKnobs(slots=8, first_ms=20, token_ms=20, reply_tokens=8)
KEPT = 0.9
# One tier is offered, so that nothing is kept free for the others.
LIMITS = (
    "admission: {tiers: {interactive: {reserve: 0.0}, bulk: {reserve: 0.0}, "
    "standard: {queue: %d, deadline_s: %.2f, age_s: 60.0}}}\n"
)
Point = dict[str, float]


async def offer(url: str, model: str, rate: float, seconds: float, tokens: int, slo_s: float) -> Point:
    """One point of the curve."""
    key = os.environ.get("OVERLOAD_KEY", "")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    took: list[tuple[int, float]] = []

    async def one(session: aiohttp.ClientSession, i: int, due: float) -> None:
        body = {"model": model, "messages": [{"role": "user", "content": f"box {i}"}], "max_tokens": tokens}
        status = 0
        try:
            async with session.post(url + "/chat/completions", json=body) as answer:
                await answer.read()
                status = answer.status
        except (aiohttp.ClientError, TimeoutError):
            pass
        took.append((status, time.monotonic() - due))

    timeout = aiohttp.ClientTimeout(total=max(60.0, 10 * slo_s))
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout, headers=headers) as session:
        start, tasks = time.monotonic() + 0.1, []
        for i in range(int(rate * seconds)):
            due = start + i / rate
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            tasks.append(asyncio.ensure_future(one(session, i, due)))
        await asyncio.gather(*tasks)
    good = sum(status == 200 and seconds_ <= slo_s for status, seconds_ in took)
    shed = [seconds_ for status, seconds_ in took if status in (429, 503)]
    return {
        "offered_s": rate, "goodput_s": good / seconds, "share": good / len(took), "shed": len(shed) / len(took),
        "shed_p99_ms": 1e3 * sorted(shed)[int(0.99 * len(shed))] if shed else 0.0,
    }  # fmt: skip


@contextmanager
def guard(engine: str, model: str, slots: int, slo_s: float, capacity: float, folder: Path) -> Iterator[str]:
    """The guard, its queue no longer than what can be served within the SLO."""
    limits = folder / "guard.yaml"
    limits.write_text(LIMITS % (max(1, int(0.4 * slo_s * capacity)), 0.5 * slo_s))
    command = [sys.executable, str(HERE / "guarded.py"), engine, model, str(slots), str(limits)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    try:
        url = str(json.loads(process.stdout.readline())["url"])
        time.sleep(2)
        yield url
    finally:
        process.terminate()
        process.wait(20)
        process.stdout.close()


def curve(url: str, model: str, capacity: float, seconds: float, tokens: int, slo_s: float) -> list[Point]:
    """All points, with a pause between so that what waits inside is gone."""
    found = []
    for factor in FACTORS:
        found.append(asyncio.run(offer(url, model, factor * capacity, seconds, tokens, slo_s)))
        print(json.dumps({"url": url, "factor": factor} | found[-1]), file=sys.stderr)
        time.sleep(1)
    return found


def plot(curves: dict[str, list[Point]], capacity: float) -> str:
    """The two curves, in a file of their own that needs no stylesheet of ours."""
    width, height, left, bottom = 640.0, 360.0, 60.0, 310.0
    most = max(p["offered_s"] for points in curves.values() for p in points)
    top = 1.15 * max(capacity, max(p["goodput_s"] for points in curves.values() for p in points))

    def at(point: Point) -> tuple[float, float]:
        return left + point["offered_s"] / most * (width - left - 20), bottom - point["goodput_s"] / top * (
            bottom - 20
        )

    parts = [line(left, bottom, width - 20, bottom, "axis"), line(left, 20, left, bottom, "axis")]
    parts += [path([at(p) for p in points], name.replace(" ", "-")) for name, points in curves.items()]
    parts += [
        label(at(points[-1])[0] - 4, at(points[-1])[1] - 6, name, anchor="end")
        for name, points in curves.items()
    ]
    parts += [
        label(width / 2, height - 15, "offered requests/s", anchor="middle"),
        label(left, 14, "goodput/s"),
    ]
    parts += [
        label(left + f * capacity / most * (width - left - 20), bottom + 16, f"{f:g}x", anchor="middle")
        for f in FACTORS
        if f != 0.75  # no room for it
    ]
    style = (
        ".axis{stroke:#888}polyline{fill:none;stroke-width:2}.guarded{stroke:#1a7f37}.unguarded{stroke:#cf222e}"
        "text{font:12px sans-serif;fill:#555}"
    )
    attributes: dict[str, Any] = {
        "xmlns": "http://www.w3.org/2000/svg",
        "viewBox": f"0 0 {width:g} {height:g}",
    }
    return str(el("svg", el("style", style), *parts, **attributes)) + "\n"


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each point")
    parser.add_argument("--vllm", type=Path, metavar="MANIFEST")
    parser.add_argument("--out", type=Path, default=HERE / "overload.json")
    given = parser.parse_args()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as name:
        found = (
            on_vllm(given.vllm, given.seconds, Path(name))
            if given.vllm
            else on_mock(given.seconds, Path(name))
        )
    kept = kept_beyond(found["guarded"])
    result = found | {
        "kept": kept,
        "load_average": load,
        "hardware": host_facts.hardware(),
        "at": host_facts.now(),
    }
    given.out.write_text(json.dumps(result, indent=2) + "\n")
    given.out.with_suffix(".svg").write_text(
        plot({k: found[k] for k in ("guarded", "unguarded")}, found["capacity_s"])
    )
    print(json.dumps({"kept": kept, "capacity_s": found["capacity_s"]}))
    return 0 if kept >= KEPT else 1


def kept_beyond(points: list[Point]) -> float:
    """The least goodput beyond the capacity, as a share of the best at or below it: of the curve's knee."""
    sides: dict[bool, list[float]] = {False: [], True: []}
    for factor, point in zip(FACTORS, points, strict=True):
        sides[factor > 1].append(point["goodput_s"])
    return min(sides[True]) / max(sides[False])


def on_mock(seconds: float, folder: Path) -> dict[str, Any]:
    """Its capacity is what its knobs say."""
    capacity, slo_s = MOCK.slots / (1e-3 * (MOCK.first_ms + 7 * MOCK.token_ms)), 1.0
    with in_process(MOCK) as engine:
        url = engine.endpoint.url
        with guard(url, "mock", MOCK.slots, slo_s, capacity, folder) as guarded:
            first = curve(guarded, "mock", capacity, seconds, 8, slo_s)
        second = curve(url, "mock", capacity, seconds, 8, slo_s)
    return {"engine": "mock", "capacity_s": capacity, "slo_s": slo_s, "guarded": first, "unguarded": second}


def on_vllm(manifest: Path, seconds: float, folder: Path) -> dict[str, Any]:
    """Capacity: what 16 clients without pause get; the SLO: four times a reply's time then."""
    with open_engine(engine_spec(verify(manifest)), log=folder / "engine.log") as engine:
        endpoint = engine.endpoint  # type: ignore[attr-defined]
        os.environ["OVERLOAD_KEY"] = endpoint.key
        point = asyncio.run(offer(endpoint.url, endpoint.model, 16.0, 5.0, 16, 60.0))
        capacity = max(1.0, 0.8 * point["goodput_s"])
        slo_s = 4 * 16 / capacity
        with guard(endpoint.url, endpoint.model, 16, slo_s, capacity, folder) as guarded:
            first = curve(guarded, endpoint.model, capacity, seconds, 16, slo_s)
        second = curve(endpoint.url, endpoint.model, capacity, seconds, 16, slo_s)
    return {
        "engine": manifest.stem,
        "capacity_s": capacity,
        "slo_s": slo_s,
        "guarded": first,
        "unguarded": second,
    }


if __name__ == "__main__":
    sys.exit(main())
