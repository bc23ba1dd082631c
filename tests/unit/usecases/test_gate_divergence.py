"""Divergence through whole gates with the fake engine."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest
from tests.builders import check
from tests.unit.usecases.desk import ENDINGS, PERPLEXITY, TPOT, Desk, measured_files, wait_for

KL = check(id="kl", metric="kl", evalset=["prose"], direction="lower", margin=0.05, tier="advisory")


@pytest.fixture(autouse=True)
def _policy(desk: Desk) -> None:
    desk.policy(PERPLEXITY, ENDINGS, KL)


def test_it_is_told_and_gates_nothing(desk: Desk) -> None:
    assert desk.gate({"divergence": 0.5}) == 0, desk.stderr
    result = desk.result("kl")
    assert result.comparison.kind == "inestimable"
    assert result.comparison.candidate == pytest.approx(desk.decision.divergence[0].typical)
    assert "no noise floor has been measured" in result.sentence
    (summary,) = desk.decision.divergence
    assert (summary.set_name, summary.documents, summary.failed) == ("prose", 320, 0)
    assert 0.01 < summary.typical < 0.5
    assert 0 < summary.p50 < summary.p90 < summary.p99 < summary.largest
    assert 0.5 < summary.agreement < 1
    kls = [w.token.kl for w in summary.worst]
    assert kls == sorted(kls, reverse=True)
    assert kls[0] == pytest.approx(summary.largest)
    for output in ("report.html", "summary.md"):
        assert "Divergence of the token distributions" in (desk.out / output).read_text()
    assert "same likeliest token" in desk.stderr.replace("\n", " ")


def test_more_disturbance_is_more_divergence(desk: Desk) -> None:
    found = []
    for size in (0.1, 0.5, 1.5):
        desk.gate({"divergence": size})
        found.append(desk.decision.divergence[0].typical)
    assert found == sorted(found)
    assert found[2] > 4 * found[0]


def test_a_manifest_does_not_diverge_from_itself(desk: Desk) -> None:
    manifest = desk.manifest("baseline")
    assert desk.run(*desk.arguments(manifest, manifest)) == 0, desk.stderr
    (summary,) = desk.decision.divergence
    assert (summary.mean, summary.largest, summary.agreement, summary.worst) == (0, 0, 1, ())


def test_a_pair_is_measured_once(desk: Desk) -> None:
    assert desk.gate({"divergence": 0.5}) == 0
    before, first = measured_files(list(desk.home.rglob("observations.parquet"))), desk.decision.divergence
    assert desk.gate({"divergence": 0.5}) == 0
    assert desk.decision.divergence == first
    assert measured_files(list(desk.home.rglob("observations.parquet"))) == before
    assert [s.stored for s in desk.decision.stages if s.name == "prose KL"] == [True]
    assert desk.gate({"divergence": 0.5}, {"noise_seed": 9}) == 0, "another baseline is another pair"
    assert [s.stored for s in desk.decision.stages if s.name == "prose KL"] == [False]


def test_texts_without_a_number_are_counted_as_failed(desk: Desk) -> None:
    desk.policy(PERPLEXITY, ENDINGS, KL, failure_margin=0.15)
    desk.gate({"nan_share": 0.05})
    (summary,) = desk.decision.divergence
    assert summary.failed > 0
    assert summary.documents + summary.failed == 320
    assert "of 320 documents" in desk.result("kl").sentence


def test_no_text_with_a_number_is_no_divergence(desk: Desk) -> None:
    desk.gate({"nan_share": 1.0})
    assert desk.decision.divergence == ()
    assert "no document has a divergence" in desk.result("kl").sentence


def test_an_engine_that_dies_of_the_comparison_is_not_unservable(desk: Desk) -> None:
    desk.policy(PERPLEXITY, ENDINGS, KL, TPOT)
    assert desk.gate({"dies_comparing": True}) == 0, desk.stderr
    assert "the comparison of hidden states failed" in desk.result("kl").sentence
    assert desk.decision.timing is not None, "it is served as before"


def test_a_clock_that_runs_out_in_it_leaves_no_final_verdict(desk: Desk) -> None:
    desk.policy(PERPLEXITY, ENDINGS)
    assert desk.gate({"divergence": 0.5}) == 0, desk.stderr
    desk.policy(PERPLEXITY, ENDINGS, KL, max_minutes=0.0001)
    assert desk.gate({"divergence": 0.5}) == 0, desk.stderr
    assert "max_minutes had passed before" in desk.result("kl").sentence
    desk.policy(PERPLEXITY, ENDINGS, KL)
    assert desk.gate({"divergence": 0.5}) == 0, desk.stderr
    decision = desk.decision
    assert decision.attempt is not None
    assert (decision.attempt.number, decision.attempt.stored) == (1, False)
    assert len(decision.divergence) == 1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"kind": "equivalence"}, "kind non_inferiority for kl"),
        ({"evalset": ["answers"]}, "kl"),
    ],
)
def test_what_a_check_on_it_may_not_be(desk: Desk, changes: dict[str, object], said: str) -> None:
    desk.policy(PERPLEXITY, ENDINGS, {**KL, **changes})
    assert desk.gate() == 2
    assert said in desk.stderr


def test_a_killed_divergence_goes_on_where_it_stopped(desk: Desk) -> None:
    first, second = (
        desk.manifest("baseline"),
        desk.manifest("candidate", {"divergence": 0.5, "latency_s": 0.05}),
    )
    assert desk.run(*desk.arguments(first, second)) == 0, desk.stderr
    whole = desk.decision.divergence
    desk.wipe()

    process = desk.spawn(*desk.arguments(first, second))
    wait_for(lambda: len(desk.records()) == 4 and len(_unfinished(desk)) >= 3)
    process.kill()
    process.communicate()
    kept = measured_files(_unfinished(desk))
    assert len(kept) >= 3

    process = desk.spawn(*desk.arguments(first, second))
    seen: dict[str, tuple[int, bytes]] = {}
    while process.poll() is None:
        for path in _unfinished(desk):
            with suppress(FileNotFoundError):
                seen |= measured_files([path])
    process.communicate()
    assert process.returncode == 0
    assert {path: seen[path] for path in kept} == kept, "no batch was compared twice"
    assert desk.decision.divergence == whole


def _unfinished(desk: Desk) -> list[Path]:
    with suppress(FileNotFoundError):
        found = sorted((desk.home / "store").glob("*/batches/[0-9]*.json"))
        return [path for path in found if not (path.parent.parent / "record.json").exists()]
    return []
