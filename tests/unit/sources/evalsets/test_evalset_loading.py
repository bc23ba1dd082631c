"""Evaluation sets: read as datasets reads them, held against their card, all problems at once."""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from checkweigh import canonical
from checkweigh.errors import BadDocument, BadInput, PinMismatch
from checkweigh.records.evalset import Choice, Generation, Text
from checkweigh.sources.evalsets.load_evalset import evalset_roots, find_evalset, load_evalset

pytestmark = pytest.mark.usefixtures("checkweigh_home")
Row = dict[str, Any]
Write = Callable[..., Path]
ASKED = [{"role": "user", "content": "Paris?"}]
SCORER = {"text": "log_likelihood", "choice": "choice_probability", "generation": "reply_check"}


def text(i: int, **more: Any) -> Row:
    return {"id": f"t{i}", "cluster": f"c{i // 2}", "stratum": "s", "text": f"words {i}"} | more


def choice(i: int, **more: Any) -> Row:
    own = {
        "id": f"q{i}",
        "cluster": f"c{i}",
        "stratum": "s",
        "messages": ASKED,
        "choices": ["yes", "no"],
        "answer": 0,
    }
    return own | more


def generation(i: int, **more: Any) -> Row:
    check = {"kind": "phrase", "values": ["yes"]}
    return {"id": f"g{i}", "cluster": f"c{i}", "stratum": "s", "messages": ASKED, "check": check} | more


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """``write(kind, rows, **card)`` -> the folder of a set; rows may be bytes."""

    def build(kind: str, rows: list[Row] | bytes, **card: Any) -> Path:
        folder = tmp_path / "sets" / "small"
        folder.mkdir(parents=True, exist_ok=True)
        data = rows if isinstance(rows, bytes) else b"".join(json.dumps(row).encode() + b"\n" for row in rows)
        (folder / "items.jsonl").write_bytes(data)
        known = rows if isinstance(rows, list) else []
        document = {
            "schema": "checkweigh/evalset@1", "name": "small", "version": "1.0.0", "kind": kind, "licence": "CC0",
            "description": "small", "source": "items.jsonl", "digest": canonical.digest_bytes(data),
            "scorer": {"name": SCORER[kind], "version": 1}, "items": max(1, len(known)),
            "clusters": max(1, len({row.get("cluster") for row in known})), "strata": {"s": max(1, len(known))},
        }  # fmt: skip
        (folder / "card.yaml").write_text(yaml.safe_dump(document | card))
        return folder

    return build


def said(folder: Path) -> list[str]:
    with pytest.raises(BadDocument) as caught:
        load_evalset(folder)
    return [str(p).replace(str(folder), "") for p in caught.value.problems]


def test_each_kind(write: Write) -> None:
    found = load_evalset(write("text", [text(0), text(1, origin="here"), text(2)])).items
    assert found[1] == Text(id="t1", cluster="c0", stratum="s", text="words 1", origin="here")
    chosen = load_evalset(write("choice", [choice(0), choice(1, answer=1)])).items[1]
    assert isinstance(chosen, Choice)
    assert (chosen.choices, chosen.answer, chosen.messages[0].content) == (("yes", "no"), 1, "Paris?")
    check = {"kind": "phrase", "values": [], "pattern": "y.s"}
    replied = load_evalset(write("generation", [generation(0), generation(1, check=check)])).items
    assert isinstance(replied[0], Generation)
    assert isinstance(replied[1], Generation)
    assert replied[0].check
    assert replied[1].check
    assert (replied[0].check.values, replied[0].check.pattern) == (("yes",), "")
    assert (replied[1].check.values, replied[1].check.pattern) == ((), "y.s")


def referred(i: int, *references: str, **more: Any) -> Row:
    return {
        "id": f"g{i}",
        "cluster": f"c{i}",
        "stratum": "s",
        "messages": ASKED,
        "references": [*references],
    } | more


def test_references_instead_of_checks(write: Write) -> None:
    folder = write(
        "generation", [referred(0, "yes", "Yes!"), referred(1, "no")], scorer={"name": "f1", "version": 1}
    )
    found = load_evalset(folder).items[0]
    assert isinstance(found, Generation)
    assert (found.references, found.check) == (("yes", "Yes!"), None)


def test_each_scorer_wants_its_own(write: Write) -> None:
    """Checks for reply_check, references for the others, and never both; references that can score."""
    f1 = {"name": "f1", "version": 1}
    assert said(write("generation", [generation(0)], scorer=f1)) == [
        "/items.jsonl:1: references: expected references for the scorer f1, found a check"
    ]
    assert said(write("generation", [referred(0, "yes")])) == [
        "/items.jsonl:1: check: expected check for the scorer reply_check, found references"
    ]
    both = generation(0, references=["yes"])
    for row in (both, referred(0)):
        (told,) = said(write("generation", [row], scorer=f1))
        assert "a check or references, one of the two" in told
    assert "references[0]" in said(write("generation", [referred(0, " ")], scorer=f1))[0]
    (told,) = said(write("generation", [referred(0, "many")], scorer={"name": "numeric", "version": 1}))
    assert told.startswith(
        "/items.jsonl:1: references: expected references that numeric can use, found ValueError"
    )


@pytest.mark.parametrize(
    ("scorer", "told"),
    [
        ({"name": "f2", "version": 1}, "scorer"),
        (
            {"name": "log_likelihood", "version": 1},
            "a generation set is scored by reply_check or exact_match",
        ),
        ({"name": "evaluate", "version": 1}, "scorer.module"),
        (
            {"name": "evaluate", "version": 1, "module": "./m.py", "key": "k"},
            "a local module with the sha256",
        ),
        (
            {"name": "evaluate", "version": 1, "module": "me/m", "key": "k", "revision": "main"},
            "scorer.revision",
        ),
        (
            {"name": "evaluate", "version": 1, "module": "me/m", "key": "k", "digest": "sha256:" + "0" * 64},
            "a hub module with its revision",
        ),
        ({"name": "f1", "version": 1, "module": "./m.py"}, "scorer.module: expected a known key"),
    ],
)
def test_scorers_that_are_not_pinned_or_not_known(write: Write, scorer: Row, told: str) -> None:
    assert told in "\n".join(said(write("generation", [referred(0, "yes")], scorer=scorer)))


def test_a_check_is_dumped_as_before_references_were_there() -> None:
    """Digests of items with checks, which address stored measurements, stay what they were."""
    made = Generation.model_validate_json(json.dumps(generation(0)))
    assert set(made.model_dump(mode="json")) == {"id", "cluster", "stratum", "messages", "check"}


def test_words_that_look_like_something_else(write: Write) -> None:
    rows = [
        text(i, text=words)
        for i, words in enumerate(["2020-01-01", "2020-01-02 10:00:00", "12", "null", " é\u2028x"])
    ]
    found = load_evalset(write("text", rows)).items
    assert [item.text for item in found if isinstance(item, Text)] == [row["text"] for row in rows]


def test_blank_lines_do_not_count(write: Write) -> None:
    lines = [json.dumps(text(i)) for i in range(3)]
    data = ("\n" + lines[0] + "\n\n" + lines[1] + "\r\n" + lines[2]).encode()
    folder = write("text", data, items=3, clusters=2, strata={"s": 3})
    assert [item.id for item in load_evalset(folder).items] == ["t0", "t1", "t2"]


def test_no_network(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    assert len(load_evalset(write("text", [text(0)])).items) == 1


def test_the_environment_is_left_alone(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    load_evalset(write("text", [text(0)]))

    assert "HF_HUB_OFFLINE" not in os.environ  # a hub: source may be resolved next


def test_other_items_than_the_card_says(write: Write) -> None:
    folder = write("text", [text(0)])
    pinned = canonical.digest_bytes((folder / "items.jsonl").read_bytes())
    (folder / "items.jsonl").write_text(json.dumps(text(1)))
    with pytest.raises(PinMismatch) as caught:
        load_evalset(folder)
    (problem,) = caught.value.problems
    found = canonical.digest_bytes(json.dumps(text(1)).encode())
    assert (problem.file, problem.expected, problem.found) == (str(folder / "items.jsonl"), pinned, found)


def test_all_problems_with_their_lines(write: Write) -> None:
    rows = [text(0), text(1, text=""), text(0), text(3, colour="red"), text(4, stratum=None), text(5, id=7)]
    shown = said(write("text", rows))
    assert [line.split(": expected")[0] for line in shown] == [
        "/items.jsonl:2: text", "/items.jsonl:3: id", "/items.jsonl:4: colour", "/items.jsonl:5: stratum",
        "/items.jsonl:6: id",
    ]  # fmt: skip
    assert shown[1].endswith("expected ids that are all different, found 't0' again, first in line 1")


@pytest.mark.parametrize(
    ("kind", "row", "path"),
    [
        ("choice", choice(0, answer=2), ""),
        ("choice", choice(0, answer=-1), "answer"),
        ("choice", choice(0, answer=True), "answer"),
        ("choice", choice(0, choices=["one"]), "choices"),
        ("choice", choice(0, messages=[]), "messages"),
        ("choice", choice(0, messages=[{"role": "robot", "content": "x"}]), "messages[0].role"),
        ("generation", generation(0, check={"kind": "phrse"}), "check.kind"),
        ("generation", generation(0, check={"kind": "phrase", "words": ["x"]}), "check.words"),
        ("text", choice(0), "text"),
    ],
)
def test_items_that_make_no_sense(write: Write, kind: str, row: Row, path: str) -> None:
    assert any(
        line.startswith(f"/items.jsonl:1: {path + ': ' if path else ''}expected")
        for line in said(write(kind, [row]))
    )


@pytest.mark.parametrize(
    "data", [b"{", b"[1]\n", b'"text"\n', b'{"id": "t0"', b"\xff\xfe", b'{"id": NaN}', b"[" * 100_000]
)
def test_lines_that_are_no_objects(write: Write, data: bytes) -> None:
    good = json.dumps(text(0)).encode() + b"\n"
    assert said(write("text", good + data))[0].startswith("/items.jsonl:2: ")


def test_an_empty_file(write: Write) -> None:
    assert said(write("text", b""))[0].startswith("/items.jsonl: expected ")


def test_many_problems_are_counted(write: Write) -> None:
    shown = said(write("text", [text(i, text="") for i in range(50)]))
    assert len(shown) == 21
    assert shown[-1].endswith("found 30 more")


def test_counts_that_are_not_the_cards(write: Write) -> None:
    folder = write("text", [text(0), text(1), text(2)], items=5, clusters=3, strata={"s": 2, "x": 1})
    shown = said(folder)
    assert [line.split(":")[1].strip() for line in shown] == ["items", "clusters", "strata"]
    assert shown[0] == "/card.yaml: items: expected 5 as stated, found 3"


def test_cards_that_are_wrong(write: Write, tmp_path: Path) -> None:
    assert "name: expected small, found other" in said(write("text", [text(0)], name="other"))[0]
    assert (
        "source: expected a file below the card" in said(write("text", [text(0)], source="../../x.jsonl"))[0]
    )
    assert "found no such file" in said(write("text", [text(0)], source="x.jsonl"))[0]
    assert "scored by" in said(write("text", [text(0)], scorer={"name": "reply_check", "version": 1}))[0]
    with pytest.raises(BadDocument, match=r"card\.yaml: expected a card, found no such file"):
        load_evalset(tmp_path / "nothing")


def test_sets_are_found_by_name(write: Write) -> None:
    folder = write("text", [text(0)])
    assert find_evalset("small", [folder.parent / "none", folder.parent]).card.name == "small"
    with pytest.raises(BadInput, match="evalset 'large': expected one of small below"):
        find_evalset("large", [folder.parent])
    with pytest.raises(BadInput, match="no sets at all"):
        find_evalset("large", [])


def test_two_places_for_one_set_are_refused_and_two_names_for_one_place_are_not(
    write: Write, tmp_path: Path
) -> None:
    sets = write("text", [text(0)]).parent
    (tmp_path / "link").symlink_to(sets)
    assert find_evalset("small", [sets, tmp_path / "link"]).card.name == "small"
    copy = tmp_path / "copy"
    shutil.copytree(sets, copy)
    with pytest.raises(BadInput, match="expected one place for it, found") as caught:
        find_evalset("small", [copy, sets])
    assert str(copy / "small") in str(caught.value)
    assert str(sets / "small") in str(caught.value)


def test_the_content_digest_is_of_items_and_scorer(write: Write) -> None:
    """The digest of a card is of a file's bytes: it knows neither the scorer nor that the items are the same."""
    rows = [text(0), text(1)]
    first = load_evalset(write("text", rows))
    folder = write("text", rows, description="said in other words", version="3.0.0")
    assert load_evalset(folder).content_digest() == first.content_digest()
    spaced = [json.dumps(row, separators=(", ", " : ")).encode() + b"\n" for row in rows]
    folder = write("text", b"".join(spaced), items=2, clusters=1, strata={"s": 2})
    assert load_evalset(folder).card.digest != first.card.digest
    assert load_evalset(folder).content_digest() == first.content_digest()
    for other in (
        write("text", rows, scorer={"name": "log_likelihood", "version": 2}),
        write("text", [text(1), text(0)]),
        write("text", [text(0), text(2)]),
    ):
        assert load_evalset(other).content_digest() != first.content_digest()


def test_the_same_item_under_another_id_is_refused(write: Write) -> None:
    folder = write("text", [text(0), text(1), text(0, id="another")])
    with pytest.raises(BadDocument, match=r"jsonl:3: expected items that are all different"):
        load_evalset(folder)


def test_sets_stand_beside_the_policy_and_nowhere_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path / "sub")
    assert evalset_roots(tmp_path / "gates" / "p.yaml") == (
        tmp_path / "gates" / "evalsets",
        tmp_path / "evalsets",
    )


def test_other_items_at_the_same_place_and_time_are_read_anew(write: Write) -> None:
    folder = write("text", [text(0), text(1)])
    file = folder / "items.jsonl"
    stat = file.stat()
    load_evalset(folder)
    write("text", [text(0), text(3, cluster="c0")])
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # as a reproducible archive unpacks it
    assert [item.id for item in load_evalset(folder).items] == ["t0", "t3"]


@pytest.mark.parametrize("damage", ["other", "cut", "gone"])
def test_a_damaged_cache_is_made_again(write: Write, checkweigh_home: Path, damage: str) -> None:
    folder = write("text", [text(0), text(1)])
    expected = load_evalset(folder)
    (arrow,) = (checkweigh_home / "datasets").rglob("*.arrow")
    data = arrow.read_bytes()
    assert data.count(b"words 1") == 1
    if damage == "gone":
        arrow.unlink()
    else:
        arrow.write_bytes(data.replace(b"words 1", b"words 7") if damage == "other" else data[:100])
    assert load_evalset(folder) == expected
    if damage == "other":
        assert arrow.read_bytes().count(b"words 7") == 0


def test_the_cache_is_used(write: Write, checkweigh_home: Path) -> None:
    folder = write("text", [text(0), text(1)])
    load_evalset(folder)
    (arrow,) = (checkweigh_home / "datasets").rglob("*.arrow")
    before = arrow.stat()
    load_evalset(folder)
    assert (arrow.stat().st_ino, arrow.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_keys_twice_and_a_place_that_is_a_pattern(write: Write, tmp_path: Path) -> None:
    row = json.dumps(text(0)).encode()
    twice = row[:-1] + b', "text": "other"}\n'
    assert "text" in said(write("text", row + b"\n" + twice))[0]
    folder = write("text", [text(0)])
    odd = folder.parent.rename(tmp_path / "a[b]*{c}") / "small"
    assert [item.id for item in load_evalset(odd).items] == ["t0"]
