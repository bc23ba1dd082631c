from __future__ import annotations

from pathlib import Path

import pytest
from tests.unit.report import sample

from checkweigh.errors import StoreError
from checkweigh.records.decision import Decision, Verdict
from checkweigh.report import clear, write_all

NAMES = ["decision.json", "junit.xml", "report.html", "summary.md"]


def test_write_all(tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    decision = sample.decision(hostile=True)
    written = write_all(decision, sample.pairs(hostile=True), out)
    assert sorted(written) == sorted(p.name for p in out.iterdir()) == NAMES
    assert list(written)[-1] == "decision.json"
    assert Decision.model_validate_json(written["decision.json"].read_bytes()) == decision
    assert all(path.stat().st_mode & 0o777 == 0o644 for path in written.values())


def test_same_input_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_all(sample.decision(), sample.pairs(), tmp_path / name)
    for name in NAMES:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@pytest.mark.parametrize("broken", ["junit.xml", "summary.md", "report.html"])
def test_a_write_that_fails_leaves_no_decision_and_no_litter(tmp_path: Path, broken: str) -> None:
    write_all(sample.decision(Verdict.PASS), [], tmp_path)
    (tmp_path / broken).unlink()
    (tmp_path / broken / "in-the-way").mkdir(parents=True)
    with pytest.raises(StoreError, match=broken):
        write_all(sample.decision(Verdict.BLOCK), [], tmp_path)
    assert not (tmp_path / "decision.json").exists()
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_clear_marks_a_directory_incomplete(tmp_path: Path) -> None:
    write_all(sample.decision(), [], tmp_path)
    clear(tmp_path)
    assert not (tmp_path / "decision.json").exists()
    clear(tmp_path / "absent")
    assert (tmp_path / "absent").is_dir()
