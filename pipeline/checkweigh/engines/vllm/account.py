"""What the workers of a vLLM server say that they loaded: read from the log, held against each other. Pure.

Every worker writes one sealed line (``in_server/checkweigh_account.py``). All of them must be there and agree: workers
of one stage in everything, stages in all but the layers that each of them has. What vLLM logs when it goes on with
something else than the checkpoint says is read here too.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from checkweigh import canonical
from checkweigh.engines.effective import NONE, Rotary, neutral
from checkweigh.engines.vllm.in_server.checkweigh_account import PREFIX, sealed

FULL, SLIDING = "full_attention", "sliding_attention"
# What vLLM, or transformers inside it, warns of and goes on: another model than the checkpoint's would be served.
GOES_ON = re.compile(
    r"has been used instead of tying"
    r"|so we will NOT tie them"
    r"|but not found the expected name in the model"
    r"|were not loaded from checkpoint|not initialized from"
    r"|newly initialized|LOAD REPORT"
    r"|Skipping (?:unknown|mismatched|unexpected)\b.*"
    r"|Materializing empty parameter"
    r"|checkpoint seem corrupted"
    r"|(?:RoPE|rope) type \S+ is not implemented"
    r"|null scaling factor which is unexpected"
    r"|Weight cache unusable"
    r"|sinks ignored"
)


class Unaccounted(ValueError):
    """The server gives no account of what it loaded, or one that cannot be read."""


def goes_on(log: str) -> tuple[str, ...]:
    """Every warning that something of the checkpoint was left out or made up, each once."""
    return tuple(dict.fromkeys(line.strip()[:400] for line in log.splitlines() if GOES_ON.search(line)))


def read_accounts(log: str, key: str) -> list[dict[str, Any]]:
    """One account of every worker, by rank. Raises Unaccounted: none, not all, several of one, broken or not sealed."""
    found: dict[int, dict[str, Any]] = {}
    workers = 0
    for line in log.splitlines():
        if not line.startswith(PREFIX):
            continue
        try:
            account = json.loads(line.split(" ", 3)[3])
            if sealed(account, key).decode().strip() != line.strip():
                raise Unaccounted("a line that is not sealed with its key")
            if "error" in account:
                raise Unaccounted(f"its worker says: {account['error']}")
            if account["rank"] in found:
                raise Unaccounted(f"two accounts of worker {account['rank']}")
            found[account["rank"]] = account
            workers = account["workers"]
        except (LookupError, TypeError, ValueError) as error:
            raise (
                error if isinstance(error, Unaccounted) else Unaccounted(f"a broken line ({error})")
            ) from error
    if not found or found.keys() != set(range(workers)):
        raise Unaccounted(f"accounts of {len(found)} of {workers or '?'} workers")
    return [found[rank] for rank in range(workers)]


def loaded(accounts: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The effective configuration that all workers have together. Raises Unaccounted: they contradict each other."""
    try:
        eos = _alike("eos", [account["eos"] for account in accounts])
        defaults = _alike("defaults", [account["defaults"] for account in accounts])
        fields = _model([(account["stage"], account["model"]) for account in accounts], eos)
        fields["generation_defaults"] = canonical.dumps(defaults) if defaults else NONE
        drafts = [account["draft"] for account in accounts if account["draft"] is not None]
        if drafts:
            draft = _model([([0, 1], draft) for draft in drafts], ())
            draft.pop("eos")
            fields["draft"] = canonical.dumps(draft)
        if mapped := {name for account in accounts for name in account["mapped"]}:
            raise Unaccounted(f"weights that still lie in a file's mapping: {', '.join(sorted(mapped))}")
    except (LookupError, TypeError, AttributeError) as error:
        raise Unaccounted(f"an account that cannot be read ({error!r})") from error
    return fields


def eos_of(accounts: Sequence[Mapping[str, Any]]) -> tuple[int, ...]:
    """The ids that end a reply, as the first worker has them; ``loaded`` compares the others."""
    return tuple(accounts[0]["eos"])


def _model(parts: Sequence[tuple[Sequence[int], Mapping[str, Any]]], eos: Sequence[int]) -> dict[str, str]:
    """The effective configuration of one model, of which each part has the layers of a stage."""
    stages = _first_of_stages(parts)
    layers: list[tuple[int, int | None, Rotary | None]] = []
    kinds: dict[str, Rotary] = {}
    for stage in stages:
        rotaries = [
            Rotary(inv_freq=one["inv_freq"], dim=one["dim"], scaling=one["scaling"])
            for one in stage["rotaries"]
        ]
        kinds |= {
            one["kind"]: rotary
            for one, rotary in zip(stage["rotaries"], rotaries, strict=True)
            if "kind" in one
        }
        for first, count, window, place in stage["layers"]:
            rotary = None if place is None else rotaries[place]
            layers += [(first + i, window, rotary) for i in range(count)]
    heads = [stage["tied"] for stage in stages if stage["tied"] is not None]
    layers.sort(key=lambda layer: layer[0])
    fields = neutral(
        rotary=kinds or _kinds(layers),
        windows=[window for _, window, _ in layers],
        tied_head=_alike("tied", heads),
        eos=eos,
    )
    counts: Counter[str] = Counter()
    for stage in stages:
        counts.update(stage["modules"])
    fields["modules"] = canonical.dumps(dict(counts))  # class that computes, or none -> how many
    fields["architecture"] = str(_alike("architecture", [stage["architecture"] for stage in stages]))
    for name, field in (
        ("backend", "attention"), ("scale", "attention_scale"), ("softcap", "attention_softcap"),
        ("cache", "cache_dtype"), ("logits", "logits"), ("norm", "norm"), ("activation", "activation"),
    ):  # fmt: skip
        values = sorted({canonical.dumps(value) for stage in stages for value in stage[name]})
        fields[field] = ", ".join(values) or NONE
    return fields


def _kinds(layers: Sequence[tuple[int, int | None, Rotary | None]]) -> dict[str, Rotary]:
    """Layer kind, by whether the layer has a window -> rotary embedding."""
    found: dict[str, Rotary] = {}
    for number, window, rotary in layers:
        if rotary is None:
            continue
        kind = FULL if window is None else SLIDING
        if found.setdefault(kind, rotary) != rotary:
            found[f"layer {number}"] = rotary
    return found


def _first_of_stages(parts: Sequence[tuple[Sequence[int], Mapping[str, Any]]]) -> list[Mapping[str, Any]]:
    """The first part of each stage, in order. Raises Unaccounted: a stage is missing, or its workers differ."""
    by_stage: dict[int, list[Mapping[str, Any]]] = defaultdict(list)
    for (stage, _), part in parts:
        by_stage[stage].append(part)
    count = _alike("number of stages", [of for (_, of), _ in parts])
    if sorted(by_stage) != list(range(count)):
        raise Unaccounted(f"stages {sorted(by_stage)} of {count}")
    return [_alike("account of one stage", by_stage[stage]) for stage in range(count)]


def _alike(what: str, values: Sequence[Any]) -> Any:
    if not values or any(value != values[0] for value in values):
        raise Unaccounted(f"workers that differ in their {what}")
    return values[0]
