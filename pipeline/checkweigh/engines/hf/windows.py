"""Raw text longer than the context, scored in windows.

Window k holds the prefix token and the text's tokens from k * stride on, as many as the limit allows. Every token is
scored once, in the first window that holds it: after the first window each token sees at least limit - 1 - stride
tokens before it. A small stride costs limit / stride times the work. (The strided sliding window of transformers'
guide to perplexity; there without a prefix token in later windows, here with it, as in every other text.)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from checkweigh.engines.hf.score import ScoreTask
from checkweigh.engines.protocol import Continuation


@dataclass(frozen=True, slots=True)
class Window:
    """One window; its first ``seen`` tokens were scored in earlier ones."""

    task: ScoreTask
    seen: int


def cut_windows(task: ScoreTask, limit: int, stride: int | None) -> list[Window]:
    """The task itself when it fits into ``limit`` tokens or no stride is given; else it is one raw text."""
    if stride is None or len(task.prompt) != 1 or len(task.continuations[0]) < limit:
        return [Window(task, 0)]
    return list(_cut(task, limit - 1, stride))


def _cut(task: ScoreTask, room: int, stride: int) -> Iterator[Window]:
    (ids,) = task.continuations
    done = start = 0
    while done < len(ids):
        end = min(start + room, len(ids))
        yield Window(ScoreTask(task.prompt, (ids[start:end],), task.top_k), done - start)
        done, start = end, start + stride


def join_windows(task: ScoreTask, parts: Sequence[tuple[Window, list[Continuation]]]) -> list[Continuation]:
    """The continuations of a task from those of its windows."""
    if len(parts) == 1:
        return parts[0][1]

    def all_of(name: str) -> Any:
        rows = [getattr(continuation, name) for _, (continuation,) in parts]
        if any(row is None for row in rows):
            return None
        return np.concatenate([row[window.seen :] for row, (window, _) in zip(rows, parts, strict=True)])

    return [
        Continuation(
            token_ids=task.continuations[0], logprobs=all_of("logprobs"), top_ids=all_of("top_ids"),
            top_logprobs=all_of("top_logprobs"),
        )
    ]  # fmt: skip
