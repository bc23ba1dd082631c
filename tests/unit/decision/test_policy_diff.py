"""Every way to loosen a policy is listed, and only a newer reason excuses it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.builders import check

from checkweigh.cli import main

LOAD = {"arrivals": {"kind": "poisson", "rate": 4.0}, "slo": {"e2e": 2.0}}
TIMING = {"pairs": 40, "requests": 20, "grow_to": 80, "load": LOAD}
BASE: dict[str, Any] = {
    "schema": "checkweigh/policy@1",
    "name": "base",
    "because": "as agreed in spring",
    "on_inconclusive": "block",
    "timing": TIMING,
    "checks": [
        check(id="score", margin=0.03, min_items=300, min_clusters=60),
        check(id="gain", kind="superiority", margin=0.05),
        check(
            id="ceiling",
            metric="bits_per_byte",
            evalset=["prose"],
            kind="absolute",
            direction="lower",
            margin=2.0,
        ),
        check(id="level", kind="absolute", direction="higher", margin=0.4),
        check(id="side", tier="supporting"),
        check(id="note", tier="advisory", margin=0.01),
    ],
}
Changes = dict[str, Any]


def edited(policy: Changes = {}, **checks: Changes | None) -> Changes:  # noqa: B006
    """BASE with changes; a check that is None is dropped."""
    kept = [
        {**c, **(checks.get(c["id"]) or {})} for c in BASE["checks"] if checks.get(c["id"], {}) is not None
    ]
    return {**BASE, **policy, "checks": kept}


def diff(folder: Path, new: Changes, capsys: pytest.CaptureFixture[str]) -> tuple[int, list[Changes]]:
    for name, document in (("old", BASE), ("new", new)):
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(document))
    code = main(["policy", "diff", str(folder / "old.yaml"), str(folder / "new.yaml"), "--json"])
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    return code, json.loads(out) if out else []


LOOSER = [
    ("checks.score.margin", edited(score={"margin": 0.031})),
    ("checks.gain.margin", edited(gain={"margin": 0.04})),
    ("checks.ceiling.margin", edited(ceiling={"margin": 2.1})),
    ("checks.level.margin", edited(level={"margin": 0.39})),
    ("checks.score.tier", edited(score={"tier": "supporting"})),
    ("checks.side.tier", edited(side={"tier": "advisory"})),
    ("checks.score.min_items", edited(score={"min_items": 299})),
    ("checks.score.min_clusters", edited(score={"min_clusters": 59})),
    ("checks.score.evalset", edited(score={"evalset": ["easier"]})),
    ("checks.score.where", edited(score={"where": {"stratum": "easy"}})),
    ("checks.score.kind", edited(score={"kind": "absolute"})),
    ("checks.side", edited(side=None)),
    ("error_budget.false_pass", edited({"error_budget": {"false_pass": 0.06}})),
    ("error_budget.false_block", edited({"error_budget": {"false_block": 0.005}})),
    ("failure_margin", edited({"failure_margin": 0.02})),
    ("timing.pairs", edited({"timing": {**TIMING, "pairs": 20}})),
    ("timing.requests", edited({"timing": {**TIMING, "requests": 19}})),
    ("timing.grow_to", edited({"timing": {**TIMING, "grow_to": None}})),
    ("timing.load", edited({"timing": {**TIMING, "load": {**LOAD, "slo": {"e2e": 9.0}}}})),
    ("timing.load", edited({"timing": {**TIMING, "load": None}})),
    ("attempts", edited({"attempts": 3})),
    ("looks", edited({"looks": "adaptive"})),
    ("on_inconclusive", edited({"on_inconclusive": "hold"})),
    ("no_effect", edited({"no_effect": "warn"})),
]
NOT_LOOSER = [
    edited(),
    edited(score={"margin": 0.02}, gain={"margin": 0.06}, ceiling={"margin": 1.9}, level={"margin": 0.5}),
    edited(side={"tier": "critical"}, score={"min_items": 400}),
    edited(note={"margin": 0.2}),
    edited(note=None),
    edited({"error_budget": {"false_pass": 0.01, "false_block": 0.02}, "failure_margin": 0.001}),
    edited({"max_minutes": 10, "seed": 7, "name": "other"}),
    edited({"no_effect": "refuse"}),
]


@pytest.mark.parametrize(("path", "new"), LOOSER, ids=[f"{path}-{i}" for i, (path, _) in enumerate(LOOSER)])
def test_what_got_looser_is_refused(
    path: str, new: Changes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, found = diff(tmp_path, new, capsys)
    assert code == 1
    assert [line["path"] for line in found] == [path]
    assert found[0]["old"] != found[0]["new"]


def test_a_change_without_effect_may_be_refused_less_only_with_a_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    strictest = {"refuse": ("default", "warn"), "default": ("warn",), "warn": ()}
    for old, looser in strictest.items():
        for new in strictest:
            policies = [
                edited({} if value == "default" else {"no_effect": value}) | {"because": "agreed"}
                for value in (old, new)
            ]
            (tmp_path / "before.yaml").write_text(yaml.safe_dump(policies[0]))
            (tmp_path / "after.yaml").write_text(yaml.safe_dump(policies[1]))
            code = main(["policy", "diff", str(tmp_path / "before.yaml"), str(tmp_path / "after.yaml")])
            assert code == (1 if new in looser else 0), (old, new)
    assert "no_effect: default -> warn, WITHOUT a new reason" in capsys.readouterr().err


@pytest.mark.parametrize("new", NOT_LOOSER)
def test_what_did_not_is_not(new: Changes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert diff(tmp_path, new, capsys) == (0, [])


@pytest.mark.parametrize(
    ("new", "code"),
    [
        (edited(score={"margin": 0.05, "because": "five points are what users notice, study of May"}), 0),
        (edited(score={"margin": 0.05, "because": BASE["checks"][0]["because"] + "  "}), 1),
        (edited({"because": "a new reason for the policy"}, score={"margin": 0.05}), 1),
        (edited({"because": "the check side is measured elsewhere now"}, side=None), 0),
        (edited({"because": "fewer things to look at"}, side=None), 1),
        (edited({"because": "", "failure_margin": 0.02}), 1),
        (edited({"because": "the hosts fail more often", "failure_margin": 0.02}), 0),
        (edited({"because": "the hosts fail more often", "failure_margin": 0.02}, score={"margin": 0.9}), 1),
    ],
)
def test_only_a_newer_reason_of_its_own_excuses(
    new: Changes, code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = diff(tmp_path, new, capsys)
    assert found[0] == code
    assert found[1], "an excused line is listed all the same"


def test_a_policy_that_cannot_be_read_is_no_verdict(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert diff(tmp_path, edited(score={"margin": -1}), capsys)[0] == 2
    assert main(["policy", "diff", str(tmp_path / "old.yaml"), str(tmp_path / "none.yaml")]) == 2
