"""What changed between two manifests, and which comparisons that leaves valid."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from checkweigh.progress import Progress
from checkweigh.records.decision import ManifestChange
from checkweigh.sources.pin import verify
from checkweigh.sources.undeclared import comparable_metrics, declared_changes, undeclared_differences
from checkweigh.usecases.gate.notes import fork_note


@dataclass(frozen=True, slots=True)
class Difference:
    """Declared changes, pins that differ undeclared, metric -> 'yes' or why not, and what to know of a change."""

    changes: tuple[ManifestChange, ...]
    undeclared: tuple[str, ...]
    comparable: dict[str, str]
    notes: tuple[str, ...] = ()

    def as_json(self) -> dict[str, object]:
        """For programs."""
        return {
            "changes": [change.model_dump() for change in self.changes],
            "undeclared": list(self.undeclared),
            "comparable": self.comparable,
            "notes": list(self.notes),
        }

    def text(self) -> str:
        """For people."""
        lines = [f"{c.path}: {c.baseline} -> {c.candidate}" for c in self.changes] or [
            "nothing is declared to change"
        ]
        lines += [f"note: {text}" for text in self.notes]
        lines += [f"UNDECLARED: {text}" for text in self.undeclared]
        ok = [metric for metric, answer in self.comparable.items() if answer == "yes"]
        lines.append("comparable: " + ", ".join(ok))
        lines += [
            f"not comparable: {m}: {answer}" for m, answer in self.comparable.items() if answer != "yes"
        ]
        return "\n".join(lines)


def diff(baseline: Path, candidate: Path, progress: Progress) -> Difference:
    """Verify both manifests, then compare them. Raises BadInput when a lock is missing, stale or wrong."""
    first, second = verify(baseline, progress), verify(candidate, progress)
    return Difference(
        declared_changes(first.manifest, second.manifest),
        tuple(undeclared_differences(first.manifest, first.pins, second.manifest, second.pins)),
        comparable_metrics(first.pins, second.pins),
        fork_note(first.manifest, second.manifest),
    )
