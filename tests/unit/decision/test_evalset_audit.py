"""What is doubtful about sound items: each rule at its edge."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from checkweigh.decision.evalset_audit import AuditFinding, audit_items, smallest_margin
from checkweigh.records.evalset import Choice, Generation, Item, Message, ReplyCheck, Text


def asked(
    i: int, prompt: str, right: str = "zebra", *, kind: str = "phrase", stratum: str = "s", cluster: str = ""
) -> Generation:
    """A question that is a cluster of its own unless one is named."""
    return Generation(
        id=f"g{i}", cluster=cluster or f"c{i}", stratum=stratum, messages=(Message(role="user", content=prompt),),
        check=ReplyCheck(kind=kind, values=(right,)),
    )  # fmt: skip


def chosen(i: int, answer: int, choices: tuple[str, ...] = ("one", "two"), prompt: str = "") -> Choice:
    message = Message(role="user", content=prompt or f"question {i}?")
    return Choice(
        id=f"q{i}", cluster=f"c{i}", stratum="s", messages=(message,), choices=choices, answer=answer
    )


def questions(n: int, per_cluster: int = 1) -> list[Generation]:
    return [asked(i, f"question {i}?", cluster=f"c{i // per_cluster}") for i in range(n)]


def rules(items: Sequence[Item], scores: dict[str, float] | None = None) -> dict[str, AuditFinding]:
    return {finding.rule: finding for finding in audit_items(items, scores)}


def test_nothing_to_say_about_a_good_set_and_none() -> None:
    assert audit_items(questions(600)) == ()
    assert audit_items([]) == ()


def test_prompts_that_differ_in_case_and_punctuation_only() -> None:
    items = [*questions(600), asked(600, "Question  7!"), asked(601, "question 8 ?")]
    found = [f for f in audit_items(items) if f.rule == "near_duplicates"]
    assert [f.items for f in found] == [("g7", "g600"), ("g8", "g601")]
    signs = [asked(i, f"What is 2 {sign} 3?") for i, sign in enumerate("+-x")] + [
        asked(4, "-3, 6?"),
        asked(5, "3, 6?"),
    ]
    assert "near_duplicates" not in rules(signs)
    together = [asked(0, "Hello", cluster="c"), asked(1, "hello!", cluster="c")]
    assert "near_duplicates" not in rules(together)  # one cluster says that they belong together
    texts: list[Item] = [
        Text(id=f"t{i}", cluster=f"c{i}", stratum="s", text=t) for i, t in enumerate(["A b.", "a  B"])
    ]
    assert rules(texts)["near_duplicates"].items == ("t0", "t1")


def test_an_answer_in_a_prompt_is_a_leak() -> None:
    items = [*questions(60), asked(60, "Is a ZEBRA striped?"), asked(61, "Are zebras striped?")]
    leak = rules(items)["leaks"]
    assert (leak.severity, leak.items) == ("warning", ("g60",))
    assert "1 of 62" in leak.text


@pytest.mark.parametrize(
    ("prompt", "right", "kind"),
    [
        ("What is 12 + 0?", "12", "phrase"),
        ("Is it so, or no?", "no", "phrase"),
        ("A zebra?", "zebra", "regex"),
        ("A zebra?", "zebra", "number"),
    ],
)
def test_what_is_in_a_prompt_by_chance_is_none(prompt: str, right: str, kind: str) -> None:
    assert "leaks" not in rules([*questions(60), asked(60, prompt, right, kind=kind)])


def test_where_most_answers_are_in_the_prompt_the_task_is_to_find_them() -> None:
    items = [asked(i, f"A zebra or a horse, {i}?", stratum="find") for i in range(9)]
    items.append(asked(9, "question?", stratum="find"))
    found = rules(items)
    assert "leaks" not in found
    assert found["answers_in_prompts"].severity == "note"
    half = [asked(i, f"A zebra, {i}?" if i < 5 else f"question {i}?") for i in range(10)]
    assert len(rules(half)["leaks"].items) == 5


def test_a_right_choice_that_only_the_prompt_names() -> None:
    both = chosen(1, 0, ("red", "blue"), "Is it red or blue?")
    alone = chosen(2, 0, ("red", "blue"), "Is it red?")
    wrong = chosen(3, 1, ("red", "blue"), "Is it red now?")
    assert rules([both, alone, wrong])["leaks"].items == ("q2",)


@pytest.mark.parametrize(
    ("items", "rule"),
    [
        (questions(39), "effective_clusters"), (questions(40), "few_clusters"), (questions(59), "few_clusters"),
        (questions(60), None), (questions(190, per_cluster=5), "effective_clusters"),
    ],
)  # fmt: skip
def test_clusters(items: list[Generation], rule: str | None) -> None:
    found = {"effective_clusters", "few_clusters"} & set(rules(items))
    assert found == ({rule} if rule else set())


def test_clusters_of_very_different_size_count_for_fewer() -> None:
    items = questions(60) + [asked(100 + i, f"more {i}", cluster="large") for i in range(60)]
    found = rules(items)
    assert "effective_clusters" in found  # 120^2 / (60 + 60^2) = 3.9 of 61
    assert found["large_clusters"].text.endswith("one 60: large")
    assert "large_clusters" not in rules(questions(300, per_cluster=5))
    assert "large_clusters" in rules(questions(360, per_cluster=6))


def test_margins_that_the_items_can_hold() -> None:
    assert "few_items" in rules(questions(100))
    assert "few_items" not in rules(questions(400))
    large, small, clustered = (
        smallest_margin(items) for items in (questions(1600), questions(400), questions(400, per_cluster=4))
    )
    assert large is not None
    assert small is not None
    assert clustered is not None
    assert large < small < clustered
    assert smallest_margin(questions(3)) is None
    assert "no margin below a half" in rules(questions(3))["few_items"].text
    prose: list[Item] = [Text(id=f"t{i}", cluster=f"c{i}", stratum="s", text=f"text {i}") for i in range(70)]
    assert audit_items(prose) == ()


def test_one_place_for_all_right_choices() -> None:
    assert rules([chosen(i, 0) for i in range(400)])["one_answer_place"].text.startswith(
        "the right choice has index 0"
    )
    assert "one_answer_place" not in rules([chosen(i, i % 2) for i in range(400)])
    mostly = [chosen(i, 1 if i < 81 else 0) for i in range(100)]
    assert "one_answer_place" in rules(mostly)
    assert "one_answer_place" not in rules([chosen(i, 1 if i < 80 else 0) for i in range(100)])


@pytest.mark.parametrize(
    ("score", "rule"), [(0.05, "floor"), (0.06, None), (0.94, None), (0.95, "ceiling"), (1.0, "ceiling")]
)
def test_floor_and_ceiling_of_replies(score: float, rule: str | None) -> None:
    found = {"floor", "ceiling"} & set(rules(questions(600), {"": score}))
    assert found == ({rule} if rule else set())


def test_floor_of_choices_is_chance() -> None:
    items = [chosen(i, i % 4, ("a", "b", "c", "d")) for i in range(600)]
    assert "chance is 0.25" in rules(items, {"": 0.30})["floor"].text
    assert "floor" not in rules(items, {"": 0.31})
    assert "stratum s" in rules(items, {"": 0.5, "s": 0.2})["floor"].text


@pytest.mark.parametrize(
    ("scorer", "leaks"), [("f1", True), ("json_schema", False), ("code_execution", False)]
)
def test_references_leak_where_they_are_replies(scorer: str, leaks: bool) -> None:
    items = [
        Generation(
            id=f"g{i}", cluster=f"c{i}", stratum="s", references=("zebra",),
            messages=(Message(role="user", content=f"question {i}" + " about a zebra" * (i == 0)),),
        )
        for i in range(4)
    ]  # fmt: skip
    assert ("leaks" in {finding.rule for finding in audit_items(items, scorer=scorer)}) is leaks
