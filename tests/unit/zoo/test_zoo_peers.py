"""The peers beside the zoo: our rules on numbers worked out by hand; the peers themselves where they are installed."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmarks.zoo.peers import (
    NOWHERE,
    PEERS,
    TOLERANCES,
    TOO_FEW,
    BadItems,
    ask,
    judged,
    read_items,
    table,
    tolerance,
    whole,
    z_test,
)

PYTHON = os.environ.get("CHECKWEIGH_PEERS")


def row(**changes: Any) -> dict[str, Any]:
    """A metric as the zoo writes it: ten 0/1 items, seven right before and five after."""
    return {
        "id": "answers-score", "set": "answers", "direction": "higher", "items": [f"i{i}" for i in range(10)],
        "clusters": ["c"] * 10, "baseline": [1] * 7 + [0] * 3, "candidate": [1] * 5 + [0] * 5,
    } | changes  # fmt: skip


def written(tmp_path: Path, *rows: Any, specimen: Any = "one") -> Path:
    path = tmp_path / f"{specimen}.json"
    path.write_text(json.dumps({"specimen": specimen, "metrics": list(rows)}))
    return path


def only(tmp_path: Path, **changes: Any) -> Any:
    return read_items(written(tmp_path, row(**changes))).metrics[0]


def test_the_z_test_is_that_of_two_independent_means(tmp_path: Path) -> None:
    # .7 against .5 of ten: variances .21/9 and .25/9, so z = -.2 / sqrt(.46/9) = -.88465, two-sided p = .37634
    says = z_test(only(tmp_path))
    assert says["p"] == pytest.approx(0.37634, abs=1e-5)
    assert says["difference"] == pytest.approx(-0.2)
    assert (says["verdict"], says["worse"]) == ("✓", True)
    assert judged("lm-eval", says) == "pass"


def test_the_z_test_blocks_only_what_is_worse(tmp_path: Path) -> None:
    few, many = [0.0] * 95 + [1.0] * 5, [0.0] * 80 + [1.0] * 20
    names = [f"i{i}" for i in range(100)]
    for direction, verdict in (("lower", "block"), ("higher", "pass")):
        says = z_test(only(tmp_path, direction=direction, items=names, baseline=few, candidate=many))
        assert says["verdict"] == "×"  # z = .15 / sqrt((.0475 + .16) / 99) = 3.28 either way
        assert says["p"] == pytest.approx(0.00105, abs=1e-4)
        assert judged("lm-eval", says) == verdict


def test_equal_constant_arms_pass_the_z_test_and_unequal_ones_do_not(tmp_path: Path) -> None:
    assert judged("lm-eval", z_test(only(tmp_path, baseline=[1] * 10, candidate=[1] * 10))) == "pass"
    assert judged("lm-eval", z_test(only(tmp_path, baseline=[1] * 10, candidate=[0] * 10))) == "block"


@pytest.mark.parametrize(
    ("changes", "shift", "verdicts"),
    [
        ({"direction": "higher"}, -0.029, ("pass", "block")),  # .6 to .571: 4.8%
        ({"direction": "higher"}, -0.031, ("block", "block")),
        ({"direction": "higher"}, 0.2, ("pass", "pass")),
        ({"direction": "lower"}, 0.01, ("pass", "block")),  # passes .4 to .39: 2.5%
        ({"direction": "lower"}, -0.2, ("pass", "pass")),
        ({"direction": "lower", "unit": "nats/token"}, 0.03, ("pass", "block")),  # perplexity + 3.05%
        ({"direction": "lower", "unit": "nats/token"}, 0.05, ("block", "block")),  # perplexity + 5.1%
        ({"direction": "lower", "metric": "log_perplexity"}, 0.05, ("block", "block")),
        ({"direction": "lower", "unit": "tokens"}, 0.02, ("pass", "block")),  # + 3.3%
        ({"direction": "lower", "unit": "tokens"}, -0.2, ("pass", "pass")),
    ],
)
def test_a_tolerance_is_a_share_of_the_number_that_is_reported(
    tmp_path: Path, changes: dict[str, Any], shift: float, verdicts: tuple[str, str]
) -> None:
    metric = only(tmp_path, **changes, baseline=[0.6] * 10, candidate=[0.6 + shift] * 10)
    found = tuple(judged(peer, tolerance(metric, share)) for peer, share in TOLERANCES.items())
    assert found == verdicts


def test_other_tools_get_values_of_which_more_is_better(tmp_path: Path) -> None:
    before, after = only(tmp_path, direction="lower").scores
    assert before.tolist() == [0] * 7 + [1] * 3
    assert after.tolist() == [0] * 5 + [1] * 5
    before, after = only(
        tmp_path, direction="lower", unit="tokens", baseline=[10, 30] * 5, candidate=[20] * 10
    ).scores
    assert before.tolist() == [-0.5, -1.5] * 5
    assert after.tolist() == [-1.0] * 10
    before, _ = only(tmp_path, direction="lower", unit="nats/token", baseline=[3] * 10).scores
    assert before.tolist() == [-3.0] * 10


def test_an_item_that_failed_on_an_arm_is_left_out_and_counted(tmp_path: Path) -> None:
    metric = only(tmp_path, baseline=[None] + [1] * 9, candidate=[1] * 8 + [None, 0])
    assert metric.baseline.tolist() == [1] * 8
    assert metric.candidate.tolist() == [1] * 7 + [0]
    assert metric.failed == 2


@pytest.mark.parametrize(
    ("peer", "says", "verdict"),
    [
        ("mlflow", {"status": "ok", "difference": -0.1, "p": 0.049}, "block"),
        ("mlflow", {"status": "ok", "difference": -0.1, "p": 0.05}, "pass"),
        ("mlflow", {"status": "ok", "difference": 0.1, "p": 0.001}, "pass"),
        ("mlflow", {"status": "insufficient_pairs", "difference": None, "p": None}, "inconclusive"),
        ("statgate", {"verdict": "SHIP"}, "pass"),
        ("statgate", {"verdict": "BLOCK"}, "block"),
        ("statgate", {"verdict": "INCONCLUSIVE"}, "inconclusive"),
        ("nemo-evaluator", {"verdict": "WARN"}, "inconclusive"),
        ("nel-compare", {"verdict": "BLOCK"}, "block"),
        ("nel-compare", {"verdict": "PASS"}, "pass"),
        ("llm-evalgate", {"verdict": "FAIL", "row": "fail"}, "block"),
        ("llm-evalgate", {"verdict": "PASS", "row": "warn"}, "pass"),
        ("llm-evalgate", {"cannot": "why"}, "cannot"),
    ],
)
def test_a_peers_own_words_become_a_verdict(peer: str, says: dict[str, Any], verdict: str) -> None:
    assert judged(peer, says) == verdict


def test_words_that_no_rule_covers_are_an_error() -> None:
    with pytest.raises(ValueError, match="statgate says 'MAYBE', which no rule covers"):
        judged("statgate", {"verdict": "MAYBE"})
    with pytest.raises(ValueError, match="llm-evalgate says None"):
        judged("llm-evalgate", {})


def test_the_worst_metric_decides() -> None:
    assert whole(["pass", "block", "inconclusive", "cannot"]) == "block"
    assert whole(["pass", "inconclusive", "cannot"]) == "inconclusive"
    assert whole(["pass", "cannot"]) == "pass"
    assert whole(["cannot"]) == "cannot"
    assert whole([]) == "cannot"


def test_the_table_counts_what_was_said_of_candidates_whose_truth_is_known() -> None:
    rows = table(
        [
            ("a", "block", {"p": "block", "q": "pass"}), ("b", "block", {"p": "inconclusive", "q": "block"}),
            ("c", "block", {"p": "cannot"}), ("d", "pass", {"p": "block", "q": "pass"}),
            ("e", "pass", {"p": "inconclusive", "q": "cannot"}), ("f", "any", {"p": "block", "q": "block"}),
        ]
    )  # fmt: skip
    assert rows == [
        {
            "peer": "p", "must_block": 3, "detected": 1, "missed": [], "unsettled_defects": ["b"],
            "cannot_defects": ["c"], "must_pass": 2, "passed": 0, "falsely_blocked": ["d"],
            "unsettled_harmless": ["e"], "cannot_harmless": [],
        },
        {
            "peer": "q", "must_block": 3, "detected": 1, "missed": ["a"], "unsettled_defects": [],
            "cannot_defects": ["c"], "must_pass": 2, "passed": 1, "falsely_blocked": [],
            "unsettled_harmless": [], "cannot_harmless": ["e"],
        },
    ]  # fmt: skip
    with pytest.raises(ValueError, match="'refuse' is none of block, pass, any"):
        table([("a", "refuse", {"p": "block"})])  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "metrics: at least one was expected"),
        (["x"], "metrics[0]: an object was expected"),
        ([row(), row()], "metrics: an id is there twice"),
        ([row(sise=[1])], "metrics[0].sise: no such key"),
        ([{k: v for k, v in row().items() if k != "candidate"}], "metrics[0].candidate: missing"),
        ([row(direction="up")], "metrics[0].direction: lower or higher was expected, not 'up'"),
        ([row(items=[], baseline=[], candidate=[])], "metrics[0].items: at least one was expected"),
        ([row(candidate=[1] * 9)], "metrics[0].candidate: 10 values were expected, one an item"),
        ([row(baseline=["1"] * 10)], "metrics[0].baseline[0]: a finite number or null was expected, not '1'"),
        ([row(baseline=[True] * 10)], "metrics[0].baseline[0]: a finite number or null was expected, not True"),
        ([row(baseline=[0] * 9 + [math.nan])], "metrics[0].baseline[9]: a finite number or null was expected"),
        ([row(baseline=[70] * 10)], "metrics[0]: values beyond 0 and 1, and neither unit nor metric says of what"),
        ([row(unit="tokens")], "metrics[0].direction: lower was expected of tokens"),
    ],
)  # fmt: skip
def test_a_bad_file_of_items_is_named_with_its_place(tmp_path: Path, rows: list[Any], message: str) -> None:
    path = written(tmp_path, *rows)
    with pytest.raises(BadItems) as raised:
        read_items(path)
    assert str(raised.value).startswith(f"{path}: {message}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "Expecting property name"),
        ("[]", "an object with specimen and metrics was expected"),
        ('{"specimen": "", "metrics": [1]}', "specimen: a name was expected"),
    ],
)
def test_a_file_that_holds_no_items_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "items.json"
    path.write_text(text)
    with pytest.raises(BadItems, match=message):
        read_items(path)
    with pytest.raises(BadItems, match="No such file"):
        read_items(tmp_path / "absent.json")


def test_a_specimen_may_not_be_there_twice(tmp_path: Path) -> None:
    one = read_items(written(tmp_path, row()))
    with pytest.raises(BadItems, match="a specimen is there twice"):
        ask([one, one], None)


def test_without_their_environment_the_others_cannot(tmp_path: Path) -> None:
    found = ask([read_items(written(tmp_path, row()))], None)["specimens"]["one"]
    assert found["verdicts"]["lm-eval"] == "pass"
    assert found["verdicts"]["tolerance-5%"] == "block"
    assert found["verdicts"]["statgate"] == "cannot"
    assert found["metrics"]["answers-score"]["peers"]["statgate"] == {"is": "cannot", "cannot": NOWHERE}


def test_nobody_passes_a_metric_without_items(tmp_path: Path) -> None:
    found = ask([read_items(written(tmp_path, row(candidate=[None] * 9 + [1])))], None)["specimens"]["one"]
    assert set(found["verdicts"].values()) == {"cannot"}
    assert found["metrics"]["answers-score"]["peers"]["lm-eval"]["cannot"] == TOO_FEW
    assert found["metrics"]["answers-score"]["failed"] == 9


def metrics(flip: Callable[[np.ndarray], np.ndarray], slower: float) -> list[dict[str, Any]]:
    """Three kinds of metric on 400 items: 0/1 with flips, nats with a shift, lengths."""
    rng = np.random.default_rng(3)
    answers = (rng.random(400) < 0.6).astype(float)
    nats = rng.normal(2.9, 0.4, 400)
    lengths = rng.integers(5, 40, 400).astype(float)
    rest = {"items": [f"i{i}" for i in range(400)], "clusters": [f"c{i // 4}" for i in range(400)]}
    return [
        row(**rest, baseline=answers.tolist(), candidate=flip(answers).tolist()),
        row(**rest, id="perplexity", unit="nats/token", direction="lower", baseline=nats.tolist(),
            candidate=(nats + slower + rng.normal(0, 0.01, 400)).tolist()),
        row(**rest, id="reply-length", unit="tokens", direction="lower", baseline=lengths.tolist(),
            candidate=(lengths * (1 + slower)).tolist()),
    ]  # fmt: skip


@pytest.mark.skipif(
    PYTHON is None, reason="CHECKWEIGH_PEERS names no interpreter: the peers themselves were not asked"
)
def test_the_peers_themselves_on_an_equal_and_on_a_broken_candidate(tmp_path: Path) -> None:
    def broken(answers: np.ndarray) -> np.ndarray:
        return np.where(np.arange(400) % 5 == 0, 0.0, answers)

    paths = [
        written(tmp_path, *metrics(lambda answers: answers, 0.0), specimen="equal"),
        written(tmp_path, *metrics(broken, 0.3), specimen="broken"),
    ]
    found = ask([read_items(path) for path in paths], Path(str(PYTHON)))
    equal, worse = (found["specimens"][name] for name in ("equal", "broken"))
    assert set(equal["verdicts"].values()) == {"pass"}
    assert set(worse["verdicts"].values()) == {"block"}
    assert set(worse["verdicts"]) == set(PEERS)
    assert all(found["versions"].values())
    for peer in ("mlflow", "statgate"):
        assert {m["peers"][peer]["is"] for m in worse["metrics"].values()} == {"block"}
    for peer in ("nemo-evaluator", "nel-compare", "llm-evalgate"):
        assert worse["metrics"]["answers-score"]["peers"][peer]["p"] < 0.01
        for metric in ("perplexity", "reply-length"):
            assert "neither nats nor tokens" in worse["metrics"][metric]["peers"][peer]["cannot"]
