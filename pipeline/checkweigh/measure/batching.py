"""The batch plan: which items run together, and in which order. A pure function of set and settings.

Items are sorted by stratum and by the turns before the last one, because prompts that begin alike share a prefix. Then
they are sorted by length, so that little is padded. A batch is the atomic unit of storage and is redone whole after an
interruption: in bfloat16 another batching moves the numbers, by up to half a nat.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from checkweigh import canonical
from checkweigh.records.evalset import Choice, EvalSet, Item, Text
from checkweigh.records.manifest import EngineSection

BYTES_PER_TOKEN = 3  # a cautious guess, only used to group items; English prose has about 4.5


@dataclass(frozen=True, slots=True)
class Batch:
    """Items that run together."""

    index: int
    items: tuple[Item, ...]

    @property
    def digest(self) -> str:
        """Digest of the item ids in order; a stored batch must have been made of the same."""
        return canonical.digest([item.id for item in self.items])


def plan_batches(evalset: EvalSet, engine: EngineSection, seed: int = 0) -> tuple[Batch, ...]:
    """Batches of similar length, within ``engine.max_batch`` items and ``max_batch_tokens`` padded tokens.

    A ``seed`` above 0 mixes the lengths instead, so that the same items are padded otherwise (calibration).
    """
    order = sorted(evalset.items, key=lambda item: (item.stratum, _opening(item), -_length(item), item.id))
    if seed:
        order.sort(key=lambda item: canonical.digest([seed, item.id]))
    batches: list[list[Item]] = []
    longest = 0
    for item in order:
        longest = max(longest, _length(item))
        fits = max(1, engine.max_batch_tokens * BYTES_PER_TOKEN // max(1, longest))
        if not batches or len(batches[-1]) >= min(fits, engine.max_batch):
            batches.append([])
            longest = _length(item)
        batches[-1].append(item)
    return tuple(Batch(index, tuple(items)) for index, items in enumerate(batches))


def _opening(item: Item) -> tuple[str, ...]:
    """The turns before the last one; few-shot items have them in common."""
    return () if isinstance(item, Text) else tuple(message.content for message in item.messages[:-1])


def _length(item: Item) -> int:
    """UTF-8 bytes that one item puts into a batch."""
    if isinstance(item, Text):
        return len(item.text.encode())
    context = sum(len(message.content.encode()) for message in item.messages)
    return context + (sum(_bytes(item.choices)) if isinstance(item, Choice) else 0)


def _bytes(texts: Sequence[str]) -> list[int]:
    return [len(text.encode()) for text in texts]
