"""The load generator against a mock server that it cannot saturate: how late it sends, and what it adds to a request.

Poisson arrivals at 200 requests/s, each reply of 8 tokens with its first after 20 ms and one more every 2 ms. The mock
runs in a process of its own on the same cores. Lateness: moment of sending minus scheduled moment. Overhead: median
time of a request minus the mock's own 34 ms; it holds the mock's scheduling too, the same for every client. With
--aiperf PATH, aiperf sends as many requests at the same rate to the same mock, in alternation. PATH is the command of
an installation of its own, which also needs --tokenizer FOLDER.

    python benchmarks/load_generator.py [--rounds 3] [--aiperf PATH --tokenizer FOLDER] [--out FILE]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from checkweigh.engines.http.client import (
    Client,
    Endpoint,
    Streamed,
    StreamRequest,
)
from checkweigh.engines.mock.mock_knobs import MockKnobs
from checkweigh.engines.mock.serve import in_process
from checkweigh.measure import host_facts
from checkweigh.measure.arrivals import PlannedRequest, PromptSupply, plan_block
from checkweigh.measure.load_pairs import punctual
from checkweigh.measure.open_loop import OfferedBlock, offer
from checkweigh.records.evalset import Message
from checkweigh.records.load_spec import Load, Objective, Poisson
from checkweigh.records.policy import Timing

ROOT = Path(__file__).resolve().parents[1]
RATE, REQUESTS, TOKENS = 200.0, 2000, 8
KNOBS = MockKnobs(first_ms=20.0, token_ms=2.0, reply_tokens=TOKENS)
NOMINAL_MS = KNOBS.first_ms + (TOKENS - 1) * KNOBS.token_ms
PROMPT = "weigh this box against the standard and say what it is worth"
LIMIT_MS = 5.0


def ours(endpoint: Endpoint, seed: int) -> dict[str, float]:
    """One round of our generator."""
    load = Load(arrivals=Poisson(kind="poisson", rate=RATE), slo=Objective(e2e=1.0), timeout=30)
    timing = Timing(requests=REQUESTS, output_tokens=TOKENS, load=load)
    plan = plan_block(
        load, timing, PromptSupply(conversations=[(Message(role="user", content=PROMPT),)]), 0, seed
    )

    async def work() -> OfferedBlock:
        async with Client(endpoint) as client:

            async def stream(planned: PlannedRequest) -> Streamed:
                return await client.stream(
                    StreamRequest(id=planned.id, messages=planned.messages, max_tokens=TOKENS)
                )

            return await offer(stream, plan, load, exact=True)

    before = resource.getrusage(resource.RUSAGE_SELF)
    with punctual():
        found = asyncio.run(work())
    used = _cpu(resource.getrusage(resource.RUSAGE_SELF)) - _cpu(before)
    late = np.array(found.lateness) * 1000
    ended = [o.ended for o in found.outcomes if o.ended is not None and not o.failure]
    sent = [(o.ended or 0) - (o.late or 0) for o in found.outcomes if not o.failure]
    return {
        "answered": len(ended), "late_p50_ms": float(np.quantile(late, 0.5)),
        "late_p99_ms": float(np.quantile(late, 0.99)), "late_max_ms": float(late.max()),
        "request_p50_ms": 1000 * statistics.median(sent),
        "overhead_p50_ms": 1000 * statistics.median(sent) - NOMINAL_MS, "cpu_ms_a_request": 1000 * used / REQUESTS,
    }  # fmt: skip


def aiperf(command: Path, tokenizer: Path, endpoint: Endpoint, seed: int) -> dict[str, float]:
    """One round of aiperf; its CPU time is that of all its processes, start-up included.

    A folder that is not named by a relative path is taken for a repository of the hub.
    """
    with tempfile.TemporaryDirectory() as folder:
        prompts = Path(folder) / "prompts.jsonl"
        prompts.write_text((json.dumps({"text": PROMPT}) + "\n") * 10)
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        words = (
            f"profile --model {endpoint.model} --url {endpoint.root} --endpoint-type chat --streaming --ui none "
            f"--request-rate {RATE:g} --arrival-pattern poisson --request-count {REQUESTS} --random-seed {seed} "
            f"--custom-dataset-type single_turn --extra-inputs max_tokens:{TOKENS} --use-server-token-count"
        ).split()
        more = ["--input-file", str(prompts), "--artifact-dir", folder, "--tokenizer", f"./{tokenizer.name}"]
        subprocess.run(
            [str(command.absolute()), *words, *more],
            check=True, capture_output=True, timeout=300, cwd=tokenizer.absolute().parent,
        )  # fmt: skip
        used = _cpu(resource.getrusage(resource.RUSAGE_CHILDREN)) - _cpu(before)
        report = json.loads(next(Path(folder).rglob("profile_export_aiperf.json")).read_text())
    latency = float(report["request_latency"]["p50"])
    return {
        "answered": float(report["request_count"]["avg"]), "request_p50_ms": latency,
        "overhead_p50_ms": latency - NOMINAL_MS, "cpu_ms_a_request": 1000 * used / REQUESTS,
    }  # fmt: skip


def _cpu(usage: resource.struct_rusage) -> float:
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--aiperf", type=Path)
    parser.add_argument("--tokenizer", type=Path, help="a folder with a tokenizer, which aiperf wants")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/load_generator.json")
    options = parser.parse_args()
    rounds: dict[str, list[dict[str, Any]]] = {"checkweigh": []} | ({"aiperf": []} if options.aiperf else {})
    with in_process(KNOBS) as mock:
        ours(mock.endpoint, 0)  # connections, caches, imports
        for seed in range(1, options.rounds + 1):
            rounds["checkweigh"].append(ours(mock.endpoint, seed))
            print(rounds["checkweigh"][-1], flush=True)
            if options.aiperf:
                rounds["aiperf"].append(aiperf(options.aiperf, options.tokenizer, mock.endpoint, seed))
                print(rounds["aiperf"][-1], flush=True)
            time.sleep(1.0)
    worst = statistics.median(row["late_p99_ms"] for row in rounds["checkweigh"])
    result = {
        "what": "open-loop load on a mock server", "rate": RATE, "requests": REQUESTS, "nominal_ms": NOMINAL_MS,
        "load_average": os.getloadavg()[0], "late_p99_ms": worst, "limit_ms": LIMIT_MS, "holds": worst <= LIMIT_MS,
        "rounds": rounds, "provenance": host_facts.provenance_of_tree(host_facts.now()).model_dump(mode="json"),
    }  # fmt: skip
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(f"p99 lateness {worst:.2f} ms (median of {options.rounds} rounds), at most {LIMIT_MS:g} wanted")
    raise SystemExit(0 if result["holds"] else 1)


if __name__ == "__main__":
    main()
