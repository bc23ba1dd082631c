"""Tokens a second that our client reaches on a running vLLM server, against vLLM's own ``bench serve``.

One server of manifests/smollm2-135m-vllm.yaml with its prefix cache off; the same prompts of evalsets/answers through
/v1/completions, the same concurrency, replies of the same exact length. Both clients run in turns, the first of each
turn alternating; each reports output tokens over the seconds from the first request to the last token. The ratio of
each turn (ours / theirs) is one datum: their median, with the exact binomial interval of a median.

    python benchmarks/vllm_throughput.py [--turns 7] [--requests 64] [--tokens 32] [--concurrency 16]
        [--out benchmarks/vllm_throughput.json]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import pandas
from scipy.stats import binom

from checkweigh.engines.http.batches import SizedSemaphore, gather_all
from checkweigh.engines.http.client import (
    VLLM_IDS,
    Client,
    Endpoint,
    StreamRequest,
)
from checkweigh.engines.vllm.engine import VllmEngine
from checkweigh.engines.vllm.server_launch import preflight
from checkweigh.files import write_atomic
from checkweigh.measure import host_facts
from checkweigh.progress import no_progress
from checkweigh.records.evalset import Generation
from checkweigh.records.manifest import VllmArgs
from checkweigh.sources.evalsets.load_evalset import load_evalset
from checkweigh.sources.pin import verify
from checkweigh.usecases.gate.arms.open_engine import engine_spec

ROOT = Path(__file__).resolve().parents[1]
BENCH = (
    "import argparse; from vllm.benchmarks.serve import add_cli_args, main; p = argparse.ArgumentParser(); "
    "add_cli_args(p); main(p.parse_args())"
)
PANDAS = (
    "pandas",
    "pandas.libs",
    "dateutil",
    "six.py",
    "pytz",
    "tzdata",
)  # bench serve reads prompts with it


def prompts(count: int) -> list[str]:
    """The last messages of evenly spread items, each told apart by its number."""
    items = [
        i for i in load_evalset(ROOT / "evalsets" / "answers", no_progress).items if isinstance(i, Generation)
    ]
    picked = [items[at * len(items) // count] for at in range(count)]
    return [f"{at}. {item.messages[-1].content}" for at, item in enumerate(picked)]


async def _ours(endpoint: Endpoint, asked: list[StreamRequest], concurrency: int) -> float:
    room = SizedSemaphore(concurrency)

    async def one(client: Client, request: StreamRequest) -> int:
        async with room.take(1):
            return (await client.stream(request)).tokens

    async with Client(endpoint) as client:
        started = time.monotonic()
        tokens = await gather_all([one(client, request) for request in asked])
        return sum(tokens) / (time.monotonic() - started)


def theirs(
    python: Path, endpoint: Endpoint, folder: Path, data: Path, options: argparse.Namespace, tokenizer: Path
) -> float:
    """Output tokens a second as ``bench serve`` reports them."""
    result = folder / "theirs.json"
    result.unlink(missing_ok=True)
    ours = Path(pandas.__file__).parents[1]
    for name in PANDAS:  # the engine's environment is locked, and has none
        if (ours / name).exists() and not (folder / name).exists():
            (folder / name).symlink_to(ours / name)
    ran = subprocess.run(
        [python, "-c", BENCH, "--backend", "openai", "--base-url", endpoint.root, "--endpoint", "/v1/completions",
         "--model", endpoint.model, "--tokenizer", tokenizer, "--dataset-name", "custom", "--dataset-path", data,
         "--custom-output-len", str(options.tokens), "--skip-chat-template", "--disable-shuffle",
         "--num-prompts", str(options.requests), "--max-concurrency", str(options.concurrency), "--ignore-eos",
         "--temperature", "0", "--disable-tqdm", "--save-result", "--result-dir", folder, "--result-filename",
         result.name],
        env={**os.environ, "OPENAI_API_KEY": endpoint.key or "", "HF_HUB_OFFLINE": "1",
             "PYTHONPATH": str(folder)},
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, timeout=300, text=True,
    )  # fmt: skip
    if ran.returncode:
        raise SystemExit(f"bench serve failed:\n{ran.stderr[-2000:]}")
    found = json.loads(result.read_text())
    if (
        found["completed"] != options.requests
        or found["total_output_tokens"] != options.requests * options.tokens
    ):
        raise SystemExit(
            f"bench serve answered {found['completed']} requests, {found['total_output_tokens']} tokens"
        )
    return float(found["output_throughput"])


def interval(values: list[float]) -> tuple[float, float, float]:
    """(lowest, highest, coverage): order statistics that hold the median with at least 90% where n allows it."""
    ordered, n = sorted(values), len(values)
    drop = max((k for k in range(n // 2) if 1 - 2 * binom.cdf(k, n, 0.5) >= 0.9), default=0)
    return ordered[drop], ordered[n - 1 - drop], float(1 - 2 * binom.cdf(drop, n, 0.5))


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser()
    for name, value in (("turns", 7), ("requests", 64), ("tokens", 32), ("concurrency", 16)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "vllm_throughput.json")
    options = parser.parse_args()
    resolved = verify(ROOT / "manifests" / "smollm2-135m-vllm.yaml")
    args = (resolved.manifest.engine.args or VllmArgs()).model_copy(update={"prefix_caching": False})
    engine = resolved.manifest.engine.model_copy(update={"args": args})
    spec = engine_spec(resolved)
    spec = type(spec)(
        manifest=spec.manifest.model_copy(update={"engine": engine}), model_dir=spec.model_dir,
        tokenizer_dir=spec.tokenizer_dir, chat_template=spec.chat_template, lock=spec.lock, packages=spec.packages,
    )  # fmt: skip
    texts = prompts(options.requests)
    rows: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as name, VllmEngine(spec, log=Path(name) / "log") as server:
        folder, data = Path(name), Path(name) / "prompts.jsonl"
        data.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
        renderer = server._batches.renderer
        asked = [
            StreamRequest(
                id=str(i),
                prompt_ids=renderer.encode(text),
                max_tokens=options.tokens,
                exact=True,
                extra=VLLM_IDS,
            )
            for i, text in enumerate(texts)
        ]
        python = preflight(spec)
        clients = {
            "ours": lambda: asyncio.run(_ours(server.endpoint, asked, options.concurrency)),
            "theirs": lambda: theirs(python, server.endpoint, folder, data, options, spec.tokenizer_dir),
        }
        clients["ours"]()  # the first full load of a server is slower
        for turn in range(options.turns):
            order = ("ours", "theirs") if turn % 2 == 0 else ("theirs", "ours")
            rows.append({who: clients[who]() for who in order})
            print(turn, {k: round(v, 1) for k, v in rows[-1].items()}, flush=True)
    ratios = [row["ours"] / row["theirs"] for row in rows]
    low, high, coverage = interval(ratios)
    result = {
        "settings": {k: v for k, v in vars(options).items() if k != "out"}, "hardware": host_facts.hardware(),
        "tokens_per_second": rows, "median": {k: statistics.median(r[k] for r in rows) for k in ("ours", "theirs")},
        "ratio": {"median": statistics.median(ratios), "low": low, "high": high, "coverage": coverage},
        "provenance": host_facts.provenance_of_tree(host_facts.now()).model_dump(mode="json"),
    }  # fmt: skip
    write_atomic(options.out, (json.dumps(result, indent=1) + "\n").encode())
    print(json.dumps(result["ratio"]))


if __name__ == "__main__":
    main()
