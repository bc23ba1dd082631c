"""Divergence through whole gates with the fake engine."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest
from tests.builders import check
from tests.unit.usecases.gate_bench import ENDINGS, PERPLEXITY, TPOT, GateBench, measured_files
from tests.waiting import until

KL = check(id="kl", metric="kl", evalset=["prose"], direction="lower", margin=0.05, tier="advisory")


@pytest.fixture(autouse=True)
def _policy(bench: GateBench) -> None:
    bench.policy(PERPLEXITY, ENDINGS, KL)


def test_it_is_told_and_gates_nothing(bench: GateBench) -> None:
    assert bench.gate({"divergence": 0.5}) == 0, bench.stderr
    result = bench.result("kl")
    assert result.comparison.kind == "inestimable"
    assert result.comparison.candidate == pytest.approx(bench.decision.divergence[0].typical)
    assert "no noise floor has been measured" in result.sentence
    (summary,) = bench.decision.divergence
    assert (summary.set_name, summary.documents, summary.failed) == ("prose", 320, 0)
    assert 0.01 < summary.typical < 0.5
    assert 0 < summary.p50 < summary.p90 < summary.p99 < summary.largest
    assert 0.5 < summary.agreement < 1
    kls = [w.token.kl for w in summary.worst]
    assert kls == sorted(kls, reverse=True)
    assert kls[0] == pytest.approx(summary.largest)
    for output in ("report.html", "summary.md"):
        assert "Divergence of the token distributions" in (bench.out / output).read_text()
    assert "same likeliest token" in bench.stderr.replace("\n", " ")


def test_more_disturbance_is_more_divergence(bench: GateBench) -> None:
    levels = []
    for size in (0.1, 0.5, 1.5):
        bench.gate({"divergence": size})
        levels.append(bench.decision.divergence[0].typical)
    assert levels == sorted(levels)
    assert levels[2] > 4 * levels[0]


def test_a_manifest_does_not_diverge_from_itself(bench: GateBench) -> None:
    manifest = bench.manifest("baseline")
    assert bench.run(*bench.arguments(manifest, manifest)) == 0, bench.stderr
    (summary,) = bench.decision.divergence
    assert (summary.mean, summary.largest, summary.agreement, summary.worst) == (0, 0, 1, ())


def test_a_pair_is_measured_once(bench: GateBench) -> None:
    assert bench.gate({"divergence": 0.5}) == 0
    before, first = measured_files(list(bench.home.rglob("observations.parquet"))), bench.decision.divergence
    assert bench.gate({"divergence": 0.5}) == 0
    assert bench.decision.divergence == first
    assert measured_files(list(bench.home.rglob("observations.parquet"))) == before
    assert [s.stored for s in bench.decision.stages if s.name == "prose KL"] == [True]
    assert bench.gate({"divergence": 0.5}, {"noise_seed": 9}) == 0, "another baseline is another pair"
    assert [s.stored for s in bench.decision.stages if s.name == "prose KL"] == [False]


def test_texts_without_a_number_are_counted_as_failed(bench: GateBench) -> None:
    bench.policy(PERPLEXITY, ENDINGS, KL, failure_margin=0.15)
    bench.gate({"nan_share": 0.05})
    (summary,) = bench.decision.divergence
    assert summary.failed > 0
    assert summary.documents + summary.failed == 320
    assert "of 320 documents" in bench.result("kl").sentence


def test_no_text_with_a_number_is_no_divergence(bench: GateBench) -> None:
    bench.gate({"nan_share": 1.0})
    assert bench.decision.divergence == ()
    assert "no document has a divergence" in bench.result("kl").sentence


def test_an_engine_that_dies_of_the_comparison_is_not_unservable(bench: GateBench) -> None:
    bench.policy(PERPLEXITY, ENDINGS, KL, TPOT)
    assert bench.gate({"dies_comparing": True}) == 0, bench.stderr
    assert "the comparison of hidden states failed" in bench.result("kl").sentence
    assert bench.decision.timing is not None, "it is served as before"


def test_a_clock_that_runs_out_in_it_leaves_no_final_verdict(bench: GateBench) -> None:
    bench.policy(PERPLEXITY, ENDINGS)
    assert bench.gate({"divergence": 0.5}) == 0, bench.stderr
    bench.policy(PERPLEXITY, ENDINGS, KL, max_minutes=0.0001)
    assert bench.gate({"divergence": 0.5}) == 0, bench.stderr
    assert "max_minutes had passed before" in bench.result("kl").sentence
    bench.policy(PERPLEXITY, ENDINGS, KL)
    assert bench.gate({"divergence": 0.5}) == 0, bench.stderr
    decision = bench.decision
    assert decision.attempt is not None
    assert (decision.attempt.number, decision.attempt.stored) == (1, False)
    assert len(decision.divergence) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "equivalence"}, "kind non_inferiority for kl"),
        ({"evalset": ["answers"]}, "kl"),
    ],
)
def test_what_a_check_on_it_may_not_be(bench: GateBench, changes: dict[str, object], message: str) -> None:
    bench.policy(PERPLEXITY, ENDINGS, {**KL, **changes})
    assert bench.gate() == 2
    assert message in bench.stderr


def test_a_killed_divergence_goes_on_where_it_stopped(bench: GateBench) -> None:
    first, second = (
        bench.manifest("baseline"),
        bench.manifest("candidate", {"divergence": 0.5, "latency_s": 0.05}),
    )
    assert bench.run(*bench.arguments(first, second)) == 0, bench.stderr
    whole = bench.decision.divergence
    bench.wipe()

    process = bench.spawn(*bench.arguments(first, second))
    until(lambda: len(bench.records()) == 4 and len(_unfinished(bench)) >= 3)
    process.kill()
    process.communicate()
    kept = measured_files(_unfinished(bench))
    assert len(kept) >= 3

    process = bench.spawn(*bench.arguments(first, second))
    seen: dict[str, tuple[int, bytes]] = {}

    def over() -> bool:
        for path in _unfinished(bench):
            with suppress(FileNotFoundError):
                seen.update(measured_files([path]))
        return process.poll() is not None

    until(over, 120)
    process.communicate()
    assert process.returncode == 0
    assert {path: seen[path] for path in kept} == kept, "no batch was compared twice"
    assert bench.decision.divergence == whole


def _unfinished(bench: GateBench) -> list[Path]:
    with suppress(FileNotFoundError):
        batches = sorted((bench.home / "store").glob("*/batches/[0-9]*.json"))
        return [path for path in batches if not (path.parent.parent / "record.json").exists()]
    return []
