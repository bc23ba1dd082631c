"""The metrics a policy may name: what each means, where it comes from and how it is estimated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Estimator = Literal["ratio", "graded", "binary", "log_length", "blocks", "divergence"]
Statistic = Literal["mean", "p50", "p90", "p99"]
Scale = Literal["absolute", "relative", "log"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One metric. ``kinds`` are the kinds of evaluation set that measure it; none for timing."""

    estimator: Estimator
    unit: str
    better: Literal["higher", "lower"]
    kinds: tuple[str, ...] = ()
    scales: tuple[Scale, ...] = ("absolute",)
    statistics: tuple[Statistic, ...] = ("mean",)
    loaded: bool = False  # exists only under a load
    meaning: str


_EVENT = ("generation",)
_RATIO: tuple[Scale, ...] = ("log", "relative")
_QUANTILES: tuple[Statistic, ...] = ("p50", "p90", "p99")


def _event(meaning: str, kinds: tuple[str, ...] = _EVENT) -> Metric:
    return Metric(estimator="binary", unit="share", better="lower", kinds=kinds, meaning=meaning)


def _timing(meaning: str) -> Metric:
    return Metric(
        estimator="blocks", unit="s", better="lower", scales=_RATIO, statistics=_QUANTILES, meaning=meaning
    )


def _rate(better: Literal["higher", "lower"], meaning: str) -> Metric:
    return Metric(estimator="blocks", unit="share", better=better, loaded=True, meaning=meaning)


METRICS: dict[str, Metric] = {
    "log_perplexity": Metric(
        estimator="ratio",
        unit="nats/token",
        better="lower",
        kinds=("text",),
        scales=_RATIO,
        meaning="negative log-likelihood a token, summed over documents; needs one vocabulary in both arms",
    ),
    "bits_per_byte": Metric(
        estimator="ratio",
        unit="bits/byte",
        better="lower",
        kinds=("text",),
        meaning="negative log-likelihood a byte of text, in bits; comparable across vocabularies",
    ),
    "kl": Metric(
        estimator="divergence",
        unit="nats/token",
        better="lower",
        kinds=("text",),
        meaning="KL divergence of the candidate's next-token distributions from the baseline's, typical document",
    ),
    "score": Metric(
        estimator="graded",
        unit="points",
        better="higher",
        kinds=("choice", "generation"),
        meaning="choices: normalised probability of the right choice; replies: the check's score in [0, 1]",
    ),
    "accuracy": Metric(
        estimator="binary",
        unit="share",
        better="higher",
        kinds=("choice",),
        meaning="the right choice is the likeliest one",
    ),
    "log_length": Metric(
        estimator="log_length",
        unit="tokens",
        better="lower",
        kinds=("generation",),
        scales=_RATIO,
        meaning="logarithm of a reply's tokens; direction lower guards against longer replies, higher against shorter",
    ),
    "bad_ending": _event("the reply is truncated, empty or loops"),
    "truncated": _event("the reply was cut at max_tokens"),
    "empty": _event("the reply has no visible text"),
    "looping": _event("the reply ends in a repeating period"),
    "failed": _event("no result for the item", ("text", "choice", "generation")),
    "ttft": _timing("time to the first token of a request"),
    "tpot": _timing("time per output token after the first"),
    "e2e": _timing("time from sending a request to its last token"),
    "goodput": _rate("higher", "requests that kept the load's slo, of all that were offered"),
    "error_rate": _rate("lower", "requests without a whole answer in time, of all that were offered"),
    "peak_memory": Metric(
        estimator="blocks",
        unit="bytes",
        better="lower",
        scales=_RATIO,
        meaning="most memory resident in the engine's process during a timing block",
    ),
}
