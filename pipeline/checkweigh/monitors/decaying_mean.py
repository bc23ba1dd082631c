"""A running mean of recent values. Pure."""

from __future__ import annotations

import math

_WEIGHT = 1 / 16


class DecayingMean:
    """A geometric mean in which each new value, above 0, has a weight of one in sixteen."""

    def __init__(self) -> None:
        self._log: float | None = None

    def add(self, value: float) -> None:
        """Take one value; one that is not positive and finite is ignored."""
        if 0 < value < math.inf:
            new = math.log(value)
            self._log = new if self._log is None else self._log + (new - self._log) * _WEIGHT

    @property
    def mean(self) -> float | None:
        """The mean of about the last sixteen values; None before the first."""
        return None if self._log is None else math.exp(self._log)

    def less_than(self, value: float) -> bool:
        """Whether there is a mean, and it is below ``value``."""
        return self.mean is not None and self.mean < value
