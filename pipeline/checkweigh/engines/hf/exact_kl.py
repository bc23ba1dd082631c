"""Exact KL divergence to another engine's next-token distributions, without storing logits.

The baseline's engine writes the hidden states after its last norm, T x hidden numbers a text, and its head with its
scale and softcap; the candidate's engine applies each head to its own states, a few positions at a time, so
that the distributions, T x vocabulary numbers each, never exist as a whole.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from checkweigh.engines.backend import states_file
from checkweigh.engines.hf.load_model import (
    Head,
    LoadedModel,
    Tensor,
    head_of,
)
from checkweigh.engines.hf.score import (
    Ids,
    ScoreTask,
    hidden_states,
    parts_of,
    rows_of,
)
from checkweigh.engines.host_memory import HEAD_ROWS
from checkweigh.engines.protocol import Divergence, ItemFailure
from checkweigh.errors import BadInput
from checkweigh.records.measurement import WorstToken

WORST = 3  # tokens kept of each text
BEFORE = 24  # tokens of context shown before one of them
HEAD_FILE = "head.safetensors"


def hidden_of(loaded: LoadedModel, tasks: Sequence[ScoreTask], max_tokens: int) -> list[Tensor]:
    """(T, hidden) of each task, which is one raw text; row t predicts token t. Must run in inference mode."""
    states_of: dict[int, Tensor] = {}
    rows = [row for i, task in enumerate(tasks) for row in rows_of(loaded, i, task, max_tokens)]
    for part in parts_of(rows, 0, max_tokens):
        layout, hidden = hidden_states(loaded, part)
        picked = hidden[torch.from_numpy(layout.predictor).to(loaded.device)]
        start = 0
        for request, _, ids in layout.spans:
            states_of[request] = picked[start : start + len(ids)]
            start += len(ids)
    return [states_of[i] for i in range(len(tasks))]


def write_states(loaded: LoadedModel, hidden: Mapping[str, Tensor], folder: Path) -> None:
    """Write the states of each request to a file of its own, and the head beside them unless it is there.

    BadInput: a head of a kind that cannot be written down.
    """
    head = folder / HEAD_FILE
    if not head.exists():
        layer = loaded.model.get_output_embeddings()
        if type(layer) is not torch.nn.Linear:
            raise BadInput(f"the KL divergence needs a plain linear head, and this is {type(layer).__name__}")
        tensors = {"weight": layer.weight.detach().cpu().contiguous()}
        if layer.bias is not None:
            tensors["bias"] = layer.bias.detach().cpu().contiguous()
        _publish(tensors, head, {"scale": loaded.scale, "softcap": loaded.softcap})
    for name, states in hidden.items():
        _publish({"hidden": states.cpu().contiguous()}, states_file(folder, name), {})


def _publish(tensors: dict[str, Tensor], file: Path, settings: dict[str, Any]) -> None:
    unfinished = file.with_suffix(".part")
    save_file(tensors, str(unfinished), metadata={"settings": json.dumps(settings)})
    os.replace(unfinished, file)


def read_head(folder: Path, device: Any) -> Head:
    """The head that an engine wrote."""
    with safe_open(str(folder / HEAD_FILE), framework="pt", device=str(device)) as stored:
        settings = json.loads(stored.metadata()["settings"])
        weight = stored.get_tensor("weight")
        bias = stored.get_tensor("bias") if "bias" in stored.keys() else None  # noqa: SIM118
    layer = torch.nn.functional.linear
    return head_of(lambda hidden: layer(hidden, weight, bias), settings["scale"], settings["softcap"])


def _read_states(folder: Path, request: str, device: Any) -> Tensor | None:
    file = states_file(folder, request)
    if not file.exists():
        return None
    with safe_open(str(file), framework="pt", device=str(device)) as stored:
        return stored.get_tensor("hidden")


def compare(
    loaded: LoadedModel, other: Head, their_states: Path, own_states: Path, request: str, ids: Ids
) -> Divergence | ItemFailure:
    """KL(other || this) at every position of one text; a failure where either engine wrote no states.

    BadInput: states of another number of tokens, or another vocabulary. Must run in inference mode.
    """
    first, second = (_read_states(folder, request, loaded.device) for folder in (their_states, own_states))
    if first is None or second is None:
        return ItemFailure(id=request, reason="engine", detail="an engine gave no hidden states")
    if not len(first) == len(second) == len(ids):
        raise BadInput(
            f"item {request}: states of {len(first)} and {len(second)} tokens, {len(ids)} expected"
        )
    kl = np.empty(len(ids), np.float32)
    best = np.empty((2, len(ids)), np.int64)
    sure = np.empty((2, len(ids)), np.float32)
    for at in range(0, len(ids), HEAD_ROWS):
        span = slice(at, at + HEAD_ROWS)
        p, q = other(first[span]).log_softmax(-1), loaded.head(second[span]).log_softmax(-1)
        if p.shape != q.shape:
            raise BadInput(f"vocabularies of {p.shape[-1]} and {q.shape[-1]} tokens have no KL divergence")
        terms = torch.where(torch.isneginf(p), 0.0, p.exp() * (p - q))
        kl[span] = terms.sum(-1).cpu().numpy()
        for row, table in enumerate((p, q)):
            top, where = table.max(-1)
            best[row, span], sure[row, span] = where.cpu().numpy(), top.exp().cpu().numpy()
    kl = np.where(kl > -1e-4, np.maximum(kl, 0), kl)  # rounding; anything lower is an answer that cannot be
    return Divergence(
        id=request,
        token_ids=ids,
        kl=kl,
        agree=(best[0] == best[1]).astype(np.int32),
        worst=_worst(loaded, ids, kl, best, sure),
    )


def _worst(loaded: LoadedModel, ids: Ids, kl: Any, best: Any, sure: Any) -> tuple[WorstToken, ...]:
    decode = loaded.tokenizer.decode
    places = [int(i) for i in np.argsort(-kl, kind="stable")[:WORST] if np.isfinite(kl[i]) and kl[i] > 0]
    return tuple(
        WorstToken(
            position=i, kl=float(kl[i]), before=decode(ids[max(0, i - BEFORE) : i]), token=decode([ids[i]]),
            baseline=decode([int(best[0, i])]), baseline_p=float(sure[0, i]),
            candidate=decode([int(best[1, i])]), candidate_p=float(sure[1, i]),
        )
        for i in places
    )  # fmt: skip
