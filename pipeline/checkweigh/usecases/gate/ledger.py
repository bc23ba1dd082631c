"""The ledger of attempts: each gate of a candidate against a baseline under a policy, entered before anybody sees it.

::

    HOME/attempts/<candidate's pins>/<candidate, baseline, policy>/01.json ...   one sealed entry an attempt

What an older version entered lies under the pins of then, which named places and fewer files. It is found there, is
never written again, and what it spent is spent.

1. The same digests return the stored verdict: nothing is measured, and no error is spent twice.
2. An attempt that ended before its first look (killed, an error, out of time) spent nothing; it goes on, or is
   forgotten.
3. An attempt that was cut off after a look goes on with its next look when everything is as it was; else it is spent.
4. New noise floors, or other rules of judging, judge the same measurements again: the same attempt.
5. Anything else is a later attempt. It takes one of those that the policy declares, which share the error budget, and
   must pool: every item of the earlier ones is in it again. Where nothing is left to spend, nothing is measured.
6. A gate of an endpoint is always a later attempt: nothing says that the same weights answer as before.

Wording, names, ``attempts`` and ``max_minutes`` do not make another policy of one. The ledger is as long as the home it
lies in: a job with a fresh home has no memory.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from uuid import uuid4

from checkweigh import canonical
from checkweigh.decision.slices import slice_items
from checkweigh.decision.verdict import JUDGING
from checkweigh.errors import BadInput, StoreError
from checkweigh.files import lock, read_sealed, write_sealed
from checkweigh.measure import host_facts
from checkweigh.progress import Progress
from checkweigh.records.decision import AttemptRecord, Decision, LedgerEntry, LookMade
from checkweigh.records.measurement import PROTOCOL
from checkweigh.records.policy import Policy
from checkweigh.sources.cache import cache_root
from checkweigh.sources.pin import Resolved
from checkweigh.usecases.gate.arms.time_arms import TIMING_WAIT_S
from checkweigh.usecases.gate.former_pins import former_digest
from checkweigh.usecases.gate.inputs import Inputs

WORDING = {"name", "because", "attempts", "max_minutes"}


@dataclass(kw_only=True)
class LedgerAttempt:
    """One attempt under way. ``stored``: its verdict is known already. ``refused``: why it may not be made.

    ``entry`` is what the ledger holds of it, ``earlier`` what to say of the attempts before. ``before``: the decision
    of this same attempt under other noise floors or rules.
    """

    path: Path
    entry: LedgerEntry
    earlier: tuple[str, ...] = ()
    refused: str = ""
    stored: Decision | None = None
    before: Decision | None = None

    def enter_look(self, made: LookMade) -> None:
        """Enter a look, before anything follows from it. A look that was entered before is not entered twice."""
        if made.number > len(self.entry.looks):
            self._write(self.entry.model_copy(update={"looks": (*self.entry.looks, made)}))

    def begin(self) -> None:
        """Freeze the plan: from here on it is in the ledger."""
        self._write(self.entry)

    def enter_replicate(self, number: int) -> None:
        """Enter which execution of the candidate is measured."""
        self._write(self.entry.model_copy(update={"replicate": number}))

    def finish(self, decision: Decision) -> None:
        """Enter the verdict, before anybody sees it."""
        self._write(self.entry.model_copy(update={"decision": decision}))

    def forget(self) -> None:
        """Keep nothing of an attempt that spent nothing: its input was refused before anybody could see a look."""
        if not self.entry.spent:
            self.path.unlink(missing_ok=True)

    def label(self, decided: str, *, first: str | None = None) -> AttemptRecord:
        """What every output says of it. ``first``: digest of the stored decision that it repeats."""
        return AttemptRecord(
            number=self.entry.number, of=self.entry.of, stored=first is not None, decided=decided, first=first,
            earlier=self.earlier,
        )  # fmt: skip

    def _write(self, entry: LedgerEntry) -> None:
        # In the order of the fields, so that a stored decision is written again to the byte.
        write_sealed(self.path, entry.model_dump(mode="json"))
        self.entry = entry


@dataclass(frozen=True)
class _GateIdentity:
    """What is gated, in digests. Two gates with the same ``data`` measure the same.

    ``policy``: of what decides in it. ``data``: of everything that decides what is measured; random for an endpoint.
    ``judged``: of that, and of the noise floors and rules it is judged by. ``items``: set -> a digest of each item.
    """

    inputs: Inputs

    @property
    def arms(self) -> dict[str, Resolved]:
        arms = {"baseline": self.inputs.baseline, "candidate": self.inputs.candidate}
        return arms if self.inputs.anchor is None else arms | {"anchor": self.inputs.anchor}

    @cached_property
    def pins(self) -> dict[str, str]:
        return {role: arm.pins.record_digest() for role, arm in self.arms.items()}

    @cached_property
    def policy(self) -> str:
        return canonical.digest(without_wording(self.inputs.policy))

    @property
    def folder(self) -> Path:
        return _folder(self.pins, self.policy)

    @cached_property
    def former_folder(self) -> Path:
        """Where the version before kept the attempts of this very gate."""
        pins = {role: former_digest(arm.manifest, arm.pins) for role, arm in self.arms.items()}
        rules = self.inputs.policy.model_dump(mode="json", exclude={"no_effect"})
        return _folder(pins, canonical.digest(_without_wording(rules)))

    @cached_property
    def data(self) -> str:
        sets = {
            s.card.name: [s.card.digest, s.card.scorer.model_dump(mode="json")] for s in self.inputs.evalsets
        }
        intends = list(self.inputs.candidate.manifest.intends)
        trace = [[row.at, row.prompt_tokens, row.output_tokens] for row in self.inputs.trace]
        arms = (self.inputs.baseline, self.inputs.candidate, self.inputs.anchor)
        attached = any(arm is not None and arm.manifest.engine.endpoint is not None for arm in arms)
        return canonical.digest(
            {**self.pins, "policy": self.policy, "sets": sets, "intends": intends, "hardware": host_facts.hardware(),
             "protocol": PROTOCOL, "packages": host_facts.versions(host_facts.EMBEDDED_PACKAGES),
             **({"gate": uuid4().hex} if attached else {}), **({"trace": trace} if trace else {})}
        )  # fmt: skip

    @cached_property
    def judged(self) -> str:
        return canonical.digest(
            [
                self.data,
                JUDGING,
                host_facts.tool_digest(),
                sorted(c.record_digest() for c in self.inputs.calibrations),
            ]
        )

    def plan(self, number: int) -> str:
        """Digest of everything that is fixed before the first look."""
        policy = self.inputs.policy
        order = {
            s.card.name: [[item.id for item in part] for part in slice_items(s, policy.looks, policy.seed)]
            for s in self.inputs.evalsets
        }
        return canonical.digest(
            {
                "data": self.data,
                "attempt": [number, policy.attempts],
                "looks": list(policy.looks),
                "order": order,
            }
        )

    @cached_property
    def items(self) -> dict[str, tuple[str, ...]]:
        return {
            s.card.name: tuple(_hex(canonical.digest(item.model_dump(mode="json"))) for item in s.items)
            for s in self.inputs.evalsets
        }


def without_wording(policy: Policy) -> dict[str, object]:
    """The policy without its wording: what two policies have in common that decide the same."""
    return _without_wording(policy.settings())


def _without_wording(settings: Mapping[str, Any]) -> dict[str, object]:
    data = {name: value for name, value in settings.items() if name not in WORDING}
    return {
        **data,
        "checks": [{k: v for k, v in check.items() if k != "because"} for check in data["checks"]],
    }


def _folder(pins: Mapping[str, str], policy: str) -> Path:
    gated = canonical.digest({**pins, "policy": policy})
    return cache_root() / "attempts" / _hex(pins["candidate"]) / _hex(gated)


@contextmanager
def hold_attempt(inputs: Inputs, progress: Progress, *, again: bool = False) -> Iterator[LedgerAttempt]:
    """This gate's attempt, held for as long as it lasts; another gate of the same waits for it.

    ``again``: as a later attempt, measure anew what may be (timing, a candidate that could not be served). Raises
    HostBusy, StoreError for a damaged entry, and BadInput when ``again`` has nothing to repeat or to spend.
    """
    identity = _GateIdentity(inputs)
    with lock(
        identity.folder.with_suffix(".lock"),
        timeout_s=60 * inputs.policy.max_minutes + TIMING_WAIT_S,
        what="gates the same candidate",
        waiting=lambda: progress(
            "another checkweigh is gating the same candidate; waiting for its verdict", 0, 0
        ),
    ):
        former = [entry for entry in _entries(identity.former_folder) if entry.spent]
        attempt = _attempt_for(identity, former, _entries(identity.folder, after=len(former)), again)
        try:
            yield attempt
        except BadInput:
            attempt.forget()
            raise


def _attempt_for(
    identity: _GateIdentity, former: Sequence[LedgerEntry], entries: Sequence[LedgerEntry], again: bool
) -> LedgerAttempt:
    """Which attempt it is (1 to 6 above). ``former``: what an older version spent."""
    spent = [*former, *(entry for entry in entries if entry.spent)]
    same = next((e for e in reversed(entries) if e.data == identity.data), None)
    others = _others(identity)
    if same is not None and same.spent and not again:
        path = identity.folder / f"{same.number:02d}.json"
        words = (*(e.words for e in spent if e.number < same.number), *others)
        if same is not spent[-1]:
            why = f"{same.words}, which {spent[-1].words} has replaced: only the last verdict stands"
            return LedgerAttempt(path=path, entry=same, earlier=words, refused=why)
        if same.decision is not None and same.judged == identity.judged:
            return LedgerAttempt(path=path, entry=same, earlier=words, stored=same.decision)
        entry = same.model_copy(update={"judged": identity.judged, "decision": None})
        return LedgerAttempt(path=path, entry=entry, earlier=words, before=same.decision)
    number = 1 + max((entry.number for entry in spent), default=0)
    entry = LedgerEntry(
        number=number, of=identity.inputs.policy.attempts, plan=identity.plan(number),
        data=identity.data, judged=identity.judged, items=identity.items,
        replicate=same.replicate if same else 0, begun=host_facts.now(),
    )  # fmt: skip
    refused = _refused(identity, spent)
    if again and (not spent or refused):
        raise BadInput(
            f"--again: {refused or 'this candidate was not gated before: there is nothing to repeat'}"
        )
    return LedgerAttempt(
        path=identity.folder / f"{number:02d}.json", entry=entry, refused=refused,
        earlier=(*(e.words for e in spent), *others),
    )  # fmt: skip


def _refused(identity: _GateIdentity, spent: Sequence[LedgerEntry]) -> str:
    """Why a later attempt may not be made; empty when it may."""
    of = identity.inputs.policy.attempts
    left = 1.0 - sum(1.0 / e.of for e in spent)
    if spent and left < 1.0 / of - 1e-9:
        tried = "; ".join(e.words for e in spent)
        return (
            f"the policy declares {of} attempt{'s' if of > 1 else ''} and its error budget for this candidate is "
            f"spent ({tried}). Trying until it passes is no evidence: change the candidate, or declare attempts in the "
            "policy before the next one is gated"
        )
    for entry in spent:
        for name, items in entry.items.items():
            lost = set(items) - set(identity.items.get(name, ()))
            if lost:
                return (
                    f"{len(lost)} items of set {name} that attempt {entry.number} was decided on are not in it any "
                    "more: new items pool with the earlier ones, they never replace them"
                )
    return ""


def highest_replicate(path: Path) -> int:
    """The highest replicate that any gate of the candidate at ``path`` has measured or is measuring."""
    folders = [folder for folder in path.parent.parent.iterdir() if folder.is_dir()]
    return max((entry.replicate for folder in folders for entry in _entries(folder)), default=0)


def _others(identity: _GateIdentity) -> tuple[str, ...]:
    """What to say of this candidate's attempts against other baselines or under other policies."""
    own = (identity.folder, identity.former_folder)
    tried = [path for folder in own for path in folder.parent.glob("*/[0-9]*.json") if path.parent not in own]
    if not tried:
        return ()
    count = f"{len(tried)} earlier tries" if len(tried) > 1 else "1 earlier try"
    return (
        f"{count} of this candidate against other baselines or under other policies, which spent budgets of their own",
    )


def _entries(folder: Path, *, after: int = 0) -> list[LedgerEntry]:
    """The attempts in ``folder`` so far, which begin at most one ``after`` those of an older version.

    A damaged entry is an error, and one that is missing: read as absent, it would give a candidate another attempt.
    """
    entries = []
    for path in sorted(folder.glob("[0-9]*.json")):
        try:
            entry = LedgerEntry.model_validate_json(json.dumps(read_sealed(path)))
            if f"{entry.number:02d}" != path.stem:
                raise ValueError("it is not the file of its number")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StoreError(
                f"{path}: damaged entry in the ledger of attempts ({error}); without it nobody knows how often this "
                "candidate was tried"
            ) from error
        entries.append(entry)
    numbers = [entry.number for entry in entries]
    if numbers and (numbers[0] > after + 1 or numbers != list(range(numbers[0], numbers[-1] + 1))):
        raise StoreError(f"{folder}: an entry of the ledger of attempts is missing")
    return entries


def _hex(digest: str) -> str:
    return digest.removeprefix("sha256:")[:16]
