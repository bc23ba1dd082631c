"""What a pull request changes of what is served, and what that requires.

The working tree is compared with the commit where it left ``base`` (their merge base):

========================  =============================================================================
manifest                  requires
========================  =============================================================================
other pins                a gate against the manifest as it was at the merge base
new, or unpinned before   a gate against the declared baseline, as it was at the merge base
the same pins             nothing: a rename, a comment, ``intends``
the same pins, but a      ``verify``: the lock has to recognise the file
file that it names
differs, or its place
gone                      nothing
========================  =============================================================================

A changed policy requires ``policy diff``, a changed evaluation set ``evalset check``. A manifest without a valid,
current lock, or with nothing to be gated against, is bad input.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from checkweigh.errors import BadInput
from checkweigh.records.manifest import Lock, Manifest
from checkweigh.report.safe import one_line
from checkweigh.sources.documents import read_manifest
from checkweigh.sources.pin import lock_path, read_pinned
from checkweigh.sources.repository.git import FileChange, FileStatus, repository
from checkweigh.sources.repository.revisions import ComparedTrees, is_below, named_paths

Need = Literal["gate", "verify", "policy diff", "evalset check", "nothing"]
COMMIT_DIGITS = 12  # of a commit, that are shown


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangedDocument:
    """One changed document. Paths are from the root of the repository.

    ``baseline`` is the path, at the merge base, of what a gate or ``policy diff`` compares it with; both digests of
    pins are there where a gate is needed.
    """

    path: str
    status: FileStatus
    need: Need
    because: str
    baseline: str | None = None
    baseline_pins: str | None = None
    candidate_pins: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PullRequestChanges:
    """Everything that changed since ``merge_base``, a commit; ``trees`` holds its files while they are needed."""

    base: str
    merge_base: str
    trees: ComparedTrees
    manifests: tuple[ChangedDocument, ...]
    policies: tuple[ChangedDocument, ...]
    evalsets: tuple[ChangedDocument, ...]

    @property
    def all(self) -> tuple[ChangedDocument, ...]:
        """Manifests, policies, sets."""
        return (*self.manifests, *self.policies, *self.evalsets)

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "schema": "checkweigh/changed@1",
            "base": self.base,
            "merge_base": self.merge_base,
            "manifests": [asdict(change) for change in self.manifests],
            "policies": [asdict(change) for change in self.policies],
            "evalsets": [asdict(change) for change in self.evalsets],
        }

    def text(self) -> str:
        """For people."""
        if not self.all:
            return f"no manifest, policy or evaluation set differs from {self.merge_base[:COMMIT_DIGITS]} ({self.base})"
        return "\n".join(one_line(_line(change, self.merge_base), 1000) for change in self.all)


def _line(change: ChangedDocument, merge_base: str) -> str:
    against = f" against {change.baseline} at {merge_base[:COMMIT_DIGITS]}" if change.baseline else ""
    return f"{change.path}: {change.status}, needs {change.need}{against} ({change.because})"


@contextmanager
def changes_since(
    base: str, declared: str | None, folder: Path, *, manifests: bool = True
) -> Iterator[PullRequestChanges]:
    """What differs between the working tree around ``folder`` and ``base``; the old files stay until the end of the
    block. ``declared``: the manifest, from the root, that new ones are gated against. Without ``manifests`` only
    policies and sets are compared.

    Raises BadInput for no repository, no such commit, a shallow history, and lists every manifest that cannot be gated.
    """
    repo = repository(folder)
    declared = None if declared is None else os.path.normpath(declared)
    commit = repo.merge_base(repo.commit(base))
    with tempfile.TemporaryDirectory(prefix="checkweigh-before-") as temporary:
        trees = ComparedTrees(repo, commit, Path(temporary).resolve(), repo.changes(commit))
        repo.write_out(commit, trees.before)
        wrong: list[str] = []
        affected = tuple(_manifests(trees, declared, wrong)) if manifests else ()
        if wrong:
            raise BadInput("\n".join(dict.fromkeys(wrong)))
        yield PullRequestChanges(
            base=base, merge_base=commit, trees=trees, manifests=affected,
            policies=tuple(_policies(trees)), evalsets=tuple(_evalsets(trees)),
        )  # fmt: skip


def _manifests(trees: ComparedTrees, declared: str | None, wrong: list[str]) -> Iterator[ChangedDocument]:
    """Every affected manifest. Errors are collected in ``wrong``, so that all are reported at once."""
    files = {change.path: change for change in trees.changed("manifest")}
    for change in files.values():
        if change.status == "deleted":
            yield ChangedDocument(path=change.path, status="deleted", need="nothing", because="it is gone")
    gone = {change.path for change in files.values() if change.status == "deleted"}
    for path in sorted({*trees.documents["manifest"], *files} - gone):
        try:
            document = _manifest(trees, path, files.get(path), declared)
        except BadInput as error:
            wrong.append(trees.with_repo_paths(str(error)))
            continue
        if document is not None:
            yield document


def _manifest(
    trees: ComparedTrees, path: str, change: FileChange | None, declared: str | None
) -> ChangedDocument | None:
    """What one manifest of the working tree requires; None when nothing about it changed."""
    via = changed_file_used_by(trees, path, read_manifest(trees.now / path))
    locked = PurePosixPath(lock_path(Path(path))).as_posix() in trees.touched
    if change is None and not via and not locked:
        return None
    status: FileStatus = change.status if change else "modified"
    manifest, lock = read_pinned(trees.now / path)
    was = path if change is None else change.was
    old = None if was is None else _pinned_before(trees, was)
    if was is None or old is None:
        return _new_manifest(trees, path, "added" if was is None else status, lock, declared)
    before, pinned = old
    moved = f"renamed from {was}, " if was != path else ""
    if pinned.pins.record_digest() != lock.pins.record_digest():
        trees.bring_untracked(before, was)
        why = moved + "its pins differ" + (f", and {via} changed" if via else "")
        return _gate_against(path, status, why, was, pinned, lock)
    if via:
        why = f"{moved}the pins are the same, though {via} changed"
        return ChangedDocument(path=path, status=status, need="verify", because=why)
    # A place is no pin: only looking there says whether the pinned files are there too.
    if before.declared() != manifest.declared() or PurePosixPath(was).parent != PurePosixPath(path).parent:
        why = f"{moved}the pins are the same, though its files are looked for in another place"
        return ChangedDocument(path=path, status=status, need="verify", because=why)
    return ChangedDocument(path=path, status=status, need="nothing", because=f"{moved}the pins are the same")


def _new_manifest(
    trees: ComparedTrees, path: str, status: FileStatus, lock: Lock, declared: str | None
) -> ChangedDocument:
    """A manifest of which there was no pinned version before."""
    what = "it is new" if status == "added" else "it was not pinned before"
    if declared is None:
        raise BadInput(f"{path}: {what}; expected --baseline, a manifest to gate it against, found none")
    if not (trees.before / declared).is_file():
        if path == declared:
            return ChangedDocument(path=path, status=status, need="verify", because="the first baseline")
        raise BadInput(
            f"--baseline: expected a manifest that is there at {trees.commit[:COMMIT_DIGITS]}, found no {declared}"
        )
    manifest, pinned = read_pinned(trees.before / declared)
    if pinned.pins.record_digest() == lock.pins.record_digest():
        return ChangedDocument(
            path=path, status=status, need="verify", because=f"its pins are those of {declared}"
        )
    trees.bring_untracked(manifest, declared)
    return _gate_against(path, status, what, declared, pinned, lock)


def _gate_against(
    path: str, status: FileStatus, why: str, baseline: str, before: Lock, now: Lock
) -> ChangedDocument:
    return ChangedDocument(
        path=path, status=status, need="gate", because=why, baseline=baseline,
        baseline_pins=before.pins.record_digest(), candidate_pins=now.pins.record_digest(),
    )  # fmt: skip


def changed_file_used_by(trees: ComparedTrees, path: str, manifest: Manifest) -> str:
    """A changed file that the manifest names, or is a link to; empty when there is none."""
    named = list(named_paths(manifest, PurePosixPath(path).parent))
    if (trees.now / path).is_symlink():
        named.append(os.path.relpath((trees.now / path).resolve(), trees.now.resolve()))
    used = (file for file in sorted(trees.touched) if any(is_below(file, place) for place in named))
    return next(used, "")


def _pinned_before(trees: ComparedTrees, path: str) -> tuple[Manifest, Lock] | None:
    """The manifest and lock as they were; None where there was no valid pair of them."""
    try:
        return read_pinned(trees.before / path)
    except BadInput:
        return None


def _policies(trees: ComparedTrees) -> Iterator[ChangedDocument]:
    for change in trees.changed("policy"):
        path, status, was = change.path, change.status, change.was
        if status == "deleted":
            yield ChangedDocument(
                path=path, status=status, need="nothing", because="nothing gates by it any more"
            )
        elif was is None:
            yield ChangedDocument(
                path=path, status=status, need="nothing", because="it is new: nothing got looser"
            )
        else:
            why = f"renamed from {was}" if was != path else "its rules may be looser"
            yield ChangedDocument(path=path, status=status, need="policy diff", because=why, baseline=was)


def _evalsets(trees: ComparedTrees) -> Iterator[ChangedDocument]:
    """Sets of which a card or another file changed, by the path of the card."""
    cards = {change.path: change for change in trees.changed("evalset")}
    for path, change in cards.items():
        if change.status == "deleted":
            yield ChangedDocument(
                path=path, status="deleted", need="nothing", because="no policy can name it any more"
            )
    for path in trees.documents["evalset"]:
        folder = PurePosixPath(path).parent.as_posix()
        files = [file for file in sorted(trees.touched) if is_below(file, folder)]
        if files:
            known = cards.get(path)
            status: FileStatus = known.status if known else "modified"
            named = ", ".join(files[:3]) + (" and others" if len(files) > 3 else "")
            why = f"{named} changed: its items are measured anew"
            yield ChangedDocument(path=path, status=status, need="evalset check", because=why)
