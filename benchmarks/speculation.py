"""Prompt lookup against plain greedy decoding: forks, acceptance length and time per output token.

On items of evalsets/answers, evenly spread over the set, with the shipped prompt-lookup manifest:
- float32, one reply at a time: how many texts fork, and the logits between the two likeliest tokens at each fork;
- bfloat16: how many texts fork, beside the same model with nothing changed but the batch (1 row and 16 rows);
- seconds per output token of whole replies (prompt included), plain and speculating in alternation.

    python benchmarks/speculation.py [--items 40] [--rounds 2] [--out benchmarks/speculation.json]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from checkweigh.engines.hf import generate, speculative
from checkweigh.engines.hf.backend import TransformersBackend
from checkweigh.engines.hf.generate import GrowingReply
from checkweigh.engines.spec import EngineSpec
from checkweigh.measure import host_facts
from checkweigh.records.evalset import Generation
from checkweigh.sources.evalsets.load_evalset import load_evalset
from checkweigh.sources.pin import Resolved, verify

ROOT = Path(__file__).resolve().parents[1]
Complete = Callable[[list[GrowingReply]], None]


def backend_of(resolved: Resolved, dtype: str) -> TransformersBackend:
    """The pinned deployable in another dtype, in this process."""
    engine = resolved.manifest.engine.model_copy(update={"dtype": dtype})
    spec = EngineSpec(
        manifest=resolved.manifest.model_copy(update={"engine": engine}), model_dir=resolved.model_dir,
        tokenizer_dir=resolved.tokenizer_dir, chat_template=resolved.chat_template,
    )  # fmt: skip
    return TransformersBackend(spec)


def ways(backend: TransformersBackend) -> dict[str, Complete]:
    """Plain and speculating, of one loaded model."""
    sampling, speculator = backend.manifest.sampling, backend.speculator
    assert speculator is not None

    def plain(part: list[GrowingReply]) -> None:
        generate.generate(backend.loaded, part, sampling, time.monotonic())

    def speculating(part: list[GrowingReply]) -> None:
        speculative.generate(backend.loaded, speculator, part, sampling.stop, time.monotonic())

    return {"plain": plain, "speculating": speculating}


def new(backend: TransformersBackend, prompts: Sequence[tuple[int, ...]]) -> list[GrowingReply]:
    room = backend.manifest.sampling.max_tokens
    return [GrowingReply(id=str(i), prompt=p, room=room, exact=False) for i, p in enumerate(prompts)]


def alternate(
    backend: TransformersBackend, prompts: Sequence[tuple[int, ...]], rounds: int
) -> tuple[dict[str, list[GrowingReply]], dict[str, list[float]]]:
    """Replies of both ways, and seconds per output token: each item's median over the rounds.

    Both ways answer an item directly after one another; who is first changes from item to item and from round to
    round. The end's own token is computed as well, and counted.
    """
    found: dict[str, list[GrowingReply]] = {}
    seconds: dict[str, list[list[float]]] = {name: [[] for _ in prompts] for name in ways(backend)}
    for turn in range(rounds):
        found = {name: new(backend, prompts) for name in ways(backend)}
        for i in range(len(prompts)):
            order = list(ways(backend).items())
            for name, complete in order if (i + turn) % 2 == 0 else order[::-1]:
                reply = found[name][i]
                started = time.monotonic()
                complete([reply])
                took = time.monotonic() - started
                seconds[name][i].append(took / (len(reply.tokens) + (reply.finish == "stop")))
    return found, {name: [statistics.median(s) for s in rows] for name, rows in seconds.items()}


def gaps(
    backend: TransformersBackend, one: Sequence[GrowingReply], other: Sequence[GrowingReply]
) -> list[float]:
    """At each fork, the logits between the two likeliest tokens, computed without a cache."""
    found = []
    for a, b in zip(one, other, strict=True):
        pairs = zip([*a.tokens, None], [*b.tokens, None], strict=False)
        at = next((i for i, (x, y) in enumerate(pairs) if x != y), None)
        if at is not None:
            logits = backend.loaded.model(torch.tensor([[*a.prompt, *a.tokens[:at]]])).logits[0, -1]
            first, second = logits.float().topk(2).values.tolist()
            found.append(round(float(first - second), 5))
    return found


def counted(replies: Sequence[GrowingReply]) -> dict[str, float]:
    counts = [reply.speculated for reply in replies if reply.speculated is not None]
    forwards, drafted, accepted = (
        sum(getattr(c, name) for c in counts) for name in ("forwards", "drafted", "accepted")
    )
    length = round(1 + accepted / forwards, 3)
    return {"forwards": forwards, "drafted": drafted, "accepted": accepted, "acceptance_length": length}


def timed(seconds: dict[str, list[float]]) -> dict[str, float]:
    """Milliseconds per output token, medians over the items, and the median of the items' own ratios."""
    ratios = [s / p for p, s in zip(seconds["plain"], seconds["speculating"], strict=True)]
    found = {f"{name}_ms_per_token": round(1000 * statistics.median(v), 2) for name, v in seconds.items()}
    found["speculating_over_plain"] = round(statistics.median(ratios), 3)
    found["share_of_items_faster"] = round(sum(r < 1 for r in ratios) / len(ratios), 3)
    return found


def measure(
    resolved: Resolved, prompts: Sequence[tuple[int, ...]], dtype: str, rounds: int
) -> dict[str, Any]:
    """Everything of one dtype."""
    backend = backend_of(resolved, dtype)
    with torch.inference_mode():
        found, seconds = alternate(backend, prompts, rounds)
        forks = gaps(backend, found["plain"], found["speculating"])
        report: dict[str, Any] = {
            "items": len(prompts), "output_tokens": sum(len(r.tokens) for r in found["plain"]),
            "forks": len(forks), "gaps_at_forks": forks, **counted(found["speculating"]), **timed(seconds),
        }  # fmt: skip
        if dtype != "float32":
            batched = new(backend, prompts)
            for at in range(0, len(batched), 16):
                ways(backend)["plain"](batched[at : at + 16])
            report["forks_plain_batch_1_against_16"] = len(gaps(backend, found["plain"], batched))
    report["load_average"] = round(
        os.getloadavg()[1], 2
    )  # of 5 minutes; above the engine's threads it was not alone
    return report


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--items", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    started = time.monotonic()
    resolved = verify(ROOT / "manifests" / "smollm2-135m-prompt-lookup.yaml")
    items = load_evalset(ROOT / "evalsets" / "answers").items
    picked = [items[i * len(items) // options.items] for i in range(options.items)]
    report: dict[str, Any] = {
        "manifest": resolved.manifest.name, "evalset": "answers", "rounds": options.rounds,
        "hardware": host_facts.hardware(),
        "speculative": resolved.manifest.engine.speculative and resolved.manifest.engine.speculative.model_dump(),
    }  # fmt: skip
    tokenizer = backend_of(resolved, "bfloat16")
    prompts = tokenizer.render([item.messages for item in picked if isinstance(item, Generation)])
    del tokenizer
    for dtype in ("float32", "bfloat16"):
        report[dtype] = measure(resolved, prompts, dtype, options.rounds)
        print(dtype, json.dumps(report[dtype]), flush=True)
    report["seconds"] = round(time.monotonic() - started, 1)
    options.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
