"""Partition: which items belong to the same cluster, and how much that costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike

from checkweigh.stats.arrays import Floats, Ints


@dataclass(frozen=True, slots=True, eq=False)
class Partition:
    """n items in G clusters; items of one cluster may be dependent, clusters are independent.

    ``codes`` (n,) is the cluster of each item, 0..G-1; ``sizes`` (G,) the items of each cluster. No cluster
    is empty. One partition is shared by all simulations of a leading axis.
    """

    codes: Ints
    sizes: Ints

    def __post_init__(self) -> None:
        codes = np.array(self.codes, dtype=np.int64)
        sizes = np.array(self.sizes, dtype=np.int64)
        if codes.ndim != 1 or sizes.ndim != 1:
            raise ValueError("codes and sizes must have one dimension")
        if codes.size and (codes.min() < 0 or codes.max() >= sizes.size):
            raise ValueError(f"codes must lie between 0 and {sizes.size - 1}")
        if np.any(np.bincount(codes, minlength=sizes.size) != sizes) or np.any(sizes < 1):
            raise ValueError("sizes must count the items of each cluster, and no cluster may be empty")
        for name, value in (("codes", codes), ("sizes", sizes)):
            value.setflags(write=False)
            object.__setattr__(self, name, value)

    @classmethod
    def from_labels(cls, labels: Sequence[str]) -> Partition:
        """Items with equal labels are one cluster. A missing (empty) label is an error, never a cluster."""
        return _from_labels(tuple(labels))

    @classmethod
    def singletons(cls, n: int) -> Partition:
        """Every item its own cluster."""
        return cls(np.arange(n), np.ones(n, dtype=np.int64))

    @property
    def n(self) -> int:
        """Items."""
        return self.codes.size

    @property
    def clusters(self) -> int:
        """Clusters, G."""
        return self.sizes.size

    @property
    def g_eff(self) -> float:
        """Effective clusters n^2 / sum(size^2): G when sizes are equal, else fewer; NaN without items."""
        return self.n**2 / float(np.sum(self.sizes**2)) if self.n else float("nan")

    @property
    def k(self) -> float:
        """Mean cluster size as an item sees it, sum(size^2) / n; 1 for singletons, NaN without items."""
        return float(np.sum(self.sizes**2)) / self.n if self.n else float("nan")

    def sums(self, x: ArrayLike) -> Floats:
        """Sums within clusters: x (..., n) -> (..., G). A NaN spoils its own cluster only."""
        values = np.asarray(x, dtype=np.float64)
        if values.ndim == 0 or values.shape[-1] != self.n:
            raise ValueError(f"expected {self.n} items on the last axis, got shape {values.shape}")
        lead = values.shape[:-1]
        rows = int(np.prod(lead))
        cells = (self.codes + self.clusters * np.arange(rows)[:, None]).ravel()
        totals = np.bincount(cells, weights=values.reshape(-1), minlength=rows * self.clusters)
        return totals.astype(np.float64).reshape((*lead, self.clusters))


@lru_cache(maxsize=8)  # the checks of a policy ask for the same few partitions again and again
def _from_labels(labels: tuple[str, ...]) -> Partition:
    index: dict[str, int] = {}
    codes = np.fromiter((index.setdefault(label, len(index)) for label in labels), np.int64, len(labels))
    if not all(isinstance(label, str) and label for label in index):
        raise ValueError("every item needs a cluster label: a non-empty string")
    return Partition(codes, np.bincount(codes, minlength=len(index)))
