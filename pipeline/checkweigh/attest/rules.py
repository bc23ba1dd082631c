"""All reasons to refuse an attestation or a waiver. No IO: clock, signature and digests of files are arguments.

An attestation is accepted only when every rule held; a list that ends empty because nothing could be checked does
not exist: what cannot be read is itself a refusal.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from checkweigh.attest.bindings import (
    DemandedBaseline,
    PolicyContent,
    baseline_refusals,
    content_refusals,
)
from checkweigh.attest.envelope import OpenedEnvelope, Refusal, read_part
from checkweigh.canonical import short
from checkweigh.errors import BadDocument
from checkweigh.records.attestation import (
    ATTESTED,
    OLDER,
    STATEMENT,
    TEST_RESULT,
    WAIVER,
    Attested,
    AttestedArm,
    Statement,
    Subject,
    TestResult,
    Waiver,
    subjects,
)
from checkweigh.records.decision import Verdict
from checkweigh.records.manifest import Pins
from checkweigh.records.policy import FAILURES
from checkweigh.report.safe import one_line

SKEW = timedelta(minutes=5)  # clocks of two machines may differ by so much


@dataclass(frozen=True, slots=True, kw_only=True)
class Requirements:
    """What an attestation must be about, and what it must rest on.

    ``intends``: of the manifest. ``file_differences``: where the files differ from the pins, in words. ``baseline`` and
    ``tool`` (a digest) are compared where they are demanded.
    """

    pins: Pins
    intends: tuple[str, ...]
    content: PolicyContent
    now: datetime
    max_age: timedelta
    file_differences: Sequence[str] = ()
    baseline: DemandedBaseline | None = None
    tool: str | None = None
    accept_unverified: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadPredicate:
    """The attested part of a statement, as far as it could be read, and every reason to refuse it."""

    attested: Attested | None
    refusals: tuple[Refusal, ...]

    @property
    def outdated(self) -> bool:
        """Whether an earlier version made it: nothing else in it can be what is asked for now."""
        return any(refusal.code == "outdated" for refusal in self.refusals)


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
    3. The policy is this one, and every check of it has a result.
    4. It was measured on what the policy names, on arms that were verified (``bindings.content_refusals``); baseline
       and tool are those that are demanded.
    5. The verdict is a pass that does not contradict itself, or a waiver of this very decision is at hand.
    6. It is not too old, and not from the future.
    """
    predicate = read_attested(opened)
    refusals = list(predicate.refusals)
    refusals += [Refusal(code="files", text=text) for text in expected.file_differences]
    if opened.statement is not None and not predicate.outdated:
        refusals += _subjects(opened.statement.subject, subjects(expected.pins))
    if (attested := predicate.attested) is not None:
        refusals += _about(attested, expected)
        refusals += content_refusals(attested, expected.content, accept_unverified=expected.accept_unverified)
        if expected.baseline is not None:
            refusals += baseline_refusals(attested, expected.baseline)
        if expected.tool not in (None, attested.tool.digest):
            text = f"decided by {attested.tool.digest}, demanded is {expected.tool}"
            refusals.append(Refusal(code="tool", text=text))
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
    if version in OLDER:
        text = (
            f"made by an older version ({version}), which did not verify what its engines had loaded and binds no "
            "content of sets: gate again"
        )
        refusals.append(Refusal(code="outdated", text=text))
        return None
    if version != ATTESTED:
        refusals.append(Refusal(code="schema", text=f"expected {ATTESTED}, found {str(version)[:100]!r}"))
        return None
    try:
        predicate: TestResult = read_part(TestResult, statement.predicate, "predicate")
    except BadDocument as error:
        refusals += [Refusal(code="predicate", text=str(p)) for p in error.problems[:5]]
        return None
    derived = TestResult.of(predicate.checkweigh)
    for name in TestResult.model_fields:
        if getattr(predicate, name) != getattr(derived, name):
            text = f"{name} is not what follows from the verdict and its checks"
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
    pins = expected.pins
    if attested.candidate.pins != pins.record_digest():
        text = f"the verdict is on pins {short(attested.candidate.pins)}, these are {short(pins.record_digest())}"
        yield Refusal(code="candidate", text=text)
    if attested.candidate.manifest != pins.manifest:
        text = f"the verdict is on settings {short(attested.candidate.manifest)}, these are {short(pins.manifest)}"
        yield Refusal(code="manifest", text=text)
    if attested.intends != expected.intends:
        judged, here = (", ".join(names) or "nothing" for names in (attested.intends, expected.intends))
        text = f"judged was a candidate that intends {judged}, this manifest intends {here}"
        yield Refusal(code="intends", text=text)
    lost = sorted({check.id for check in expected.content.policy.checks} | {FAILURES})
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


def signed_pass_refusals(opened: OpenedEnvelope, expected: Attested) -> tuple[Refusal, ...]:
    """Every reason why an envelope is not the signed pass of one decision. Files are not compared.

    ``expected``: what this version would sign of that decision. Which tool signed, its wording of the notes and the
    model signature of the weights do not follow from a decision.
    """
    predicate = read_attested(opened)
    refusals = list(predicate.refusals)
    if (attested := predicate.attested) is not None:
        signed = {
            "tool": expected.tool.model_copy(update={"digest": attested.tool.digest}),
            "notes": attested.notes,
            "weights_signature": attested.weights_signature,
        }
        refusals += [
            Refusal(code=name, text=f"signed was {_shown(claimed)}, the decision says {_shown(actual)}")
            for name, claimed, actual in _differences(attested, expected.model_copy(update=signed))
        ]
        refusals += _verdict(attested, None)
    return tuple(refusals)


def _differences(first: Attested, second: Attested) -> Iterator[tuple[str, object, object]]:
    """Every field in which they differ, with both values."""
    for name in Attested.model_fields:
        values = getattr(first, name), getattr(second, name)
        if values[0] != values[1]:
            yield name.rstrip("_"), *values


def _shown(value: object) -> str:
    """A value for people, cut off."""
    text = f"pins {value.pins}" if isinstance(value, AttestedArm) else str(value)
    return one_line(text, 200)
