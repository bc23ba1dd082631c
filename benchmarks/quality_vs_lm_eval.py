"""Quality measured here and by lm-evaluation-harness: the same numbers, and the seconds of each.

The manifest's model in fp32, the same documents and choice items. lm-evaluation-harness runs as its
documentation says: ``simple_evaluate`` with an ``HFLM`` and the tasks in ``lm_eval_tasks/``, at the batch size
that is quickest for it on a slice. Timed of it is only what ``loglikelihood`` and ``loglikelihood_rolling``
take (tokenizing and the model); of Checkweigh all that measuring takes: planning, the child process, checking
every prompt, writing to the store. Loading is apart on both sides. Exits 1 when token ids, log-perplexity or
choices differ.

    pip install -c constraints.txt -e '.[engine,bench]' && python benchmarks/quality_vs_lm_eval.py
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any, cast

os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

import torch
import yaml
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM

from checkweigh import canonical
from checkweigh.decision.slices import Part
from checkweigh.engines.protocol import Engine, ItemFailure, ScoreRequest, ScoreResult
from checkweigh.engines.spec import EngineSpec
from checkweigh.measure import host_facts
from checkweigh.progress import no_progress
from checkweigh.records.evalset import Choice, EvalSet, Item
from checkweigh.sources.evalsets.load_evalset import find_evalset
from checkweigh.sources.pin import Resolved, verify
from checkweigh.store import Store
from checkweigh.usecases.gate.arms.arm_measurement import ArmMeasurement
from checkweigh.usecases.gate.arms.engine_session import EngineSession
from checkweigh.usecases.gate.arms.open_engine import open_protected

HERE = Path(__file__).resolve().parent
TASKS = {"prose": "checkweigh_prose", "choices": "checkweigh_choices"}
AIMS = {"prose": 1.0, "choices": 2.0}
SLICE = {"prose": 32, "choices": 12}  # items on which the batch sizes are tried, twice
BATCH_SIZES = (1, 4, 8, 16, 32)
NO_AUTO = "not tried: on a CPU its search begins with 64 windows of 2,048 tokens at once, 26 GB of logits"
TOLERANCE = 1e-3  # nats
THREADS = 2
PACKAGES = ("checkweigh", "lm_eval", "torch", "transformers", "tokenizers", "datasets", "numpy")


@dataclass(frozen=True)
class Scored:
    """One continuation as one side scored it: ids before it, its own ids, its log-probability in nats."""

    context: tuple[int, ...]
    ids: tuple[int, ...]
    logprob: float


Scores = list[list[Scored]]  # of each item in the set's order, of each of its continuations


class TimedHFLM(HFLM):  # type: ignore[misc]
    """HFLM with the seconds of its two scoring calls, and the ids it scored, in the order it was asked."""

    seconds = 0.0
    asked: list[tuple[tuple[int, ...], tuple[int, ...]]]

    def loglikelihood(self, *args: Any, **kwargs: Any) -> Any:
        """As HFLM, timed."""
        return self._timed(super().loglikelihood, args, kwargs)

    def loglikelihood_rolling(self, *args: Any, **kwargs: Any) -> Any:
        """As HFLM, timed."""
        return self._timed(super().loglikelihood_rolling, args, kwargs)

    def _timed(self, call: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        self.asked = []
        started = time.perf_counter()
        found = call(*args, **kwargs)
        self.seconds = time.perf_counter() - started
        return found

    def _loglikelihood_tokens(self, requests: Any, *args: Any, **kwargs: Any) -> Any:
        self.asked += [(tuple(context), tuple(ids)) for _, context, ids in requests]
        return super()._loglikelihood_tokens(requests, *args, **kwargs)


@dataclass
class Recorder:
    """An engine that keeps what it answered to ``score``."""

    engine: Engine
    results: dict[str, ScoreResult] = field(default_factory=dict)

    def __enter__(self) -> Recorder:
        self.engine = self.engine.__enter__()
        return self

    def score(self, batch: Sequence[ScoreRequest]) -> list[ScoreResult | ItemFailure]:
        """As the engine."""
        found = self.engine.score(batch)
        self.results |= {result.id: result for result in found if isinstance(result, ScoreResult)}
        return found

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)


@dataclass
class Here:
    """Checkweigh: one arm of a gate, its engine started, with a new store for each repeat."""

    session: EngineSession
    recorder: Recorder
    folder: Path
    load_seconds: float
    stores: int = 0

    def measure(self, evalset: EvalSet) -> tuple[float, Scores]:
        """Seconds and scores of a set that is not stored yet."""
        self.stores += 1
        self.recorder.results.clear()
        seconds = self.stored(evalset)
        self.session.read_files()  # stores it, with the engine still warm
        return seconds, [_of(self.recorder.results[item.id]) for item in evalset.items]

    def stored(self, evalset: EvalSet) -> float:
        """Seconds until the set's record is there: read, when it is in the store."""
        store = Store(self.folder / f"store{self.stores}")
        arm = ArmMeasurement(session=self.session, store=store, deadline=float("inf"))
        started = time.perf_counter()
        record = arm.measure(Part(evalset=evalset, look=1, of=1))
        seconds = time.perf_counter() - started
        if record is None or self.session.failures:
            raise SystemExit("quality_vs_lm_eval: the engine died; see the message above")
        return seconds


def _of(result: ScoreResult) -> list[Scored]:
    return [
        Scored(result.prompt_ids, c.token_ids, float(c.logprobs.astype("float64").sum()))
        for c in result.continuations
    ]


def start_here(resolved: Resolved, folder: Path) -> Here:
    """Checkweigh's arm, its engine loaded and warm."""
    recorders: list[Recorder] = []

    def launch(spec: EngineSpec, **options: Any) -> Engine:
        recorders.append(Recorder(open_protected(spec, **options)))
        return cast(Engine, recorders[-1])

    session = EngineSession(
        role="baseline", resolved=resolved, logs=folder, progress=no_progress, launch=launch
    )
    started = time.perf_counter()
    session.running()
    seconds = time.perf_counter() - started
    return Here(session, recorders[-1], folder, seconds)


@dataclass
class There:
    """lm-evaluation-harness: its model loaded."""

    lm: TimedHFLM
    folder: Path
    load_seconds: float

    def measure(self, name: str, evalset: EvalSet, batch_size: int) -> tuple[float, Scores]:
        """Seconds and scores of a set."""
        self.lm.batch_size_per_gpu = batch_size
        with redirect_stderr(io.StringIO()):  # a progress bar for every batch
            found = simple_evaluate(
                model=self.lm,
                tasks=[self._task(name, evalset.items)],
                apply_chat_template=name == "choices",
                bootstrap_iters=0,
                log_samples=True,
            )
        samples = sorted(found["samples"][TASKS[name]], key=lambda sample: sample["doc_id"])
        if [sample["doc"]["id"] for sample in samples] != [item.id for item in evalset.items]:
            raise SystemExit("quality_vs_lm_eval: lm-evaluation-harness ran other items")
        replies = [[_logprob(resp[0]) for resp in sample["resps"]] for sample in samples]
        asked = iter(self.lm.asked)
        scores = [[Scored(*next(asked), logprob) for logprob in reply] for reply in replies]
        if next(asked, None) is not None:
            raise SystemExit("quality_vs_lm_eval: a document was split into several windows")
        return self.lm.seconds, scores

    def _task(self, name: str, items: Sequence[Item]) -> dict[str, Any]:
        """The task in ``lm_eval_tasks/`` on these items."""
        rows = "".join(canonical.dumps(item.model_dump(mode="json")) + "\n" for item in items)
        path = self.folder / f"{name}-{len(items)}.jsonl"
        path.write_text(rows)
        task: dict[str, Any] = yaml.safe_load((HERE / "lm_eval_tasks" / f"{TASKS[name]}.yaml").read_text())
        cache = str(self.folder / "datasets")
        return {**task, "dataset_kwargs": {"data_files": {"test": str(path)}, "cache_dir": cache}}


def _logprob(reply: Any) -> float:
    """A log-likelihood: a number (rolling), or (number, is greedy)."""
    return float(reply[0] if isinstance(reply, tuple | list) else reply)


def start_there(resolved: Resolved, folder: Path) -> There:
    """lm-evaluation-harness's model, with the same files, dtype, threads and window."""
    torch.set_num_threads(THREADS)
    for name in ("lm_eval", "lm_eval.evaluator", "lm_eval.api.task"):
        logging.getLogger(name).setLevel(logging.ERROR)
    started = time.perf_counter()
    lm = TimedHFLM(
        pretrained=str(resolved.model_dir),
        tokenizer=str(resolved.tokenizer_dir),
        device="cpu",
        dtype="float32",
        max_length=resolved.manifest.limits.max_sequence,
        batch_size=1,
    )
    return There(lm, folder, time.perf_counter() - started)


def best_batch_size(there: There, name: str, evalset: EvalSet) -> tuple[int, dict[str, float]]:
    """lm-evaluation-harness's quickest batch size on a slice, and the least seconds of each in two rounds."""
    part = spread(evalset, SLICE[name])
    requests = sum(len(item.choices) if isinstance(item, Choice) else 1 for item in part.items)
    seconds: dict[int, float] = {}
    for size in (*BATCH_SIZES, *reversed(BATCH_SIZES)):
        if size <= requests:
            seconds[size] = min(there.measure(name, part, size)[0], seconds.get(size, float("inf")))
    return min(seconds, key=seconds.__getitem__), {str(size): round(s, 2) for size, s in seconds.items()}


def spread(evalset: EvalSet, limit: int | None) -> EvalSet:
    """At most ``limit`` items, evenly from the whole set."""
    count = len(evalset.items)
    if limit is None or limit >= count:
        return evalset
    picked = tuple(evalset.items[i * count // limit] for i in range(limit))
    return evalset.model_copy(update={"items": picked})


def compare_prose(here: Scores, there: Scores) -> dict[str, Any]:
    """Ids, log-perplexity in all, and the largest difference of a document."""
    pairs = [(a[0], b[0]) for a, b in zip(here, there, strict=True)]
    tokens = sum(len(a.ids) for a, _ in pairs)
    mine, theirs = (-sum(pair[side].logprob for pair in pairs) / tokens for side in (0, 1))
    worst = max(abs(a.logprob - b.logprob) / len(a.ids) for a, b in pairs)
    other_ids = sum((a.context, a.ids) != (b.context, b.ids) for a, b in pairs)
    return {
        "documents": len(pairs), "tokens": tokens,
        "prefix_ids": sorted({i for a, _ in pairs for i in a.context}),
        "documents_with_other_ids": other_ids,
        "log_perplexity": {"checkweigh": mine, "lm_eval": theirs, "difference": mine - theirs},
        "max_difference_of_a_document_nats_per_token": worst,
        "equal": other_ids == 0 and abs(mine - theirs) <= TOLERANCE and worst <= TOLERANCE,
    }  # fmt: skip


def compare_choices(items: Sequence[Choice], here: Scores, there: Scores) -> dict[str, Any]:
    """Ids, and the likeliest choice of every item.

    lm-evaluation-harness moves white space at the end of the prompt to the front of the continuation: prompt
    and continuation together must be the same ids, and the moved ids cost every choice of an item the same.
    """
    pairs = [pair for item in zip(here, there, strict=True) for pair in zip(*item, strict=True)]
    other_ids = sum(a.context + a.ids != b.context + b.ids for a, b in pairs)
    moved = Counter(len(b.ids) - len(a.ids) for a, b in pairs)
    offsets = [
        [b.logprob - a.logprob for a, b in zip(*item, strict=True)] for item in zip(here, there, strict=True)
    ]
    tops = [(item, _top(a), _top(b)) for item, a, b in zip(items, here, there, strict=True)]
    disagreements = [
        {"item": item.id, "checkweigh": a[0], "lm_eval": b[0], "gaps": [a[1], b[1]]}
        for item, a, b in tops
        if a[0] != b[0]
    ]
    beyond = [d for d in disagreements if min(cast(list[float], d["gaps"])) >= TOLERANCE]
    return {
        "items": len(items), "continuations": len(pairs), "tokens": sum(len(a.ids) for a, _ in pairs),
        "prompt_and_continuation_tokens": sum(len(a.context + a.ids) for a, _ in pairs),
        "continuations_with_other_ids": other_ids,
        "ids_moved_from_prompt_to_continuation": {str(k): n for k, n in sorted(moved.items())},
        "max_difference_between_choices_of_an_item_nats": max(max(o) - min(o) for o in offsets),
        "accuracy": {
            "checkweigh": sum(a[0] == item.answer for item, a, _ in tops) / len(items),
            "lm_eval": sum(b[0] == item.answer for item, _, b in tops) / len(items),
        },
        "disagreements": disagreements, "disagreements_beyond_near_ties": len(beyond),
        "smallest_top_two_gap": min(a[1] for _, a, _ in tops),
        "equal": other_ids == 0 and len(set(moved)) == 1 and not beyond,
    }  # fmt: skip


def _top(scores: Sequence[Scored]) -> tuple[int, float]:
    """The likeliest choice and how far it is before the second, nats."""
    order = sorted(range(len(scores)), key=lambda i: -scores[i].logprob)
    return order[0], scores[order[0]].logprob - scores[order[1]].logprob


def race(
    name: str, evalset: EvalSet, here: Here, there: There, repeats: int, batch_size: int | None
) -> dict[str, Any]:
    """One set on both sides, in alternating order: are they equal, and how long did each take."""
    there.measure(name, spread(evalset, 2), 1)  # warm
    here.measure(spread(evalset, 2))
    tried: dict[str, float] = {}
    if batch_size is None:
        batch_size, tried = best_batch_size(there, name, evalset)
    mine: list[tuple[float, Scores]] = []
    theirs: list[tuple[float, Scores]] = []
    for repeat in range(repeats):
        for side in ("here", "there") if repeat % 2 == 0 else ("there", "here"):
            if side == "here":
                mine.append(here.measure(evalset))
            else:
                theirs.append(there.measure(name, evalset, batch_size))
        print(f"{name} {repeat + 1}: {mine[-1][0]:.1f} s here, {theirs[-1][0]:.1f} s lm_eval", flush=True)
    read = [here.stored(evalset) for _ in range(5)]
    if name == "prose":
        found = compare_prose(mine[0][1], theirs[0][1])
    else:
        found = compare_choices([i for i in evalset.items if isinstance(i, Choice)], mine[0][1], theirs[0][1])
    return {
        "digest": evalset.card.digest, **found,
        "lm_eval_batch_size": {"chosen": batch_size, "seconds_on_a_slice": tried, "auto": NO_AUTO},
        **_times([s for s, _ in mine], [s for s, _ in theirs], read, AIMS[name]),
    }  # fmt: skip


def _times(mine: list[float], theirs: list[float], read: list[float], aim: float) -> dict[str, Any]:
    ratio = median(theirs) / median(mine)
    each = [b / a for a, b in zip(mine, theirs, strict=True)]
    return {
        "seconds": {"checkweigh": mine, "lm_eval": theirs},
        "ratio": {"of_medians": ratio, "of_each_repeat": each, "aim": aim, "reached": ratio >= aim},
        "stored_baseline": {
            "read_seconds": median(read),
            "times_quicker_than_measuring": median(mine) / median(read),
        },
    }


def fp32(resolved: Resolved) -> Resolved:
    """The same model, served in float32 on two threads."""
    engine = resolved.manifest.engine.model_copy(update={"dtype": "float32", "threads": THREADS})
    manifest = resolved.manifest.model_copy(update={"engine": engine})
    pins = resolved.pins.model_copy(update={"manifest": canonical.digest(manifest.settings())})
    return replace(resolved, manifest=manifest, pins=pins)


def report(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The whole benchmark."""
    sets = {name: spread(find_evalset(name, [HERE.parent / "evalsets"]), arguments.limit) for name in TASKS}
    load_before = os.getloadavg()
    resolved = fp32(verify(arguments.manifest))
    here = start_here(resolved, folder)
    try:
        there = start_there(resolved, folder)
        found = {
            name: race(name, sets[name], here, there, arguments.repeats, arguments.batch_size)
            for name in arguments.sets
        }
    finally:
        here.session.close()
    engine = resolved.manifest.engine
    return {
        "date": host_facts.now(), "hardware": host_facts.hardware(), "load_average": [load_before, os.getloadavg()],
        "versions": {name: metadata.version(name) for name in PACKAGES},
        "model": {"manifest": resolved.manifest.name, "dtype": engine.dtype, "threads": engine.threads},
        "limit": arguments.limit, "repeats": arguments.repeats, "tolerance_nats": TOLERANCE,
        "load_seconds": {"checkweigh": here.load_seconds, "lm_eval": there.load_seconds},
        **found,
    }  # fmt: skip


def say(name: str, found: Mapping[str, Any]) -> str:
    """One set in a line."""
    seconds, ratio, stored = found["seconds"], found["ratio"], found["stored_baseline"]
    return (
        f"{name}: {'equal' if found['equal'] else 'NOT EQUAL'}; {median(seconds['checkweigh']):.1f} s here, "
        f"{median(seconds['lm_eval']):.1f} s lm_eval: {ratio['of_medians']:.2f}x (aim {ratio['aim']:g}x); "
        f"from the store {stored['read_seconds']:.3f} s"
    )


def main() -> int:
    """Exit code 0 when both sides found the same."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--limit", type=int, metavar="N", help="only N items of each set, evenly spread")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--batch-size", type=int, metavar="N", help="of lm_eval; found by trying if absent")
    parser.add_argument("--sets", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--manifest", type=Path, default=HERE.parent / "manifests" / "smollm2-135m.yaml")
    parser.add_argument("--out", type=Path, default=HERE / "quality_vs_lm_eval.json")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = report(arguments, Path(folder))
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    for name in arguments.sets:
        print(say(name, result[name]))
    return 0 if all(result[name]["equal"] for name in arguments.sets) else 1


if __name__ == "__main__":
    sys.exit(main())
