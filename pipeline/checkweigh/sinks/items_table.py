"""The items of both arms as the JSON table that MLflow shows (pandas' ``split``: columns and rows)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from math import isfinite

from checkweigh.report.safe import clip, one_line, visible
from checkweigh.report.worst_items import ItemPair

TABLE = "items.json"
_TEXT = 2000  # characters of a prompt or reply; the measurement store has all of them
COLUMNS = (
    "set", "item", "worse_by", "baseline", "candidate", "metric", "baseline_text", "candidate_text", "prompt",
    "baseline_tokens", "candidate_tokens", "stratum", "cluster", "note",
)  # fmt: skip


def items_table(pairs: Sequence[ItemPair]) -> bytes:
    """One row an item, the worst of each set first, as JSON. Texts are hostile: made visible, and cut."""
    ranked = sorted(pairs, key=lambda p: (p.set_name, not p.broke, p.loss is None, -(p.loss or 0.0), p.id))
    return json.dumps({"columns": COLUMNS, "data": [_row(p) for p in ranked]}, allow_nan=False).encode()


def _row(pair: ItemPair) -> list[str | float | int | None]:
    prompt, baseline, candidate = (_text(t) for t in (pair.prompt, pair.baseline_text, pair.candidate_text))
    numbers = [v if v is None or isfinite(v) else None for v in (pair.loss, pair.baseline, pair.candidate)]
    return [
        one_line(pair.set_name), one_line(pair.id), *numbers, one_line(pair.metric), baseline, candidate, prompt,
        pair.baseline_tokens, pair.candidate_tokens, *(one_line(t) for t in (pair.stratum, pair.cluster, pair.note)),
    ]  # fmt: skip


def _text(text: str | None) -> str | None:
    """What of a text is shown; signs for control characters make it a little longer."""
    return None if text is None else visible(clip(text, _TEXT))
