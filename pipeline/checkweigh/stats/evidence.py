"""Evidence: what one check's paired data say about delta = candidate - baseline, higher is better."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from checkweigh.stats.arrays import Bools, Floats, Ints
from checkweigh.stats.partition import Partition

_NUMBERS = (
    "effect", "lower", "upper", "p_noninferior", "p_worse", "p_superior", "se", "df", "design_effect",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Evidence:
    """Estimate, one-sided bounds and one-sided p-values; arrays of the simulations' shape (...).

    - ``effect``: the estimate of delta, in the check's units; ``se`` its standard error in the same units.
    - ``lower``, ``upper``: one-sided confidence bounds, each at level 1 - alpha.
    - ``p_noninferior``: p of H0 delta <= -margin; ``p_superior``: p of H0 delta <= +margin;
      ``p_worse``: p of H0 delta >= 0, small when the candidate is worse.
    - ``df``: degrees of freedom of t, infinite where the normal or an exact distribution is used.
    - ``design_effect``: variance with clusters over variance without.
    - ``estimable``: False where the data say nothing. There, by construction, every number is NaN, so that
      no comparison with a margin or a level can come out true. An interval without width, a missing p or
      a missing estimate is never estimable, whatever an estimator claims.
    - ``n`` items, ``clusters`` G, ``g_eff`` effective clusters; ``flips``: discordant pairs, binary only.
    """

    effect: Floats
    lower: Floats
    upper: Floats
    p_noninferior: Floats
    p_worse: Floats
    p_superior: Floats
    se: Floats
    df: Floats
    design_effect: Floats
    estimable: Bools
    n: int
    clusters: int
    g_eff: float
    flips: Ints | None = None
    method: str

    def __post_init__(self) -> None:
        shape = np.shape(self.effect)
        values = {
            name: np.broadcast_to(np.asarray(getattr(self, name), np.float64), shape) for name in _NUMBERS
        }
        estimable = np.broadcast_to(self.estimable, shape) & (values["upper"] > values["lower"])
        for name, value in values.items():
            estimable = estimable & (~np.isnan(value) if name == "df" else np.isfinite(value))
        for name, value in values.items():
            self._freeze(name, np.where(estimable, value, np.nan))
        self._freeze("estimable", np.asarray(estimable, dtype=np.bool_))
        if self.flips is not None:
            self._freeze("flips", np.array(np.broadcast_to(self.flips, shape), dtype=np.int64))

    def _freeze(self, name: str, value: Floats | Bools | Ints) -> None:
        value.setflags(write=False)
        object.__setattr__(self, name, value)


def not_estimable(shape: tuple[int, ...], partition: Partition, method: str) -> Evidence:
    """Evidence of the given shape that says nothing at all."""
    nan = np.full(shape, np.nan)
    return Evidence(
        effect=nan, lower=nan, upper=nan, p_noninferior=nan, p_worse=nan, p_superior=nan, se=nan, df=nan,
        design_effect=nan, estimable=np.zeros(shape, dtype=np.bool_),
        n=partition.n, clusters=partition.clusters, g_eff=partition.g_eff, method=method,
    )  # fmt: skip
