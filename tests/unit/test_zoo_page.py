"""The zoo's catalogue is whole, its results are the catalogue's, and its page says what they say."""

from __future__ import annotations

import pytest
from benchmarks.zoo.gating import defect_source, met
from benchmarks.zoo.page import PAGE, PLOT, harm, page, plot, results, unsettled
from benchmarks.zoo.specimens import QUICK, SPECIMENS, Specimen

BY_NAME = {specimen.name: specimen for specimen in SPECIMENS}


def _result(must: str, verdict: str, **more: object) -> dict[str, object]:
    return {"must": must, "verdict": verdict, "traceback": False, "specimen": "x"} | more


def _specimen(must: str) -> Specimen:
    return Specimen(kind="x", family="weights", what="", must=must, causes=("perplexity",))  # type: ignore[arg-type]


def test_names_are_unique_and_every_defect_names_its_cause() -> None:
    assert len(BY_NAME) == len(SPECIMENS)
    assert set(QUICK) <= set(BY_NAME)
    for specimen in SPECIMENS:
        caused = specimen.must not in ("block", "refuse") or specimen.causes or specimen.words
        assert caused, f"{specimen.name} could be stopped for any cause"
        differs = specimen.recipe or specimen.changes or specimen.defect or specimen.name == "itself"
        assert differs, specimen.name


def test_every_defect_of_the_engine_exists() -> None:
    assert all(len(defect_source(s.defect)) == 2 for s in SPECIMENS if s.defect)
    with pytest.raises(IndexError):
        defect_source("nothing 1")


def test_a_third_is_held_out() -> None:
    assert sum(s.held_out for s in SPECIMENS) == len(SPECIMENS) // 3


@pytest.mark.parametrize(
    ("must", "verdict", "cause", "expected"),
    [
        ("pass", "pass", False, True),
        ("pass", "inconclusive", False, False),
        ("pass", "block", True, False),
        ("pass", "error", False, False),
        ("block", "block", True, True),
        ("block", "block", False, False),
        ("block", "pass", False, False),
        ("block", "inconclusive", True, False),
        ("block", "error", True, False),
        ("refuse", "refuse", True, True),
        ("refuse", "refuse", False, False),
        ("refuse", "block", True, False),
        ("open", "pass", False, None),
    ],
)  # fmt: skip
def test_what_counts_as_met(must: str, verdict: str, cause: bool, expected: bool | None) -> None:
    assert met(_specimen(must), _result(must, verdict, right_cause=cause)) is expected


def test_what_broke_never_counts() -> None:
    assert met(_specimen("open"), _result("open", "error", right_cause=False)) is False
    assert met(_specimen("open"), _result("open", "pass", right_cause=False, traceback=True)) is False
    assert met(_specimen("pass"), _result("pass", "pass", right_cause=True, traceback=True)) is False


def test_harm_is_the_worst_check_in_its_margins() -> None:
    checks = {
        "perplexity": {"comparison": {"kind": "estimate", "effect": -0.06}, "margin": 0.03},
        "task-score": {"comparison": {"kind": "estimate", "effect": 0.5}, "margin": 0.03},
        "bad-endings": {"comparison": {"kind": "identical"}, "margin": 0.03},
    }
    assert harm({"checks": checks}) == (2.0, "perplexity")
    assert harm({"message": "refused"}) is None


def test_the_results_are_of_the_catalogue() -> None:
    for result in results():
        specimen = BY_NAME[result["specimen"]]
        assert result["must"] == specimen.must, "what must be was written down before the first run"
        assert result["met"] == met(specimen, result)
        assert not result["traceback"], result["specimen"]


def test_what_is_not_as_it_must_is_named() -> None:
    wrong = [r for r in results() if r["met"] is False]
    named = "".join(unsettled(results()))
    assert all(f"**{result['specimen']}**" in named for result in wrong)


def test_the_page_is_what_the_results_say() -> None:
    found = results()
    assert PAGE.read_text() == page(found), "run python -m benchmarks.zoo.page"
    assert PLOT.read_text() == plot(found), "run python -m benchmarks.zoo.page"
