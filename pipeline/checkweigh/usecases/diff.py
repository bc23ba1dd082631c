"""What changed between two manifests, and which comparisons that leaves valid."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from checkweigh.canonical import short
from checkweigh.progress import Progress
from checkweigh.records.decision import ManifestChange
from checkweigh.records.manifest import PLACE_KEYS, Pins
from checkweigh.sources.pin import verify
from checkweigh.sources.undeclared import comparable_metrics, declared_changes, undeclared_differences
from checkweigh.usecases.gate.notes import fork_note

PLACE = " (a place: it decides nothing)"
MOST_FILES = 20  # shown to people


@dataclass(frozen=True, slots=True)
class Difference:
    """Declared changes, pins that differ undeclared, metric -> 'yes' or why not, and what to know of a change.

    ``files``: pinned file -> digest before and after, None where there is no such file; only those that differ.
    """

    changes: tuple[ManifestChange, ...]
    undeclared: tuple[str, ...]
    comparable: dict[str, str]
    notes: tuple[str, ...] = ()
    files: dict[str, tuple[str | None, str | None]] = field(default_factory=dict)

    def as_json(self) -> dict[str, object]:
        """For programs."""
        return {
            "changes": [change.model_dump() for change in self.changes],
            "undeclared": list(self.undeclared),
            "comparable": self.comparable,
            "files": {name: list(digests) for name, digests in self.files.items()},
            "notes": list(self.notes),
        }

    def text(self) -> str:
        """For people."""
        lines = [
            f"{c.path}: {c.baseline} -> {c.candidate}{PLACE if is_place(c.path) else ''}"
            for c in self.changes
        ] or ["nothing is declared to change"]
        lines += [
            f"file {name}: {' -> '.join('none' if d is None else short(d) for d in digests)}"
            for name, digests in list(self.files.items())[:MOST_FILES]
        ]
        if len(self.files) > MOST_FILES:
            lines.append(f"{len(self.files) - MOST_FILES} more files differ (--json lists all)")
        if not self.files:
            lines.append("every pinned file is the same in both")
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
        _differing_files(first.pins, second.pins),
    )


def is_place(path: str) -> bool:
    """Whether a dotted path of a manifest says where something lies, and nothing of what it is."""
    return any(key.partition("[")[0] in PLACE_KEYS for key in path.split("."))


def _differing_files(first: Pins, second: Pins) -> dict[str, tuple[str | None, str | None]]:
    before, after = dict(_files(first)), dict(_files(second))
    names = sorted(before.keys() | after.keys())
    return {n: (before.get(n), after.get(n)) for n in names if before.get(n) != after.get(n)}


def _files(pins: Pins) -> Iterator[tuple[str, str]]:
    """(name, digest) of every pinned file; those of the drafting model below ``draft/``."""
    yield from (pins.weights | pins.tokenizer | pins.files).items()
    yield "chat template", pins.chat_template
    yield from ((f"draft/{name}", digest) for name, digest in pins.draft.items())
