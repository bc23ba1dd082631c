"""What every output says of looks, error budget and attempts. Texts only; layout belongs to the formats."""

from __future__ import annotations

from checkweigh.decision import formatting
from checkweigh.records.decision import Decision, Names, Verdict
from checkweigh.records.measurement import Provenance

BIAS = (
    "estimates after an early stop are biased away from zero (at a first look by 1.75 times in simulation); bounds are "
    "repeated confidence bounds, which hold at every look"
)


def attempt_lines(decision: Decision) -> tuple[str, ...]:
    """One line each: how far the gate looked, its error budget, and which try it is."""
    return tuple(line for line in (_looks(decision), _budget(decision), *_attempt(decision)) if line)


def _looks(decision: Decision) -> str:
    looks = decision.looks
    if looks is None or len(looks.shares) == 1:
        return ""
    if not looks.made:
        return f"None of {len(looks.shares)} looks was complete"
    last = looks.made[-1]
    text = (
        f"Look {last.number} of {len(looks.shares)}: {formatting.count(looks.items)} of "
        f"{formatting.count(looks.planned)} items an arm"
    )
    if not looks.early:
        return text
    left = looks.planned - looks.items
    cost = (
        ""
        if looks.saved_seconds is None
        else f" and about {formatting.duration(looks.saved_seconds)} of computing"
    )
    if decision.verdict in (Verdict.PASS, Verdict.BLOCK):
        text += f"; settled early, which saved {formatting.count(left)} items an arm{cost}"
    return f"{text}; {BIAS}"


def _budget(decision: Decision) -> str:
    budget = decision.budget
    if budget is None:
        return ""
    shared = [
        f"{count} {name}"
        for count, name in ((budget.looks, "looks"), (budget.attempts, "attempts"))
        if count > 1
    ]
    split = f", shared by {' and '.join(shared)}" if shared else ""
    return (
        f"Error budget of the whole policy: at most {budget.false_pass:.1%} to pass a candidate worse by a margin, at "
        f"most {budget.false_block:.1%} to block an equal one (Holm over {budget.hypotheses} tests{split})"
    )


def _attempt(decision: Decision) -> tuple[str, ...]:
    attempt = decision.attempt
    if attempt is None:
        return ()
    lines = []
    if attempt.stored:
        lines.append(
            f"STORED VERDICT of {attempt.decided}: the same digests were gated before. Nothing was measured or timed "
            "now; latency and memory are those of then"
        )
        if attempt.now is not None and (then := _names(decision.names)) != (now := _names(attempt.now)):
            lines.append(f"Names of then: {then}. Names of now: {now}")
    if attempt.number > 1 or attempt.of > 1:
        lines.append(f"Attempt {attempt.number} of {attempt.of} declared")
    return (*lines, *(f"Earlier: {line}" for line in attempt.earlier))


def _names(names: Names) -> str:
    """Arms and policy with their documents, and the commit that these were read at."""
    places = names.provenance.documents
    called = {
        "candidate": names.candidate, "baseline": names.baseline, "anchor": names.anchor, "policy": names.policy,
    }  # fmt: skip
    parts = [
        f"{role} {name}" + (f" ({places[role]})" if role in places else "")
        for role, name in called.items()
        if name is not None
    ]
    return ", ".join([*parts, commit_line(names.provenance)])


def commit_line(provenance: Provenance) -> str:
    """The repository and commit of a gate's documents, and which of them that does not hold."""
    where = f"{provenance.repository} at " if provenance.repository else ""
    text = f"{where}commit {provenance.commit or 'unknown'}"
    if provenance.uncommitted:
        return f"{text}, not as committed: {', '.join(provenance.uncommitted)}"
    return f"{text} (dirty)" if provenance.dirty else text
