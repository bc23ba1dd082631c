"""The items of both arms as the JSON table that MLflow shows (pandas' ``split``: columns and rows)."""

from __future__ import annotations

import json
from collections.abc import Sequence

from checkweigh.report.items import ItemPair
from checkweigh.report.safe import clip, one_line, visible

TABLE = "items.json"
_TEXT = 2000  # characters of a prompt or reply; the measurement store has all of them
COLUMNS = (
    "set", "item", "cluster", "stratum", "metric", "worse_by", "baseline", "candidate", "prompt",
    "baseline_text", "candidate_text", "baseline_tokens", "candidate_tokens", "note",
)  # fmt: skip


def table(pairs: Sequence[ItemPair]) -> bytes:
    """One row an item; the worst of each set first. Texts are hostile: made visible, and cut."""
    ranked = sorted(pairs, key=lambda p: (p.set_name, not p.broke, p.loss is None, -(p.loss or 0.0), p.id))
    rows = [_row(pair) for pair in ranked]
    return json.dumps({"columns": COLUMNS, "data": rows}, allow_nan=False).encode()


def _row(pair: ItemPair) -> list[str | float | int | None]:
    texts = [_text(t) for t in (pair.prompt, pair.baseline_text, pair.candidate_text)]
    names = [one_line(t) for t in (pair.set_name, pair.id, pair.cluster, pair.stratum, pair.metric)]
    return [
        *names, pair.loss, pair.baseline, pair.candidate, *texts,
        pair.baseline_tokens, pair.candidate_tokens, one_line(pair.note),
    ]  # fmt: skip


def _text(text: str | None) -> str | None:
    return None if text is None else clip(visible(text[: 2 * _TEXT]), _TEXT) + _left(text)


def _left(text: str) -> str:
    """What was never looked at is counted too."""
    more = len(text) - 2 * _TEXT
    return f" ({more:,} more beyond these)" if more > 0 else ""
