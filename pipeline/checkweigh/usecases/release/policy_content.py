"""What a policy only names (sets, anchor, trace), by content: from beside the policy, or from the command line."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from checkweigh.attest.bindings import PolicyContent
from checkweigh.attest.envelope import Refusal
from checkweigh.errors import BadInput
from checkweigh.progress import Progress, no_progress
from checkweigh.records.base import SHA256
from checkweigh.records.manifest import Pins
from checkweigh.records.policy import Policy
from checkweigh.sources.documents import read_policy
from checkweigh.sources.evalsets.load_evalset import evalset_roots, find_evalset
from checkweigh.sources.load_trace import read_trace, trace_digest
from checkweigh.sources.pin import read_pinned


def stated_evalsets(words: Sequence[str], policies: Sequence[Path]) -> dict[str, str]:
    """Set -> digest, from the values NAME=sha256:... of ``--evalset``.

    Raises BadInput for another form, a set that is stated twice, and one that none of the policies measures on.
    """
    stated: dict[str, str] = {}
    known = {name for path in policies for name in read_policy(path).evalsets()} if words else set()
    for word in words:
        name, _, digest = word.partition("=")
        if not re.fullmatch(SHA256, digest):
            raise BadInput(f"--evalset: expected NAME=sha256:64 hex digits, found {word[:200]!r}")
        if name not in known:
            raise BadInput(f"--evalset {name[:100]}: expected one of {', '.join(sorted(known))}")
        if name in stated:
            raise BadInput(f"--evalset {name}: expected once, found twice")
        stated[name] = digest
    return stated


def read_policy_content(
    path: Path, stated: Mapping[str, str], progress: Progress = no_progress
) -> PolicyContent:
    """A policy with the content of everything that it names, as a gate would read it (``evalset_roots``).

    What is not there or not sound is a refusal in ``absent``; BadDocument only for the policy itself. ``stated``: sets
    whose digests are given, which are not read.
    """
    policy = read_policy(path)
    evalsets, absent = dict(stated), []
    for name in policy.evalsets():
        if name not in stated:
            try:
                evalsets[name] = find_evalset(name, evalset_roots(path), progress).content_digest()
            except BadInput as error:
                text = f"{error}; or state what you expect: --evalset {name}=sha256:..., as `evalset check` prints it"
                absent.append(Refusal(code="evalsets", text=text))
    anchor, trace = None, None
    try:
        anchor = _anchor(path, policy)
    except BadInput as error:
        absent.append(Refusal(code="anchor", text=str(error)))
    try:
        trace = _trace(path, policy)
    except BadInput as error:
        absent.append(Refusal(code="trace", text=str(error)))
    return PolicyContent(policy=policy, evalsets=evalsets, anchor=anchor, trace=trace, absent=tuple(absent))


def _anchor(path: Path, policy: Policy) -> Pins | None:
    return None if policy.anchor is None else read_pinned(path.resolve().parent / policy.anchor)[1].pins


def _trace(path: Path, policy: Policy) -> str | None:
    return (
        None if policy.trace is None else trace_digest(read_trace(path.resolve().parent / policy.trace.file))
    )
