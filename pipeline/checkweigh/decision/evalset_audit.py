"""What is doubtful about a set whose items are each sound: repeats, leaks, clusters, size, floor and ceiling. Pure.

Every rule only warns: what a gate must refuse is refused when the set is loaded, or when it is compared.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from checkweigh.records.evalset import Choice, Generation, Item, Text
from checkweigh.scoring.replies import normalise
from checkweigh.stats import MIN_EFFECTIVE_CLUSTERS, Partition, required_n_binary

FEW_CLUSTERS = 60
LARGE_CLUSTER = 5
WIDE_MARGIN = 0.05  # a set that cannot hold five points is no gate on its own
FLIP_SHARE = 0.05  # of the items, between two builds of one model; ours differ by 3 to 7%
CHECKS = 4  # as the default policy
ONE_PLACE = 0.8
FLOOR, CEILING = 0.05, 0.95
VERBATIM = frozenset({"phrase", "exact", "verbatim", "items", "keywords"})
REPLIES = frozenset(
    {"exact_match", "normalised_match", "f1", "rouge_l", "chrf", "bleu", "embedding_similarity"}
)  # references are replies
_PAUSES = re.compile(r"[\s.,;:!?'\"()]+")  # not the signs that make another sum
Severity = Literal["error", "warning", "note"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditFinding:
    """One thing to know about a set: ``rule`` names it for programs, ``items`` are the ids it is about."""

    severity: Severity
    rule: str
    text: str
    items: tuple[str, ...] = ()


def audit_items(
    items: Sequence[Item], scores: Mapping[str, float] | None = None, scorer: str = ""
) -> tuple[AuditFinding, ...]:
    """All findings on the items. ``scores``: the baseline's mean score, by stratum, and '' for the whole set.

    ``scorer`` is the card's; it says whether references are replies that would be right.
    """
    if not items:
        return ()
    rules: list[Callable[[Sequence[Item]], Iterable[AuditFinding]]] = [
        _repeats, partial(_leaks, scorer=scorer), _clusters, _size, _places,
    ]  # fmt: skip
    findings = [finding for rule in rules for finding in rule(items)]
    return (*findings, *_room(items, scores or {}))


def _warn(rule: str, text: str, ids: Iterable[str] = ()) -> AuditFinding:
    return AuditFinding(severity="warning", rule=rule, text=text, items=tuple(ids))


def _asked(item: Item) -> str:
    return item.text if isinstance(item, Text) else "\n".join(message.content for message in item.messages)


def _repeats(items: Sequence[Item]) -> Iterator[AuditFinding]:
    """Prompts or texts that are one and the same but for case, punctuation and blanks."""
    alike: dict[str, list[Item]] = defaultdict(list)
    for item in items:
        alike[_PAUSES.sub(" ", _asked(item).casefold()).strip()].append(item)
    for group in alike.values():
        if len(group) > 1 and len({item.cluster for item in group}) > 1:
            text = f"{len(group)} items ask the same, but for case and punctuation, in different clusters"
            yield _warn("near_duplicates", text, (item.id for item in group))


def _leaks(items: Sequence[Item], scorer: str) -> Iterator[AuditFinding]:
    """The right answer stands in the prompt, in a stratum where that is not the task itself.

    A stratum where it does in most items is taken to ask for something out of the prompt (extraction, copying).
    """
    strata: dict[str, list[Item]] = defaultdict(list)
    for item in items:
        strata[item.stratum].append(item)
    for name, members in strata.items():
        leaking = [item.id for item in members if _leak(item, scorer)]
        if not leaking:
            continue
        if 2 * len(leaking) > len(members):
            text = (
                f"stratum {name}: the answer stands in the prompt of {len(leaking)} of {len(members)} items, "
            )
            text += "which is as it should be where the task is to find or copy it"
            yield AuditFinding(severity="note", rule="answers_in_prompts", text=text)
        else:
            text = f"stratum {name}: the answer stands verbatim in the prompt of {len(leaking)} of {len(members)} items"
            yield _warn("leaks", text, leaking)


def _leak(item: Item, scorer: str) -> bool:
    if isinstance(item, Text):
        return False
    asked = f" {normalise(_asked(item))} "
    if isinstance(item, Choice):
        inside = [_inside(choice, asked) for choice in item.choices]
        return inside[item.answer] and sum(inside) == 1
    return any(_inside(reference, asked) for reference in _references(item, scorer))


def _references(item: Generation, scorer: str) -> tuple[str, ...]:
    """The replies that would be right, where the score is about words."""
    if item.check is None:
        return item.references if scorer in REPLIES else ()
    return item.check.values if item.check.kind in VERBATIM else ()


def _inside(answer: str, asked: str) -> bool:
    """Whole words; a number or a word of one or two letters is in many a prompt by chance."""
    words = normalise(answer)
    return len(words) > 2 and not words.replace(" ", "").isdecimal() and f" {words} " in asked


def _clusters(items: Sequence[Item]) -> Iterator[AuditFinding]:
    partition = Partition.from_labels([item.cluster for item in items])
    if partition.g_eff < MIN_EFFECTIVE_CLUSTERS:
        text = f"{partition.g_eff:.0f} effective clusters, and a check needs {MIN_EFFECTIVE_CLUSTERS}: "
        yield _warn("effective_clusters", text + "no gate can rest on this set alone")
    elif partition.clusters < FEW_CLUSTERS:
        text = f"{partition.clusters} clusters: below {FEW_CLUSTERS} the bounds are wide"
        yield _warn("few_clusters", text)
    sizes = Counter(item.cluster for item in items)
    large = sorted(name for name, size in sizes.items() if size > LARGE_CLUSTER)
    if large:
        worst = max(sizes.values())
        shown = ", ".join(large[:5]) + (", ..." if len(large) > 5 else "")
        text = f"{len(large)} clusters have more than {LARGE_CLUSTER} items, one {worst}: {shown}"
        yield _warn("large_clusters", text)


def _size(items: Sequence[Item]) -> Iterator[AuditFinding]:
    """The smallest margin on a score of 0 or 1 that so many items can hold."""
    if isinstance(items[0], Text):
        return
    margin = smallest_margin(items)
    if margin is None or margin > WIDE_MARGIN:
        least = "no margin below a half" if margin is None else f"about {100 * margin:.1f} points"
        text = f"{len(items)} items hold {least} where {100 * FLIP_SHARE:.0f}% of the scores flip: "
        yield _warn("few_items", text + "pool the set with others, or keep its check advisory")


def smallest_margin(items: Sequence[Item]) -> float | None:
    """In steps of half a point, for an equal candidate to pass 4 checks in 4 cases of 5; None where there is none."""
    partition = Partition.from_labels([item.cluster for item in items])
    for step in range(1, 100):
        margin = step / 200
        if required_n_binary(FLIP_SHARE, margin, checks=CHECKS, design_effect=partition.k) <= partition.n:
            return margin
    return None


def _places(items: Sequence[Item]) -> Iterator[AuditFinding]:
    answers = Counter(item.answer for item in items if isinstance(item, Choice))
    if not answers:
        return
    place, count = answers.most_common(1)[0]
    if count > ONE_PLACE * len(items) and len(items) > 1:
        text = f"the right choice has index {place} in {count} of {len(items)} items: ties would be won or lost by it"
        yield _warn("one_answer_place", text)


def _room(items: Sequence[Item], scores: Mapping[str, float]) -> Iterator[AuditFinding]:
    """Floor and ceiling: a baseline that cannot fall, or cannot rise, tells nothing."""
    by_stratum: dict[str, list[Item]] = defaultdict(list)
    for item in items:
        by_stratum[item.stratum].append(item)
    for name, score in sorted(scores.items()):
        members = by_stratum.get(name, []) if name else list(items)
        choices = [item for item in members if isinstance(item, Choice)]
        chance = sum(1 / len(item.choices) for item in choices) / len(choices) if choices else 0.0
        what = f"stratum {name}" if name else "the set"
        if score <= chance + FLOOR:
            text = f"{what}: the baseline scores {score:.2f}, chance is {chance:.2f}: it has nothing to lose"
            yield _warn("floor", text)
        elif score >= CEILING:
            yield _warn(
                "ceiling", f"{what}: the baseline scores {score:.2f}: only a ruined candidate will differ"
            )
