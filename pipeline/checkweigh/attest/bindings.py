"""Reasons why a verdict rests on something else than is demanded: baseline, anchor, sets, trace, tool. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from checkweigh.attest.envelope import Refusal
from checkweigh.canonical import short
from checkweigh.records.attestation import Attested, AttestedArm
from checkweigh.records.decision import ArmRecord, Decision, Verdict
from checkweigh.records.manifest import Pins
from checkweigh.records.policy import Policy


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyContent:
    """A policy, and the content of what it only names: digests of its sets and its trace, pins of its anchor.

    ``absent``: why the content of one of them is not known here. Nothing is accepted on it.
    """

    policy: Policy
    evalsets: Mapping[str, str]
    anchor: Pins | None = None
    trace: str | None = None
    absent: tuple[Refusal, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class DemandedBaseline:
    """The release that a candidate must have been compared with, and how the operator named it."""

    shown: str
    pins: Pins


def content_refusals(
    verdict: Attested | Decision, content: PolicyContent, *, accept_unverified: bool
) -> Iterator[Refusal]:
    """Where a verdict was not measured on what the policy names, or on arms that nobody could verify.

    1. Policy, sets, anchor and trace have the digests that the operator's have.
    2. Every arm was verified after loading, or the operator accepts that one was not; the loaded engine's identity,
       which holds its effective configuration, is known.
    3. A change without effect is one that the policy accepts.
    """
    policy = content.policy
    yield from content.absent
    if verdict.policy != policy.record_digest():
        judged, wanted = short(verdict.policy), short(policy.record_digest())
        text = f"judged by {verdict.policy_name} {judged}, required is {policy.name} {wanted}"
        yield Refusal(code="policy", text=text)
    for name in policy.evalsets():
        measured, ours = verdict.evalsets.get(name), content.evalsets.get(name)
        if measured is None:
            yield Refusal(code="evalsets", text=f"no digest of {name}, which the policy measures on")
        elif ours is not None and measured != ours:
            text = f"{name}: measured on other items or by another scorer, {short(measured)}, ours is {short(ours)}"
            yield Refusal(code="evalsets", text=text)
    if more := sorted(set(verdict.evalsets) - set(policy.evalsets())):
        yield Refusal(
            code="evalsets", text=f"measured on {', '.join(more)[:200]}, which the policy does not name"
        )
    yield from _anchor(verdict, content)
    unknown = {refusal.code for refusal in content.absent}
    if "trace" not in unknown and verdict.trace != content.trace:
        text = f"replayed was {_short(verdict.trace)}, the policy's trace is {_short(content.trace)}"
        yield Refusal(code="trace", text=text)
    if policy.no_effect == "refuse" and verdict.no_effect:
        yield Refusal(
            code="no-effect", text=f"the policy refuses a change without effect: {verdict.no_effect}"
        )
    arms = {"baseline": verdict.baseline, "candidate": verdict.candidate, "anchor": verdict.anchor}
    for role, arm in arms.items():
        if arm is not None and arm.unverified and not accept_unverified:
            text = f"nobody could check the {role}'s {', '.join(arm.unverified)}; --accept-unverified accepts that"
            yield Refusal(code="unverified", text=text)
        if arm is not None and arm.identity is None and verdict.verdict is Verdict.PASS:
            yield Refusal(code="configuration", text=f"the {role}'s loaded configuration is not known")


def _anchor(verdict: Attested | Decision, content: PolicyContent) -> Iterator[Refusal]:
    """The policy's anchor was measured, and no other manifest under its name."""
    named, found = content.policy.anchor, verdict.anchor
    if (named is None) != (found is None):
        text = f"the policy names {named or 'no anchor'}, measured was {found.name if found else 'none'}"
        yield Refusal(code="anchor", text=text)
    elif found is not None and content.anchor is not None and found.pins != content.anchor.record_digest():
        text = f"measured was {found.name}, pins {short(found.pins)}, {named} has {_difference(found, content.anchor)}"
        yield Refusal(code="anchor", text=text)


def baseline_refusals(attested: Attested, demanded: DemandedBaseline) -> Iterator[Refusal]:
    """Whether the candidate was compared with the release that the operator names."""
    baseline = attested.baseline
    if baseline.pins != demanded.pins.record_digest():
        difference = _difference(baseline, demanded.pins)
        text = (
            f"compared with {baseline.name}, pins {short(baseline.pins)}; {demanded.shown} has {difference}"
        )
        yield Refusal(code="baseline", text=text)


def _difference(arm: AttestedArm | ArmRecord, pins: Pins) -> str:
    """The other pins, and in which part they differ as far as an arm's two digests tell."""
    here = f"pins {short(pins.record_digest())}"
    if arm.manifest == pins.manifest:
        return f"{here}: the manifest's settings are the same, files differ"
    if pins.model_copy(update={"manifest": arm.manifest}).record_digest() == arm.pins:
        return f"{here}: only the manifest's settings differ (pin 'manifest'), every file is the same"
    return f"{here}: the manifest's settings differ"


def _short(digest: str | None) -> str:
    return "none" if digest is None else short(digest)
