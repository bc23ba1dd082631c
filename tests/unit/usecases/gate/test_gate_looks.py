"""Gates that look while they measure: where they stop, what they leave out, what a kill or the clock does to them."""

from __future__ import annotations

from xml.etree import ElementTree as ET

import pytest
from tests.unit.usecases.gate.test_gate_store import steady
from tests.unit.usecases.gate_bench import (
    ENDINGS,
    PERPLEXITY,
    SCORE,
    TPOT,
    GateBench,
    measured_files,
)
from tests.waiting import until

from checkweigh.progress import no_progress
from checkweigh.records.decision import Verdict
from checkweigh.records.policy import ADAPTIVE
from checkweigh.sources.evalsets.load_evalset import evalset_roots, find_evalset
from checkweigh.store import Store

WIDE = {"failure_margin": 0.1}


@pytest.fixture
def looks(bench: GateBench) -> GateBench:
    """The bench's usual checks at half of every set, and at all of it."""
    bench.policy(PERPLEXITY, SCORE, ENDINGS | {"margin": 0.1}, looks=[0.5, 1.0], **WIDE)
    return bench


def test_a_clear_regression_stops_at_the_first_look(looks: GateBench) -> None:
    assert looks.gate({"bias_nats": 0.3}) == 1, looks.stderr
    decision = looks.decision
    assert decision.looks is not None
    assert [(k.number, k.verdict) for k in decision.looks.made] == [(1, Verdict.BLOCK)]
    assert decision.looks.made[0].items == {"prose": 160, "choices": 160, "answers": 160}
    assert (decision.looks.items, decision.looks.planned) == (480, 960)
    assert decision.looks.saved_seconds is not None
    assert decision.looks.saved_seconds >= 0
    assert len(looks.records()) == 6, "half of each set, on both arms"
    result = looks.result("perplexity")
    assert (result.information, result.planned) == (pytest.approx(0.5), 320)
    assert result.comparison.pairs == 160
    assert "repeated bounds at" in result.sentence
    for text in (
        looks.stderr.replace("\n", " "),
        (looks.out / "summary.md").read_text().replace("\\", ""),
        (looks.out / "report.html").read_text(),
        (looks.out / "junit.xml").read_text(),
    ):
        words = " ".join(text.split())
        assert "Look 1 of 2: 480 of 960 items an arm; settled early, which saved 480 items an arm" in words
        assert "estimates after an early stop are biased" in words
        assert "Error budget of the whole policy: at most 5.0%" in words
        assert "shared by 2 looks" in words


def test_an_equal_candidate_is_measured_once_on_every_item_it_needs(looks: GateBench) -> None:
    looks.policy(PERPLEXITY, SCORE, looks="adaptive", **WIDE)
    assert looks.gate() == 0, looks.stderr
    decision = looks.decision
    assert decision.looks is not None
    last = decision.looks.made[-1]
    assert last.number > 1, "an eighth only blocks"
    assert [k.verdict for k in decision.looks.made[:-1]] == [Verdict.INCONCLUSIVE] * (last.number - 1)
    assert [k.items["prose"] for k in decision.looks.made] == [40, 80, 160, 320][: last.number]
    places = {f"{name}@{j}" for name in decision.evalsets for j in range(1, last.number + 1)}
    assert set(decision.baseline.measurements) == set(decision.candidate.measurements) == places
    assert len(set(decision.baseline.measurements.values())) == len(places)
    assert len(looks.records()) == 2 * len(places)
    assert looks.result("perplexity").comparison.pairs == last.items["prose"]


def test_the_next_candidate_finds_the_baselines_parts(looks: GateBench) -> None:
    assert looks.gate({"bias_nats": 0.3}) == 1
    kept = measured_files([folder / "record.json" for folder in looks.records()])
    assert looks.gate({"noise_seed": 7}) == 0
    stages = looks.stages()
    for name in ("prose", "choices", "answers"):
        assert stages["baseline", f"{name}, look 1"]
        assert not stages["candidate", f"{name}, look 1"]
    now = measured_files([folder / "record.json" for folder in looks.records()])
    assert {path: now[path] for path in kept} == kept, "nothing is measured twice"
    assert looks.gate({"noise_seed": 8}) == 0
    assert all(stored for (role, _), stored in looks.stages().items() if role == "baseline")


def test_looks_share_parts_that_are_the_same(looks: GateBench) -> None:
    """Other looks at the same order: what follows the common beginning is found."""
    looks.policy(PERPLEXITY, looks=[0.25, 0.5, 1.0], **WIDE)
    assert looks.gate() == 0
    number = len(looks.decision.looks.made)  # type: ignore[union-attr]
    looks.policy(PERPLEXITY, looks="adaptive", **WIDE)
    assert looks.gate() == 0
    stages = looks.stages()
    assert not stages["candidate", "prose, look 1"]
    assert stages["candidate", f"prose, look {number + 1}"]


def test_looks_and_one_look_agree_on_the_whole(looks: GateBench) -> None:
    """The same items, in other batches: the last look has the estimate that one look has."""
    hard = SCORE | {"margin": 0.012}
    looks.policy(hard, looks="adaptive", **WIDE)
    looks.gate({"wrong_share": 0.01})
    grown = looks.result("score").comparison
    looks.policy(hard, **WIDE)
    looks.gate({"wrong_share": 0.01})
    alone = looks.result("score").comparison
    assert grown.kind == alone.kind == "estimate"
    assert grown.pairs == alone.pairs == 640
    assert grown.effect == pytest.approx(alone.effect, abs=1e-9)


def test_nothing_is_timed_when_the_verdict_is_settled_without_it(bench: GateBench) -> None:
    gating = TPOT | {"tier": "supporting", "min_clusters": 20}
    timing = {"pairs": 20, "requests": 1, "output_tokens": 4, "max_seconds": 30}
    for shares in ([1.0], [0.5, 1.0]):
        bench.policy(PERPLEXITY, SCORE, gating, looks=shares, timing=timing, **WIDE)
        assert bench.gate({"bias_nats": 0.3}) == 1
        assert bench.decision.timing is None
        assert "not timed: the verdict was settled without it" in bench.result("tpot").sentence
        assert "timing, both arms" not in bench.stderr


def test_timing_comes_once_when_all_else_would_pass(bench: GateBench) -> None:
    slow = {"token_latency_s": 0.001}
    bench.policy(PERPLEXITY, SCORE, TPOT, looks="adaptive", **WIDE)
    assert bench.gate(slow, slow) == 0, bench.stderr
    assert bench.decision.timing is not None
    assert bench.stderr.count("timing, both arms") == 1
    assert bench.decision.looks is not None
    last = bench.decision.looks.made[-1].number
    assert f"look {last - 1} of 4: not settled; the sample grows" in bench.stderr


def test_arms_that_are_the_same_are_executed_anew_and_pass(looks: GateBench) -> None:
    manifest = looks.manifest("baseline")
    assert looks.run(*looks.arguments(manifest, manifest)) == 0, looks.stderr
    decision = looks.decision
    assert (decision.baseline.replicate, decision.candidate.replicate) == (0, 1)
    assert looks.result("perplexity").comparison.kind == "identical"
    looks.policy(PERPLEXITY, SCORE, looks=[0.5, 1.0], **WIDE)
    assert looks.run(*looks.arguments(manifest, manifest)) == 0
    assert looks.decision.candidate.replicate == 2, "another gate reads no execution of an earlier one"
    assert not any(stored for (role, _), stored in looks.stages().items() if role == "candidate")


def test_the_clock_leaves_what_the_looks_before_it_saw(looks: GateBench) -> None:
    """Out of time in the second look: inconclusive, with the first look's estimates, and open to go on."""
    looks.policy(PERPLEXITY, looks=[0.5, 1.0], **WIDE)
    assert looks.gate() == 0
    assert len(looks.records()) == 2, "the first look's parts are stored"
    strict = PERPLEXITY | {"margin": 0.001}
    looks.policy(strict, looks=[0.5, 1.0], max_minutes=0.0001, **WIDE)
    assert looks.gate() == 3, looks.stderr
    decision = looks.decision
    assert decision.looks is not None
    assert decision.reasons[0] == "max_minutes (0.0001) had passed before look 2 of 2 was complete"
    assert len(decision.looks.made) == 1
    assert looks.result("perplexity").comparison.pairs == 160
    assert "more items would settle it" in looks.result("perplexity").sentence
    looks.policy(strict, looks=[0.5, 1.0], **WIDE)
    looks.gate()
    again = looks.decision
    assert again.looks is not None
    assert again.attempt is not None
    assert (again.attempt.number, again.attempt.stored, again.attempt.earlier[:-1]) == (1, False, ())
    assert len(again.looks.made) == 2
    assert again.looks.plan == decision.looks.plan, "the plan was frozen before the first look"


def test_a_gate_killed_in_its_second_look_goes_on(looks: GateBench) -> None:
    looks.policy(PERPLEXITY | {"margin": 0.004}, looks=[0.5, 1.0], **WIDE)
    first, second = looks.manifest("baseline"), looks.manifest("candidate", {"latency_s": 0.1})
    code = looks.run(*looks.arguments(first, second))
    undisturbed = steady(looks.decision)
    assert len(undisturbed["looks"]["made"]) == 2
    looks.wipe()
    process = looks.spawn(*looks.arguments(first, second))
    until(lambda: len(looks.records()) >= 3)
    process.kill()
    process.communicate()
    kept = measured_files([folder / "record.json" for folder in looks.records()])
    assert not (looks.out / "decision.json").exists()
    assert looks.run(*looks.arguments(first, second)) == code
    assert steady(looks.decision) == undisturbed
    now = measured_files([folder / "record.json" for folder in looks.records()])
    assert {path: now[path] for path in kept} == kept


def test_a_candidate_that_dies_in_a_later_look_is_unservable(looks: GateBench) -> None:
    looks.policy(PERPLEXITY, looks=[0.1, 1.0], **WIDE)
    engine = {"max_batch": 16, "max_batch_tokens": 100_000}
    first = looks.manifest("baseline", engine=engine)
    second = looks.manifest("candidate", {"crash_at": 4}, engine=engine)
    assert looks.run(*looks.arguments(first, second)) == 1
    assert "candidate_unservable" in looks.reasons
    assert looks.decision.checks == ()
    suite = ET.parse(looks.out / "junit.xml").getroot()
    assert int(suite.get("failures") or 0) > 0


def test_what_a_stopped_gate_measured_is_found_as_one(looks: GateBench) -> None:
    """Parts of one execution come together; a plan tells the noise by the items that both arms have."""
    looks.policy(PERPLEXITY, looks=[0.25, 0.5, 1.0], **WIDE)
    assert looks.gate() == 0
    items = looks.decision.looks.items  # type: ignore[union-attr]
    source = find_evalset("prose", evalset_roots(looks.folder / "gates/test.yaml"), no_progress)
    store, arm = Store(looks.home / "store"), looks.decision.baseline
    (found,) = store.find_executions(pins=arm.pins, evalset=source.card.digest, scorer=source.card.scorer)
    assert found.planned == len({o.item for o in found.observations}) == items
    paths = [part for role in ("baseline", "candidate") for part in (f"--{role}", f"{role}.yaml")]
    assert looks.run("plan", "--policy", "gates/test.yaml", *paths) == 0, looks.stderr
    assert "measured: baseline against candidate" in " ".join(looks.stderr.split())


def test_the_adaptive_looks_are_those_of_the_design() -> None:
    assert ADAPTIVE == (0.125, 0.25, 0.5, 1.0)
