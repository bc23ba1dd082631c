"""Log-probabilities of continuations, with the context they share computed once.

One request is one row: its prompt, then its continuations one after the other, each without its last token
(which predicts nothing). An attention mask lets every continuation see the prompt and itself only, and its
positions start where the prompt ends, so that each is scored as if it stood alone. What all prompts of a call
begin with (a system message) is computed once for all rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from checkweigh.engines.hf.load_model import LoadedModel, Tensor
from checkweigh.engines.hf.shared_prefix import expand_cache, run_prefix, shared_length
from checkweigh.engines.host_memory import HEAD_ROWS
from checkweigh.engines.protocol import Continuation

Ids = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TokenRow:
    """A prompt and some of its request's continuations, as (index, ids)."""

    request: int
    prompt: Ids
    branches: tuple[tuple[int, Ids], ...]

    @property
    def length(self) -> int:
        """Tokens that are computed."""
        return len(self.prompt) + sum(len(ids) - 1 for _, ids in self.branches)


@dataclass(frozen=True, slots=True)
class ScoreTask:
    """A request, tokenized. Every continuation has at least one token."""

    prompt: Ids
    continuations: tuple[Ids, ...]
    top_k: int = 0


def score(loaded: LoadedModel, tasks: Sequence[ScoreTask], max_tokens: int) -> list[list[Continuation]]:
    """Scores of each task's continuations. At most ``max_tokens`` padded tokens are computed together.

    Must run in inference mode.
    """
    scored: dict[tuple[int, int], Continuation] = {}
    raw = [i for i, task in enumerate(tasks) if len(task.prompt) == 1]
    chats = [i for i, task in enumerate(tasks) if len(task.prompt) > 1]
    for group in (raw, chats):
        rows = [row for i in group for row in rows_of(loaded, i, tasks[i], max_tokens)]
        shared = shared_length(loaded, [row.prompt for row in rows])
        cache = run_prefix(loaded, rows[0].prompt[:shared]) if shared else None
        for part in parts_of(rows, shared, max_tokens):
            scored |= _score_part(loaded, part, tasks, shared, cache)
    return [[scored[i, j] for j in range(len(task.continuations))] for i, task in enumerate(tasks)]


def rows_of(loaded: LoadedModel, index: int, task: ScoreTask, max_tokens: int) -> list[TokenRow]:
    """One row, or several when the model cannot share or the row would be too long."""
    rows: list[TokenRow] = []
    for branch in enumerate(task.continuations):
        joined = (
            TokenRow(index, task.prompt, (*rows[-1].branches, branch)) if rows and loaded.shares else None
        )
        if joined is not None and joined.length <= max_tokens:
            rows[-1] = joined
        else:
            rows.append(TokenRow(index, task.prompt, (branch,)))
    return rows


def parts_of(rows: list[TokenRow], shared: int, max_tokens: int) -> list[list[TokenRow]]:
    """Rows of similar length, longest first, at most ``max_tokens`` padded tokens a part, or one row."""
    parts: list[list[TokenRow]] = []
    for row in sorted(rows, key=lambda row: -row.length):
        if parts and (parts[-1][0].length - shared) * (len(parts[-1]) + 1) <= max_tokens:
            parts[-1].append(row)
        else:
            parts.append([row])
    return parts


@dataclass(frozen=True, slots=True)
class Layout:
    """Where everything of a part lies. B rows of Q tokens, N predicted tokens."""

    ids: NDArray[np.int64]  # (B, Q)
    positions: NDArray[np.int64]  # (B, Q)
    branch: NDArray[np.int64]  # (B, Q): 0 prompt, 1.. continuation, -1 padding
    predictor: NDArray[np.int64]  # (N,) flat index into (B, Q)
    target: NDArray[np.int64]  # (N,) token id
    spans: list[tuple[int, int, Ids]]  # (request, continuation, ids), in the order of the N


def _lay_out(rows: Sequence[TokenRow], shared: int, pad: int) -> Layout:
    width = max(row.length for row in rows) - shared
    ids = np.full((len(rows), width), pad, np.int64)
    positions = np.zeros_like(ids)
    branch = np.full_like(ids, -1)
    predictor: list[int] = []
    spans: list[tuple[int, int, Ids]] = []
    for b, row in enumerate(rows):
        at = len(row.prompt) - shared
        ids[b, :at] = row.prompt[shared:]
        positions[b, :at] = np.arange(shared, len(row.prompt))
        branch[b, :at] = 0
        last = b * width + at - 1
        for number, (index, tokens) in enumerate(row.branches, 1):
            size = len(tokens) - 1
            ids[b, at : at + size] = tokens[:-1]
            positions[b, at : at + size] = len(row.prompt) + np.arange(size)
            branch[b, at : at + size] = number
            predictor += [last, *range(b * width + at, b * width + at + size)]
            spans.append((row.request, index, tokens))
            at += size
    target = np.array([token for *_, tokens in spans for token in tokens], np.int64)
    return Layout(ids, positions, branch, np.array(predictor, np.int64), target, spans)


def _mask(branch: Tensor, shared: int, dtype: Any) -> Tensor:
    """(B, 1, Q, shared + Q), additive: 0 where a token may look, the lowest number elsewhere."""
    size = branch.shape[1]
    earlier = torch.ones(size, size, dtype=torch.bool, device=branch.device).tril()
    looks, seen = branch[:, :, None], branch[:, None, :]
    allowed = earlier & ((seen == 0) | (seen == looks))
    allowed = torch.cat([allowed.new_ones(len(branch), size, shared), allowed], dim=2)
    mask = torch.zeros(allowed.shape, dtype=dtype, device=branch.device)
    return mask.masked_fill_(~allowed, torch.finfo(dtype).min).unsqueeze(1)


def _score_part(
    loaded: LoadedModel, rows: Sequence[TokenRow], tasks: Sequence[ScoreTask], shared: int, cache: Any
) -> dict[tuple[int, int], Continuation]:
    layout, hidden = hidden_states(loaded, rows, shared, cache)
    top_k = max(tasks[row.request].top_k for row in rows)
    logprobs, top_ids, top = _head_scores(loaded, hidden, layout, top_k)
    scored: dict[tuple[int, int], Continuation] = {}
    start = 0
    for request, index, tokens in layout.spans:
        span = slice(start, start + len(tokens))
        start += len(tokens)
        k = tasks[request].top_k
        scored[request, index] = Continuation(
            token_ids=tokens,
            logprobs=logprobs[span],
            top_ids=top_ids[span, :k] if k else None,
            top_logprobs=top[span, :k] if k else None,
        )
    return scored


def hidden_states(
    loaded: LoadedModel, rows: Sequence[TokenRow], shared: int = 0, cache: Any = None
) -> tuple[Layout, Tensor]:
    """The part's layout and its hidden states after the last norm, (B * Q, hidden)."""
    layout = _lay_out(rows, shared, loaded.pad)
    device = loaded.device
    inputs: dict[str, Any] = {"input_ids": torch.from_numpy(layout.ids).to(device), "use_cache": False}
    if shared or layout.branch.max() > 1:
        inputs["attention_mask"] = _mask(
            torch.from_numpy(layout.branch).to(device), shared, loaded.model.dtype
        )
        inputs["position_ids"] = torch.from_numpy(layout.positions).to(device)
    # else: padding stands on the right, where the causal mask hides it from every token that is read
    if shared:
        inputs |= {"past_key_values": expand_cache(cache, len(rows)), "use_cache": True}
    return layout, loaded.base(**inputs).last_hidden_state.flatten(0, 1)


def _head_scores(
    loaded: LoadedModel, hidden: Tensor, layout: Layout, top_k: int
) -> tuple[NDArray[np.float32], NDArray[np.int32], NDArray[np.float32]]:
    """(N,), (N, k), (N, k).

    The head runs on 64 positions at a time: the logits of a batch would not fit into any cache, those of a
    long one not into memory. (On 2 cores log_softmax of such a chunk costs a third of logsumexp.) A position
    that predicts the first token of several continuations runs once.
    """
    places, which = np.unique(layout.predictor, return_inverse=True)
    order = np.argsort(which, kind="stable")
    starts = np.searchsorted(which[order], np.arange(0, len(places) + HEAD_ROWS, HEAD_ROWS))
    picked = hidden[torch.from_numpy(places).to(loaded.device)]
    logprobs = np.empty(len(which), np.float32)
    top_ids = np.empty((len(which), top_k), np.int32)
    top = np.empty((len(which), top_k), np.float32)
    for chunk, at in enumerate(range(0, len(places), HEAD_ROWS)):
        table = loaded.head(picked[at : at + HEAD_ROWS]).log_softmax(-1)
        chunk_order = order[starts[chunk] : starts[chunk + 1]]
        local = torch.from_numpy(which[chunk_order] - at).to(loaded.device)
        target = torch.from_numpy(layout.target[chunk_order]).to(loaded.device)
        logprobs[chunk_order] = table[local, target].cpu().numpy()
        if top_k:
            best, ids = table.topk(top_k, dim=-1)
            top_ids[chunk_order] = ids[local].cpu().numpy()
            top[chunk_order] = best[local].cpu().numpy()
    return logprobs, top_ids, top
