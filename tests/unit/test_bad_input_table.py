"""The table of bad input, a test for each row: a reason or an input error; never a pass, a zero width, a traceback.

Every row for every estimator that reads items, and for the first and the last of several looks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.builders import check, evalset, judge, measured, policy, with_observations

from checkweigh.decision.compare import compare, compare_many
from checkweigh.decision.looks import looks_for_sets
from checkweigh.decision.pairing import PairedSample, pair
from checkweigh.decision.verdict import all_checks, decide, hypothesis_count
from checkweigh.records.comparison import Estimate, Inestimable
from checkweigh.records.decision import Verdict
from checkweigh.records.evalset import Scorer
from checkweigh.records.measurement import MeasurementSet, Scored
from checkweigh.records.policy import Check

N = 400
RNG = np.random.default_rng(17)
FEW = {"min_clusters": 2}
METRICS = {
    "score": check(**FEW),
    "bad_ending": check(id="endings", metric="bad_ending", direction="lower", margin=0.03, **FEW),
    "log_length": check(
        id="length", metric="log_length", direction="lower", scale="relative", margin=0.1, **FEW
    ),
    "log_perplexity": check(id="ppl", metric="log_perplexity", direction="lower", scale="log", **FEW),
}
GRADED = ("score", "log_length", "log_perplexity")
SET = evalset("generation", N)


def sample(metric: str, n: int = N, cluster: int = 1, **changes: Any) -> PairedSample:
    """Two arms that would pass."""
    size = RNG.integers(50, 150, n).astype(float) if metric == "log_perplexity" else np.ones(n)
    baseline = RNG.uniform(0.3, 0.7, n) * size
    candidate = baseline + 0.01 * RNG.normal(size=n) * size
    if metric == "bad_ending":
        baseline = candidate = (np.arange(n) % 50 == 0).astype(float)
    whole = PairedSample(
        metric=metric, baseline=baseline, candidate=candidate, size=size, weights=np.ones(n),
        clusters=tuple(f"c{i // cluster}" for i in range(n)), identical=False,
    )  # fmt: skip
    return replace(whole, **changes)


def judged(metric: str, given: PairedSample) -> list[tuple[Verdict, Estimate | Inestimable]]:
    """The verdict and the comparison at the only look, and at each of several."""
    found = []
    for looks in ([1.0], "adaptive"):
        rules = policy(METRICS[metric], looks=looks)
        own: Check = rules.checks[0]
        for look in looks_for_sets(rules, all_checks(rules), [SET], hypothesis_count(rules)):
            comparison = compare(own, given, alpha=look.levels[own.id])
            assert not hasattr(comparison, "differing_share_upper")
            found.append((decide(rules, {own.id: comparison}, (), look).verdict, comparison))
    return found


def never_a_pass(metric: str, given: PairedSample, reason: str = "") -> None:
    for verdict, comparison in judged(metric, given):
        assert verdict is not Verdict.PASS
        if isinstance(comparison, Estimate):
            assert comparison.low is None or comparison.low < comparison.high
        else:
            assert reason in comparison.reason
            assert len(comparison.reason) > 10


def inestimable(metric: str, given: PairedSample, reason: str) -> None:
    never_a_pass(metric, given, reason)
    assert all(isinstance(comparison, Inestimable) for _, comparison in judged(metric, given))


@pytest.mark.parametrize("metric", METRICS)
def test_the_plain_case_is_estimated(metric: str) -> None:
    assert all(isinstance(comparison, Estimate) for _, comparison in judged(metric, sample(metric)))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("arm", ["baseline", "candidate"])
def test_nan(metric: str, arm: str) -> None:
    plain = sample(metric)
    some = np.where(np.arange(N) % 3 == 0, np.nan, getattr(plain, arm))
    never_a_pass(metric, replace(plain, **{arm: some}))
    inestimable(metric, replace(plain, **{arm: np.full(N, np.nan)}), "every item failed")


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("value", [np.inf, -np.inf])
def test_infinities(metric: str, value: float) -> None:
    """A score that is not there arrives as infinity, with a problem that says so; even without it nothing passes."""
    plain = sample(metric)
    spoilt = np.where(np.arange(N) == 7, value, plain.candidate)
    inestimable(
        metric, replace(plain, candidate=spoilt, problems=("no 'score' for some items",)), "no 'score'"
    )
    with np.errstate(invalid="ignore"):
        never_a_pass(metric, replace(plain, candidate=spoilt))


@pytest.mark.parametrize("metric", GRADED)
def test_constant_scores(metric: str) -> None:
    plain = sample(metric)
    flat = 0.5 * plain.size
    lengths = metric == "log_length"  # one arm of one length may block, and never passes
    said = "every reply of the baseline" if lengths else "a constant says nothing"
    inestimable(metric, replace(plain, baseline=flat, candidate=flat), said)
    if lengths:
        never_a_pass(metric, replace(plain, candidate=flat))
    else:
        inestimable(metric, replace(plain, candidate=flat), said)
    inestimable(
        metric, replace(plain, candidate=plain.baseline + 0.25 * plain.size), "no interval can be stated"
    )


def test_constant_events_have_a_score_interval_of_their_own() -> None:
    quiet = np.zeros(N)
    for _, comparison in judged("bad_ending", replace(sample("bad_ending"), baseline=quiet, candidate=quiet)):
        assert isinstance(comparison, Estimate)
        assert comparison.effect == 0
        assert comparison.high > 0.001
        assert comparison.low is None or comparison.low < -0.001


@pytest.mark.parametrize("metric", METRICS)
def test_one_item(metric: str) -> None:
    rules = policy({**METRICS[metric], "min_items": 1})
    found = compare(rules.checks[0], sample(metric, 1), alpha=0.05)
    assert isinstance(found, Inestimable)
    assert "1 clusters, 2 needed" in found.reason


@pytest.mark.parametrize("metric", METRICS)
def test_one_cluster(metric: str) -> None:
    one = sample(metric, cluster=N)
    found = compare(policy(METRICS[metric]).checks[0], one, alpha=0.05)
    assert isinstance(found, Inestimable)
    assert "1 clusters, 2 needed" in found.reason
    two = compare(policy(METRICS[metric]).checks[0], sample(metric, cluster=N // 2), alpha=0.05)
    assert isinstance(two, Inestimable)
    never_a_pass(metric, one)


def arms(kind: str = "choice") -> tuple[Any, MeasurementSet, MeasurementSet]:
    source = evalset(kind, N)
    values = RNG.uniform(0.3, 0.7, N)
    return (
        source,
        measured(source, values),
        measured(source, values + 0.01 * RNG.normal(size=N), arm="candidate"),
    )


def reason_of(source: Any, baseline: MeasurementSet, candidate: MeasurementSet) -> str:
    judgement = judge(policy(), source, baseline, candidate)
    assert judgement.verdict in (Verdict.INCONCLUSIVE, Verdict.BLOCK)
    comparison = judgement.results[0].comparison
    return comparison.reason if isinstance(comparison, Inestimable) else judgement.reasons[0]


def test_unequal_item_sets() -> None:
    source, baseline, candidate = arms()
    assert "failed" in reason_of(source, baseline, with_observations(candidate, lambda rows: rows[: N // 2]))
    foreign = with_observations(
        candidate, lambda rows: [*rows[1:], rows[0].model_copy(update={"item": "somewhere-else"})]
    )
    assert "1 unknown items, such as somewhere-else" in reason_of(source, baseline, foreign)


def test_duplicated_ids() -> None:
    source, baseline, candidate = arms()
    doubled = with_observations(candidate, lambda rows: [*rows, rows[3]])
    assert "1 items twice, such as i3" in reason_of(source, baseline, doubled)
    assert "the baseline has 1 items twice" in reason_of(
        source, with_observations(baseline, lambda r: [*r, r[0]]), candidate
    )


@pytest.mark.parametrize("value", ["0.9", b"1", [1.0], {"score": 1.0}, True, None])
def test_scores_of_another_type(value: Any) -> None:
    with pytest.raises(ValueError, match="score"):
        Scored(values={"score": value})


def test_scores_in_percent_where_shares_are_meant() -> None:
    source, baseline, _ = arms()
    percent = measured(source, RNG.uniform(30, 70, N), arm="candidate")
    assert "outside [0, 1]" in reason_of(source, baseline, percent)


def test_a_baseline_measured_under_another_scorer_version() -> None:
    source, baseline, candidate = arms()
    older = baseline.key.model_copy(update={"scorer": Scorer(name=baseline.key.scorer.name, version=2)})
    assert "different scorers or protocols" in reason_of(
        source, baseline.model_copy(update={"key": older}), candidate
    )
    protocol = baseline.key.model_copy(update={"protocol": 99})
    assert "different scorers or protocols" in reason_of(
        source, baseline.model_copy(update={"key": protocol}), candidate
    )


def test_a_record_of_another_version_of_the_set() -> None:
    source, baseline, candidate = arms()
    other = candidate.key.model_copy(update={"evalset": baseline.key.pins})
    assert "another version of the set" in reason_of(
        source, baseline, candidate.model_copy(update={"key": other})
    )


def test_a_set_that_one_arm_was_never_measured_on() -> None:
    source, baseline, _ = arms()
    found = pair("score", [source], {"set": baseline}, {})
    assert found.problems == ("set set was not measured on the candidate", "no items")
    comparison = compare(policy().checks[0], found, alpha=0.05)
    assert isinstance(comparison, Inestimable)


MESS = st.sampled_from([np.nan, np.inf, -np.inf, 0.0, 1.0, 0.5, 1e-300, 1e300, -1.0, 0.3, 0.7])


@given(
    metric=st.sampled_from(sorted(METRICS)),
    cluster=st.sampled_from([1, 2, 7, 150, 300]),
    seed=st.integers(0, 2**20),
    mess=st.lists(MESS, min_size=1, max_size=4),
    share=st.sampled_from([0.005, 0.2, 1.0]),
)
@settings(max_examples=150, deadline=None)
def test_whatever_stands_in_the_arms_there_is_an_answer_with_a_width(
    metric: str, cluster: int, seed: int, mess: Sequence[float], share: float
) -> None:
    rng = np.random.default_rng(seed)
    plain = sample(metric, 300, cluster)
    given = {
        arm: np.where(rng.random(300) < share, rng.choice(np.array(mess), 300), getattr(plain, arm))
        for arm in ("baseline", "candidate")
    }
    own = policy(METRICS[metric]).checks[0]
    with np.errstate(all="ignore"):
        found = compare(own, replace(plain, **given), alpha=0.05)
    if isinstance(found, Estimate):
        assert np.isfinite([found.effect, found.high, found.se, found.p_worse, found.p_pass]).all()
        assert found.low is None or found.low < found.high
        assert 0 <= found.p_pass <= 1


def test_the_fast_path_of_simulations_refuses_what_is_not_whole() -> None:
    plain = sample("score")
    rows = np.stack([plain.candidate, np.where(np.arange(N) == 3, np.nan, plain.candidate)])
    with pytest.raises(ValueError, match="complete samples"):
        compare_many(
            policy().checks[0],
            replace(plain, baseline=np.stack([plain.baseline] * 2), candidate=rows),
            alpha=0.05,
        )
