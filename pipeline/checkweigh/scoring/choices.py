"""Likelihood-scored choices: log-probabilities of the choices -> normalised probability of the right one."""

from __future__ import annotations

import math
from collections.abc import Sequence


def choice_scores(logprobs: Sequence[float], answer: int) -> tuple[float, float]:
    """Normalised probability of the right choice, in [0, 1], and 1.0 if it is the likeliest one.

    ``logprobs``: summed log-probability of each choice, nats. Softmax over the choices; a tie for the first
    place counts as wrong. ValueError for a non-finite entry or an answer that is not there.
    """
    if not all(math.isfinite(value) for value in logprobs) or not 0 <= answer < len(logprobs):
        raise ValueError("finite log-probabilities and an existing answer are needed")
    top = max(logprobs)
    weights = [math.exp(value - top) for value in logprobs]
    others = max(value for i, value in enumerate(logprobs) if i != answer)
    return weights[answer] / math.fsum(weights), float(logprobs[answer] > others)
