"""Item pairs: what both arms answered to one item, for the reports that show items side by side."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import zip_longest


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemPair:
    """One item in both arms. ``loss`` says how much worse the candidate is, in the metric's unit.

    ``baseline`` and ``candidate`` are None where that arm failed on the item or has no value of ``metric`` for it;
    ``note`` says why, or is empty. ``unscored``: an arm did not fail, and has no value. Texts are hostile.
    """

    set_name: str
    id: str
    cluster: str
    stratum: str
    metric: str
    prompt: str
    baseline: float | None
    candidate: float | None
    loss: float | None
    baseline_text: str | None
    candidate_text: str | None
    baseline_tokens: int | None
    candidate_tokens: int | None
    note: str = ""
    unscored: bool = False

    @property
    def broke(self) -> bool:
        """Whether the candidate has no value where the baseline has one."""
        return self.candidate is None and self.baseline is not None


def worst_pairs(pairs: Iterable[ItemPair], n: int) -> tuple[ItemPair, ...]:
    """The ``n`` pairs that got worst; fewer when fewer got worse.

    Losses of different metrics have no common unit, so each set and metric is ranked by itself: items that broke first,
    then by loss, then by id. The rankings are dealt in turn.
    """
    groups: dict[tuple[str, str], list[ItemPair]] = defaultdict(list)
    for pair in pairs:
        if pair.broke or _loss(pair) > 0:
            groups[pair.set_name, pair.metric].append(pair)
    ranked: Sequence[list[ItemPair]] = [
        sorted(groups[key], key=lambda p: (not p.broke, -_loss(p), p.id)) for key in sorted(groups)
    ]
    dealt = [pair for turn in zip_longest(*ranked) for pair in turn if pair is not None]
    return tuple(dealt[:n])


def left_out(pairs: Iterable[ItemPair]) -> str:
    """How many pairs no ranking can hold, because nothing was measured that could be compared; empty for none."""
    count = sum(pair.unscored and not pair.broke for pair in pairs)
    return f"{count:,} items were measured without a score and are not ranked." if count else ""


def _loss(pair: ItemPair) -> float:
    return 0.0 if pair.loss is None or math.isnan(pair.loss) else pair.loss
