"""Which checks have nothing to estimate because two tokenizers differ, known before an engine starts.

1. Two vocabularies: a token is not the same unit, on any set (``comparable_metrics``).
2. One vocabulary, and a set's texts split into other tokens: no divergence, and where their number differs, no
   perplexity a token. Replies and choices stay comparable: what a model says is in the one vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from checkweigh.decision.verdict import is_declared_change
from checkweigh.errors import BadDocument, Problem
from checkweigh.records.evalset import EvalSet, Text
from checkweigh.records.policy import Check, Policy
from checkweigh.sources.model.render import Renderer
from checkweigh.sources.pin import Resolved
from checkweigh.sources.undeclared import comparable_metrics

FAMILIES = "gates/families.yaml"
_PER_TOKEN = ("log_perplexity", "kl")  # of raw texts
_OTHER_FILES = ("config.json", "generation_config.json")  # beside the tokenizer's own


def inestimable_checks(
    policy: Policy,
    evalsets: Sequence[EvalSet],
    candidate: Resolved,
    *,
    baseline: Resolved,
    anchor: Resolved | None = None,
) -> dict[str, str]:
    """Check -> why the arms' tokenizers leave it without an estimate; checks that have one are not in it."""
    reasons: dict[str, str] = {}
    for role, reference in (("baseline", baseline), ("anchor", anchor)):
        if reference is None:
            continue
        checks = [check for check in policy.checks if check.against == role]
        answers = comparable_metrics(reference.pins, candidate.pins)
        reasons |= {c.id: answers[c.metric] for c in checks if answers[c.metric] != "yes"}
        left = [c for c in checks if c.metric in _PER_TOKEN and c.id not in reasons]
        if left and _tokenizer(reference) != _tokenizer(candidate):
            reasons |= _split_otherwise(left, evalsets, (reference, candidate))
    return reasons


def refuse_critical(
    path: Path, policy: Policy, intends: Sequence[str], inestimable: Mapping[str, str]
) -> None:
    """Refuse a policy whose critical checks have no estimate: it cannot pass. Raises BadDocument with all of them.

    A change that the candidate declares (``intends``) is not gated, and needs none.
    """
    problems = [
        Problem(
            file=str(path), line=None, path=f"checks[{i}].metric",
            expected=f"for {check.id} a metric that these two tokenizers share, as in {FAMILIES}",
            found=f"{check.metric}: {inestimable[check.id]}",
        )
        for i, check in enumerate(policy.checks)
        if check.id in inestimable and check.tier == "critical" and not is_declared_change(check, intends)
    ]  # fmt: skip
    if problems:
        raise BadDocument(problems)


def without_estimate(policy: Policy, inestimable: Mapping[str, str]) -> tuple[str, ...]:
    """One note that names the checks; none where there are none."""
    names = [f"{check.id} ({check.tier})" for check in policy.checks if check.id in inestimable]
    return (f"not estimated, because the tokenizers differ: {', '.join(names)}",) if names else ()


def never_pass(policy: Policy, intends: Sequence[str], inestimable: Mapping[str, str]) -> tuple[str, ...]:
    """Supporting checks that keep the gate from passing, for there is no estimate on which they could; in sentences."""
    return tuple(
        f"{check.id}: nothing can pass: {inestimable[check.id]}"
        for check in policy.checks
        if check.id in inestimable and check.tier == "supporting" and not is_declared_change(check, intends)
    )


def _split_otherwise(
    checks: Sequence[Check], evalsets: Sequence[EvalSet], arms: Sequence[Resolved]
) -> Iterator[tuple[str, str]]:
    """(check, why) of those whose texts the two arms' tokenizers split so that the metric has no estimate."""
    first, second = (Renderer(arm.tokenizer_dir, arm.chat_template) for arm in arms)
    used = {name for check in checks for name in check.evalset}
    splits = {
        s.card.name: [
            (item.stratum, first.encode(item.text), second.encode(item.text))
            for item in s.items
            if isinstance(item, Text)
        ]
        for s in evalsets
        if s.card.name in used
    }
    for check in checks:
        stratum = check.where.get("stratum")
        rows = [(a, b) for name in check.evalset for s, a, b in splits[name] if stratum in (None, s)]
        # A mean a token needs as many tokens of a text in both arms; a divergence, the same tokens.
        other = sum(a != b if check.metric == "kl" else len(a) != len(b) for a, b in rows)
        if other:
            tokens = " against ".join(f"{sum(map(len, ids)):,}" for ids in zip(*rows, strict=True))
            texts = f"{other} of {len(rows)} texts of {' and '.join(check.evalset)}"
            yield (
                check.id,
                f"the tokenizers split {texts} otherwise ({tokens} tokens in all); use bits_per_byte",
            )


def _tokenizer(arm: Resolved) -> dict[str, str]:
    """The pins of the tokenizer's own files."""
    return {name: digest for name, digest in arm.pins.tokenizer.items() if name not in _OTHER_FILES}
