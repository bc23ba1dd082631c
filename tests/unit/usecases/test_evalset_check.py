"""``checkweigh evalset check``: everything at once, the right digest, floor and ceiling from the store."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.builders import measured
from tests.conftest import WriteManifest

from checkweigh import canonical
from checkweigh.cli import main
from checkweigh.sources.evalsets.load_evalset import load_evalset
from checkweigh.sources.pin import verify
from checkweigh.store import Store
from checkweigh.usecases.evalset_check import check_evalset

pytestmark = pytest.mark.usefixtures("checkweigh_home")
Capture = pytest.CaptureFixture[str]
RIGHT = "zebra"


def write(folder: Path, rows: list[dict[str, Any]], **card: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    data = b"".join(json.dumps(row).encode() + b"\n" for row in rows)
    (folder / "data.jsonl").write_bytes(data)
    document = {
        "schema": "checkweigh/evalset@1", "name": folder.name, "version": "1.0.0", "kind": "generation",
        "licence": "ours", "description": "ours", "source": "data.jsonl", "digest": canonical.digest_bytes(data),
        "scorer": {"name": "reply_check", "version": 1}, "columns": {"id": "n", "prompt": "q", "references": "a"},
    }  # fmt: skip
    (folder / "card.yaml").write_text(yaml.safe_dump(document | card))
    return folder


def rows(n: int) -> list[dict[str, Any]]:
    return [{"n": i, "q": f"question {i}?", "a": RIGHT} for i in range(n)]


def quiet(*_: object) -> None:
    pass


def found_rules(capsys: Capture, *arguments: str) -> tuple[int, dict[str, Any], list[str]]:
    code = main(["evalset", "check", *arguments, "--json"])
    out = json.loads(capsys.readouterr().out)
    return code, out, [finding["rule"] for finding in out["findings"]]


def test_a_good_set(tmp_path: Path, capsys: Capture) -> None:
    folder = write(tmp_path / "mine", rows(600))
    code, out, rules = found_rules(capsys, str(folder))
    assert (code, rules, out["exit_code"]) == (0, [], 0)
    assert (out["items"], out["clusters"], out["strata"], out["pinned"]) == (600, 600, {"all": 600}, True)
    assert main(["evalset", "check", str(folder)]) == 0
    captured = capsys.readouterr()
    assert captured.out == ""
    assert f"digest: {out['digest']}\n" in captured.err


def test_the_right_digest_is_printed(tmp_path: Path, capsys: Capture) -> None:
    folder = write(tmp_path / "mine", rows(600), digest="sha256:" + "0" * 64)
    code, out, rules = found_rules(capsys, str(folder))
    assert (code, rules, out["pinned"]) == (2, ["digest"], False)
    assert main(["evalset", "check", str(folder)]) == 2
    assert f"digest: {out['digest']}   <- put this into card.yaml" in capsys.readouterr().err
    card = yaml.safe_load((folder / "card.yaml").read_text())
    (folder / "card.yaml").write_text(yaml.safe_dump(card | {"digest": out["digest"]}))
    assert main(["evalset", "check", str(folder)]) == 0


def test_everything_is_told_at_once(tmp_path: Path, capsys: Capture) -> None:
    data = [
        *rows(30),
        {"n": 3, "q": "another?", "a": "x"},
        {"n": 31, "q": None, "a": "x"},
        {"n": 32, "q": "question 1?", "a": RIGHT},
        {"n": 33, "q": "Question 2!", "a": RIGHT},
        {"n": 34, "q": "Is it a zebra?", "a": RIGHT},
    ]
    folder = write(tmp_path / "mine", data, digest="sha256:" + "0" * 64)
    code, out, rules = found_rules(capsys, str(folder))
    assert code == 2
    assert rules == [
        "digest", "duplicates", "unsound", "duplicates", "near_duplicates", "near_duplicates", "leaks",
        "effective_clusters", "few_items",
    ]  # fmt: skip
    assert [finding["severity"] for finding in out["findings"]] == ["error"] * 4 + ["warning"] * 5
    assert main(["evalset", "check", str(folder)]) == 2
    shown = capsys.readouterr().err.splitlines()
    assert [line.split(":")[0] for line in shown[:9]] == ["error"] * 4 + ["warning"] * 5


@pytest.mark.parametrize("damage", ["no folder", "no card", "bad card", "no data", "no licence"])
def test_nothing_to_look_at(tmp_path: Path, capsys: Capture, damage: str) -> None:
    folder = write(tmp_path / "mine", rows(3))
    card = folder / "card.yaml"
    {
        "no folder": lambda: folder.rename(tmp_path / "elsewhere"),
        "no card": card.unlink,
        "bad card": lambda: card.write_text("{"),
        "no data": (folder / "data.jsonl").unlink,
        "no licence": lambda: card.write_text(card.read_text().replace("licence: ours\n", "")),
    }[damage]()
    assert main(["evalset", "check", str(folder), "--json"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "expected" in captured.err
    assert "Traceback" not in captured.err


def test_a_set_with_no_sound_item(tmp_path: Path) -> None:
    folder = write(tmp_path / "mine", [{"n": 1, "q": 1, "a": 1}, {"n": 2}])
    found = check_evalset(folder, None, quiet)
    assert (found.exit_code, found.items, found.strata, found.margin) == (2, 0, {}, None)
    assert {finding.severity for finding in found.findings} == {"error"}


def test_floor_and_ceiling_that_the_card_states(tmp_path: Path) -> None:
    stated = {"manifest": "m", "note": "n", "metrics": {"score": 0.02}, "by_stratum": {"all": 0.99}}
    folder = write(tmp_path / "mine", rows(600), baseline=stated)
    found = check_evalset(folder, None, quiet)
    assert [finding.rule for finding in found.findings] == ["floor", "ceiling"]
    assert found.exit_code == 0


def test_scores_of_the_store_go_before_those_of_the_card(
    tmp_path: Path, checkweigh_home: Path, write_manifest: WriteManifest
) -> None:
    stated = {"manifest": "m", "note": "n", "metrics": {"score": 0.02}}
    folder = write(tmp_path / "mine", rows(600), baseline=stated)
    manifest = write_manifest("served")
    found = check_evalset(folder, manifest, quiet)
    assert [finding.rule for finding in found.findings] == ["not_measured"]
    source = load_evalset(folder)
    record = measured(source, [float("nan") if i == 7 else 1.0 for i in range(600)])
    pins = verify(manifest).pins.record_digest()
    key = record.key.model_copy(update={"pins": pins})
    Store(checkweigh_home / "store").write(record.model_copy(update={"key": key}))
    found = check_evalset(folder, manifest, quiet)
    assert [(finding.rule, finding.items) for finding in found.findings] == [
        ("ceiling", ()), ("ceiling", ()), ("failed_items", ("7",)),
    ]  # fmt: skip


def test_scores_of_another_mapping_are_not_taken(
    tmp_path: Path, checkweigh_home: Path, write_manifest: WriteManifest
) -> None:
    folder = write(tmp_path / "mine", rows(600))
    manifest = write_manifest("served")
    record = measured(load_evalset(folder), [1.0] * 600)
    pins = verify(manifest).pins.record_digest()
    key = record.key.model_copy(update={"pins": pins})
    Store(checkweigh_home / "store").write(record.model_copy(update={"key": key}))
    assert [f.rule for f in check_evalset(folder, manifest, quiet).findings] == ["ceiling", "ceiling"]
    write(tmp_path / "mine", rows(600), check="exact")
    assert [f.rule for f in check_evalset(folder, manifest, quiet).findings] == ["not_measured"]
