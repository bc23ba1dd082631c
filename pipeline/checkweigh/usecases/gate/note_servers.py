"""What is said of arms that a server runs: what it counted, and what of an attached one nobody can verify. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from checkweigh.decision.formatting import size
from checkweigh.engines.protocol import Telemetry
from checkweigh.records.manifest import Manifest
from checkweigh.records.measurement import MeasurementSet


def served(
    role: str, manifest: Manifest, records: Mapping[str, MeasurementSet], counted: Sequence[Telemetry]
) -> tuple[str, ...]:
    """Notes on one arm. ``counted``: what each server that ran for it had counted at its end."""
    notes = []
    unknown = {record.identity.settings.get("unverified", "") for record in records.values()} - {""}
    for names in sorted(unknown):
        notes.append(
            f"the {role} is an endpoint that somebody else runs: not verified, the manifest's word only: {names}"
        )
    if counted:
        notes.append(
            f"the {role}'s server ({manifest.name}) counted: {'; '.join(_counts(manifest, counted))}"
        )
    return tuple(notes)


def swapping(role: str, moved: int) -> tuple[str, ...]:
    """A warning when the host swapped while the arm ran: a serving host should not."""
    if moved <= 0:
        return ()
    found = f"the host moved {size(moved)} to and from swap while the {role} ran"
    return (f"{found}: its times say little, and a host that serves should not swap",)


def _counts(manifest: Manifest, counted: Sequence[Telemetry]) -> list[str]:
    def total(name: str) -> int:
        return sum(int(getattr(one, name)) for one in counted)

    found = []
    drafts, accepted, drafted = total("drafts"), total("accepted"), total("drafted")
    if drafts:
        length = 1 + accepted / drafts
        found.append(
            f"acceptance length {length:.2f} tokens a draft ({accepted / drafted:.0%} of {drafted:,} drafted tokens)"
        )
    elif manifest.engine.speculative is not None:
        found.append("nothing was drafted")
    queries = total("cache_queries")
    hits = f"{total('cache_hits') / queries:.1%} of {queries:,}" if queries else "none of 0"
    found.append(f"prefix cache hits {hits} tokens looked up")
    found.append(f"{total('preemptions'):,} preemptions")
    tokens = max((one.kv_tokens or 0 for one in counted), default=0)
    found.append(
        f"largest use of its cache {max(one.kv_use for one in counted):.0%}"
        + (f" of {tokens:,} tokens" if tokens else "")
    )
    return found
