"""What is said of arms that speculate: that text may fork, and how many tokens a forward gave. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from checkweigh.records.manifest import Manifest
from checkweigh.records.measurement import MeasurementSet

FORKS = (
    "engine.speculative differs: drafts change no choice of the model, but several positions computed together "
    "round differently, so that in bfloat16 and float16 a text may fork where two tokens are nearly tied"
)


def forks(baseline: Manifest, candidate: Manifest) -> tuple[str, ...]:
    """A note where the two arms do not speculate alike."""
    return (FORKS,) if baseline.engine.speculative != candidate.engine.speculative else ()


def acceptance(manifest: Manifest, records: Mapping[str, MeasurementSet]) -> tuple[str, ...]:
    """A note for each set of replies of an arm that speculates.

    The acceptance length is the mean number of tokens one forward of the model gave: 1 + accepted / forwards,
    over all forwards, those without a draft and those over prompts included.
    """
    setting = manifest.engine.speculative
    if setting is None:
        return ()
    found = []
    for name, record in records.items():
        counts = [o.speculated for o in record.observations if o.speculated is not None]
        if not counts:
            continue
        forwards, drafted, accepted = (
            sum(getattr(c, field) for c in counts) for field in ("forwards", "drafted", "accepted")
        )
        share = (
            f"{accepted / drafted:.0%} of {drafted:,} drafted tokens" if drafted else "nothing was drafted"
        )
        found.append(
            f"{manifest.name} speculates ({setting.method}, {setting.num_tokens} tokens): acceptance length "
            f"{1 + accepted / forwards:.2f} tokens a forward on {name} ({share})"
        )
    return tuple(found)
