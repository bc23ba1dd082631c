"""What is said of two arms that split text into different tokens. Pure."""

from __future__ import annotations

from checkweigh.records.manifest import Pins
from checkweigh.records.policy import Policy

UNITS = (
    "the vocabularies differ, so that a token is not the same unit in both arms: {used}; nats a token, divergence, "
    "lengths in tokens and time per token are not compared"
)


def units(policy: Policy, baseline: Pins, candidate: Pins) -> tuple[str, ...]:
    """A note where two vocabularies meet: which measure of perplexity is left, and why."""
    if baseline.vocabulary == candidate.vocabulary:
        return ()
    told = any(check.metric == "bits_per_byte" for check in policy.checks)
    used = (
        "perplexity is compared as bits per byte, which counts the text itself"
        if told
        else "bits per byte, which counts the text itself, would compare perplexity, and no check of this policy does"
    )
    return (UNITS.format(used=used),)
