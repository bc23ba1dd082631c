"""All reasons to refuse an attestation or a waiver. No IO: clock, signature and digests of files are arguments.

An attestation is accepted only when every rule held; a list that ends empty because nothing could be checked does
not exist: what cannot be read is itself a refusal.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from checkweigh.attest.envelope import OpenedEnvelope, Refusal, read_part
from checkweigh.canonical import short
from checkweigh.errors import BadDocument
from checkweigh.records.attestation import (
    ATTESTED,
    STATEMENT,
    TEST_RESULT,
    WAIVER,
    Attested,
    Statement,
    Subject,
    TestResult,
    Waiver,
    subjects,
)
from checkweigh.records.decision import Verdict
from checkweigh.records.manifest import Pins
from checkweigh.records.policy import FAILURES, Policy

SKEW = timedelta(minutes=5)  # clocks of two machines may differ by so much


@dataclass(frozen=True, slots=True, kw_only=True)
class Requirements:
    """What an attestation must be about. ``file_differences``: where the files differ from the pins, in words."""

    pins: Pins
    policy: Policy
    now: datetime
    max_age: timedelta
    file_differences: Sequence[str] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadPredicate:
    """The attested part of a statement, as far as it could be read, and every reason to refuse it."""

    attested: Attested | None
    refusals: tuple[Refusal, ...]


def read_attested(opened: OpenedEnvelope) -> ReadPredicate:
    """The attested part of an opened envelope: types first, then what stands in it."""
    refusals = list(opened.refusals)
    attested = None
    if opened.statement is not None:
        refusals += _types(opened.statement, TEST_RESULT)
        if opened.statement.predicate_type == TEST_RESULT:
            attested = _predicate(opened.statement, refusals)
    return ReadPredicate(attested=attested, refusals=tuple(refusals))


def admission_refusals(
    opened: OpenedEnvelope, expected: Requirements, waiver: Waiver | None
) -> tuple[Attested | None, tuple[Refusal, ...]]:
    """The attested part and every reason not to admit it; none means that these bytes passed that policy, lately.

    1. Envelope, key, signature; statement and predicate types; our schema.
    2. The files are what the pins say, and the subjects are exactly these pins.
    3. The policy is this one, and every check of it has a result; each of its sets and the tool have a digest.
    4. The verdict is a pass that does not contradict itself, or a waiver of this very decision is at hand.
    5. It is not too old, and not from the future.
    """
    predicate = read_attested(opened)
    refusals = list(predicate.refusals)
    refusals += [Refusal(code="files", text=text) for text in expected.file_differences]
    if opened.statement is not None:
        refusals += _subjects(opened.statement.subject, subjects(expected.pins))
    if (attested := predicate.attested) is not None:
        refusals += _about(attested, expected)
        refusals += _verdict(attested, waiver)
        refusals += _age(attested.ended, expected.now, expected.max_age)
    return attested, tuple(refusals)


def waiver_refusals(
    opened: OpenedEnvelope, attested: Attested | None, pins: Pins, policy: str, now: datetime
) -> tuple[Waiver | None, tuple[Refusal, ...]]:
    """A waiver that holds for this decision, candidate and policy now, or every reason why there is none."""
    refusals = [Refusal(code=f"waiver-{r.code}", text=r.text) for r in opened.refusals]
    waiver = None
    if opened.statement is not None:
        refusals += [Refusal(code=f"waiver-{r.code}", text=r.text) for r in _types(opened.statement, WAIVER)]
        refusals += [
            Refusal(code="waiver-subject", text=r.text)
            for r in _subjects(opened.statement.subject, subjects(pins))
        ]
        if opened.statement.predicate_type == WAIVER:
            try:
                waiver = read_part(Waiver, opened.statement.predicate, "waiver")
            except BadDocument as error:
                refusals += [Refusal(code="waiver", text=str(p)) for p in error.problems[:5]]
    if waiver is not None:
        refusals += _waiver(waiver, attested, pins.record_digest(), policy, now)
    return (None if refusals else waiver), tuple(refusals)


def _types(statement: Statement, wanted: str) -> Iterator[Refusal]:
    if statement.type_ != STATEMENT:
        yield Refusal(code="statement-type", text=f"expected {STATEMENT}, found {statement.type_[:100]!r}")
    if statement.predicate_type != wanted:
        text = f"expected {wanted}, found {statement.predicate_type[:100]!r}"
        yield Refusal(code="predicate-type", text=text)


def _predicate(statement: Statement, refusals: list[Refusal]) -> Attested | None:
    ours = statement.predicate.get("checkweigh")
    version = ours.get("schema") if isinstance(ours, Mapping) else None
    if version != ATTESTED:
        refusals.append(Refusal(code="schema", text=f"expected {ATTESTED}, found {str(version)[:100]!r}"))
        return None
    try:
        predicate: TestResult = read_part(TestResult, statement.predicate, "predicate")
    except BadDocument as error:
        refusals += [Refusal(code="predicate", text=str(p)) for p in error.problems[:5]]
        return None
    if (predicate.result in ("PASSED", "WARNED")) != (predicate.checkweigh.verdict is Verdict.PASS):
        text = f"the result is {predicate.result} and the verdict {predicate.checkweigh.verdict.value}"
        refusals.append(Refusal(code="result", text=text))
    return predicate.checkweigh


def _subjects(attested: Sequence[Subject], wanted: Sequence[Subject]) -> Iterator[Refusal]:
    have, want = {s.name: s.digest for s in attested}, {s.name: s.digest for s in wanted}
    if len(have) != len(attested):
        yield Refusal(code="subject", text="a subject is named twice")
    for name in sorted(set(have) | set(want)):
        if name not in have:
            yield Refusal(code="subject", text=f"{name} is there and was not attested")
        elif name not in want:
            yield Refusal(code="subject", text=f"{name[:100]!r} was attested and is not there")
        elif have[name] != want[name]:
            yield Refusal(
                code="subject", text=f"{name}: attested {_digest(have[name])}, there is {_digest(want[name])}"
            )


def _digest(digest: Mapping[str, str]) -> str:
    return ", ".join(f"{kind[:40]} {value[:12]}" for kind, value in sorted(digest.items()))


def _about(attested: Attested, expected: Requirements) -> Iterator[Refusal]:
    pins, policy = expected.pins, expected.policy
    if attested.candidate.pins != pins.record_digest():
        text = f"the verdict is on pins {short(attested.candidate.pins)}, these are {short(pins.record_digest())}"
        yield Refusal(code="candidate", text=text)
    if attested.candidate.manifest != pins.manifest:
        text = f"the verdict is on {short(attested.candidate.manifest)}, this is {short(pins.manifest)}"
        yield Refusal(code="manifest", text=text)
    if attested.policy != policy.record_digest():
        text = (
            f"judged by {short(attested.policy)}, required is {policy.name} {short(policy.record_digest())}"
        )
        yield Refusal(code="policy", text=text)
    lacking = sorted(set(policy.evalsets()) - set(attested.evalsets))
    if lacking:
        yield Refusal(
            code="evalsets", text=f"no digest of {', '.join(lacking)}, which the policy measures on"
        )
    lost = sorted({check.id for check in policy.checks} | {FAILURES})
    lost = [name for name in lost if name not in {check.id for check in attested.checks}]
    if lost:
        yield Refusal(code="checks", text=f"no result of {', '.join(lost)}")


def _verdict(attested: Attested, waiver: Waiver | None) -> Iterator[Refusal]:
    if attested.verdict is Verdict.PASS:
        bad = [c.id for c in attested.checks if c.gating and c.outcome in ("blocked", "anomalous")]
        if bad:
            text = f"a pass, although {', '.join(bad)} did not hold"
            yield Refusal(code="contradiction", text=text)
    elif waiver is None:
        text = f"the verdict is {attested.verdict.value}, not a pass, and no waiver that holds was given"
        yield Refusal(code="verdict", text=text)
    elif attested.verdict is Verdict.ERROR:
        yield Refusal(code="verdict", text="a gate that broke cannot be waived")


def _age(ended: str, now: datetime, most: timedelta) -> Iterator[Refusal]:
    when = _time(ended)
    if when is None:
        yield Refusal(code="time", text=f"expected a time with its zone, found {ended[:40]!r}")
    elif when > now + SKEW:
        yield Refusal(
            code="future", text=f"decided at {ended}, which has not come yet ({now:%Y-%m-%dT%H:%MZ})"
        )
    elif now - when > most:
        days = (now - when).total_seconds() / 86_400
        text = f"decided {days:.1f} days ago, allowed are {most.total_seconds() / 86_400:g}"
        yield Refusal(code="age", text=text)


def _waiver(
    waiver: Waiver, attested: Attested | None, pins: str, policy: str, now: datetime
) -> Iterator[Refusal]:
    """What keeps a waiver from holding here and now."""
    for what, claimed, actual in (("candidate", waiver.candidate, pins), ("policy", waiver.policy, policy)):
        if claimed != actual:
            text = f"it waives {what} {short(claimed)}, this is {short(actual)}"
            yield Refusal(code=f"waiver-{what}", text=text)
    if attested is None or waiver.decision != attested.decision or waiver.verdict is not attested.verdict:
        yield Refusal(code="waiver-decision", text=f"it waives another decision ({short(waiver.decision)})")
    issued, expires = _time(waiver.issued), _time(waiver.expires)
    if issued is None or expires is None or expires <= issued:
        yield Refusal(code="waiver-time", text="expected two times with their zones, the second one later")
    elif issued > now + SKEW:
        yield Refusal(code="waiver-future", text=f"issued at {waiver.issued}, which has not come yet")
    elif now >= expires:
        yield Refusal(
            code="waiver-expired", text=f"it ended at {waiver.expires} ({waiver.owner}: {waiver.reason})"
        )


def _time(text: str) -> datetime | None:
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        return None
    return None if time.tzinfo is None else time


def signed_pass_refusals(
    opened: OpenedEnvelope, decision: str, pins: str, policy: str
) -> tuple[Refusal, ...]:
    """Every reason why an envelope is not the signed pass of one decision. Files are not compared.

    ``decision``, ``pins`` and ``policy`` are digests.
    """
    predicate = read_attested(opened)
    refusals = list(predicate.refusals)
    if (attested := predicate.attested) is not None:
        for what, claimed, actual in (
            ("decision", attested.decision, decision), ("candidate", attested.candidate.pins, pins),
            ("policy", attested.policy, policy),
        ):  # fmt: skip
            if claimed != actual:
                refusals.append(
                    Refusal(code=what, text=f"signed was {short(claimed)}, this is {short(actual)}")
                )
        refusals += _verdict(attested, None)
    return tuple(refusals)
