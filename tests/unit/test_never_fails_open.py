"""A row for every way in which a gate has been seen to fail open.

Each candidate that is shown here is 20 points worse than its baseline, or was not measured at all. Not one of
them may pass. The rows that need a running engine, a file or the command line stand in
tests/unit/test_gate_fails_closed.py; those on bytes, beside what they show, and ``BYTES`` names them.
"""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import pytest
from tests.builders import check, evalset, judge, measured, policy, with_observations

from checkweigh.decision.compare import compare
from checkweigh.decision.compare_divergence import compare_divergence
from checkweigh.decision.compare_timing import compare_blocks
from checkweigh.decision.looks import looks_for_sets
from checkweigh.decision.pairing import pair
from checkweigh.decision.slices import restrict_items, slice_items
from checkweigh.decision.verdict import all_checks, decide, hypothesis_count
from checkweigh.errors import BadDocument
from checkweigh.records.calibration import Floor
from checkweigh.records.comparison import Inestimable
from checkweigh.records.decision import Verdict
from checkweigh.records.measurement import Failed, Scored

N = 600
SET = evalset("generation", N)
RNG = np.random.default_rng(7)
GOOD = (RNG.random(N) < 0.6).astype(float)
WORSE = np.where(RNG.random(N) < 0.33, 0.0, GOOD)
BASELINE = measured(SET, GOOD)
CANDIDATE = measured(SET, WORSE, arm="candidate")


def test_the_plain_case_blocks() -> None:
    """The same candidate, measured as it should be: what the rows below must not turn into a pass."""
    assert judge(policy(), SET, BASELINE, CANDIDATE).verdict is Verdict.BLOCK


def test_failed_items_absent_from_the_candidates_file() -> None:
    kept = with_observations(
        CANDIDATE,
        lambda rows: [row for row, ok in zip(rows, WORSE >= GOOD, strict=True) if ok],
    )
    judgement = judge(policy(), SET, BASELINE, kept)
    assert judgement.verdict is Verdict.BLOCK
    assert "failures" in judgement.reasons[0]


def test_failed_items_marked_as_failed() -> None:
    values = np.where(WORSE < GOOD, np.nan, np.clip(WORSE + RNG.normal(0, 0.01, N), 0, 1))
    judgement = judge(policy(), SET, BASELINE, values)
    assert judgement.verdict is Verdict.BLOCK
    quality = judgement.results[0].comparison
    assert quality.kind == "estimate"
    assert quality.low is not None
    assert quality.low < -0.1, "a candidate's failure counts as the worst score for the pass test"


def test_a_few_failures_do_not_pass_an_unbounded_metric() -> None:
    text = evalset("text", 200)
    nll = RNG.normal(3, 0.3, 200)
    candidate = nll + RNG.normal(0, 0.01, 200)
    candidate[:3] = np.nan
    rules = policy(check(metric="log_perplexity", direction="lower", margin=0.03, scale="log"))
    judgement = judge(rules, text, nll, candidate)
    assert judgement.verdict is Verdict.INCONCLUSIVE
    said = "; 0 items failed in the baseline, 3 in the candidate; more than 0.5% failures: no pass"
    assert judgement.reasons[0].endswith(said), "more items would not help"


def test_documents_that_failed_beside_others_without_divergence() -> None:
    """A fourth of the documents is gone; the rest is as it was."""
    text = evalset("text", 200)
    floor = Floor(
        metric="kl", statistic="mean", evalsets={}, contrasts=(), floor=1e-4, honest=3e-3, kappa=1e-4
    )

    def diverging(rows):  # type: ignore[no-untyped-def]
        same = Scored(values={"kl": 0.0}, weights={})
        return [r.model_copy(update={"outcome": same}) if isinstance(r.outcome, Scored) else r for r in rows]

    rule = policy(check(metric="kl", direction="lower", margin=0.05)).checks[0]
    for failed, kind in ((0, "identical"), (50, "inestimable")):
        record = with_observations(measured(text, [3.0] * (200 - failed) + [np.nan] * failed), diverging)
        found = compare_divergence(rule, [text], {"set": record}, "", floor=floor, alpha=0.05)
        assert found.kind == kind
    assert isinstance(found, Inestimable)
    assert found.reason.startswith("50 documents failed, and the other 150 do not diverge")


@pytest.mark.parametrize("n", [1, 5, 10, 58])
def test_few_identical_items(n: int) -> None:
    few = evalset("choice", n)
    scores = RNG.random(n)
    rules = policy(check(min_items=1, min_clusters=2))
    assert judge(rules, few, scores, scores).verdict is Verdict.INCONCLUSIVE


def test_identical_constant_scores() -> None:
    assert judge(policy(), SET, np.zeros(N), np.zeros(N)).verdict is Verdict.INCONCLUSIVE
    assert judge(policy(), SET, np.ones(N), np.ones(N)).verdict is Verdict.INCONCLUSIVE


def test_constant_shift_has_no_zero_width_interval() -> None:
    base = RNG.random(N) * 0.5
    judgement = judge(policy(), SET, base, base + 0.25)
    assert judgement.verdict is Verdict.INCONCLUSIVE


def test_duplicated_ids_with_a_better_second_copy() -> None:
    doubled = with_observations(CANDIDATE, lambda rows: rows + list(BASELINE.observations))
    assert judge(policy(), SET, BASELINE, doubled).verdict is Verdict.INCONCLUSIVE
    replaced = with_observations(CANDIDATE, lambda rows: list(BASELINE.observations) + rows)
    assert judge(policy(), SET, BASELINE, replaced).verdict is Verdict.INCONCLUSIVE


def test_candidate_in_percent_and_baseline_in_fractions() -> None:
    judgement = judge(policy(), SET, BASELINE, WORSE * 100)
    assert judgement.verdict is Verdict.INCONCLUSIVE
    assert "percent" in judgement.reasons[0]


def test_the_score_misnamed_on_both_sides() -> None:
    def rename(rows):  # type: ignore[no-untyped-def]
        return [
            row.model_copy(
                update={"outcome": Scored(values={"scroe": row.outcome.values["score"]}, weights={})}
            )
            for row in rows
        ]

    judgement = judge(
        policy(), SET, with_observations(BASELINE, rename), with_observations(CANDIDATE, rename)
    )
    assert judgement.verdict is Verdict.INCONCLUSIVE
    assert "no 'score'" in judgement.reasons[0]


def test_the_end_of_the_file_cut_off() -> None:
    half = with_observations(CANDIDATE, lambda rows: rows[: N // 2])
    assert judge(policy(), SET, BASELINE, half).verdict is Verdict.BLOCK


def test_disjoint_ids() -> None:
    foreign = with_observations(
        CANDIDATE, lambda rows: [row.model_copy(update={"item": f"other-{row.item}"}) for row in rows]
    )
    assert judge(policy(), SET, BASELINE, foreign).verdict is not Verdict.PASS


def test_no_observations_at_all() -> None:
    empty = with_observations(CANDIDATE, lambda rows: [])
    assert judge(policy(), SET, BASELINE, empty).verdict is not Verdict.PASS
    nothing = with_observations(BASELINE, lambda rows: [])
    assert judge(policy(), SET, nothing, empty).verdict is not Verdict.PASS


def test_every_item_failed_in_both_arms() -> None:
    nan = np.full(N, np.nan)
    assert judge(policy(), SET, nan, nan).verdict is not Verdict.PASS


def test_nan_and_infinite_scores_cannot_even_be_recorded() -> None:
    for value in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="finite"):
            Scored(values={"score": value})


def test_strings_and_lists_as_scores_cannot_even_be_recorded() -> None:
    for value in ("0.9", [0.9], None, True):
        with pytest.raises(ValueError, match=r"score"):
            Scored(values={"score": value})  # type: ignore[dict-item]


def test_scorer_errors_count_as_failures() -> None:
    def spoil(rows):  # type: ignore[no-untyped-def]
        failed = Failed(reason="scorer", detail="raised")
        return [r.model_copy(update={"outcome": failed, "raw": None}) if w < g else r
                for r, w, g in zip(rows, WORSE, GOOD, strict=True)]  # fmt: skip

    assert judge(policy(), SET, BASELINE, with_observations(CANDIDATE, spoil)).verdict is Verdict.BLOCK


def test_one_cluster_and_few_clusters() -> None:
    for size in (N, N // 10, 16):
        clustered = evalset("generation", N, cluster_size=size)
        rules = policy(check(min_clusters=2))
        assert judge(rules, clustered, GOOD, GOOD * 1.0).verdict is Verdict.INCONCLUSIVE
        noisy = np.clip(GOOD + RNG.normal(0, 1e-3, N), 0, 1)
        assert judge(rules, clustered, GOOD, noisy).verdict is Verdict.INCONCLUSIVE


def test_a_record_compared_with_itself() -> None:
    judgement = judge(policy(), SET, BASELINE, BASELINE)
    assert judgement.verdict is Verdict.INCONCLUSIVE
    assert "with itself" in judgement.reasons[0]


def test_a_record_of_another_version_of_the_set() -> None:
    other = measured(evalset("generation", N, name="other"), GOOD, arm="candidate")
    assert judge(policy(), SET, BASELINE, other).verdict is Verdict.INCONCLUSIVE


def test_a_check_without_a_comparison() -> None:
    assert decide(policy(), {}).verdict is Verdict.INCONCLUSIVE


def test_timing_that_was_not_measured() -> None:
    timing = check(
        id="tpot",
        metric="tpot",
        statistic="p50",
        evalset=[],
        direction="lower",
        scale="relative",
        min_clusters=20,
    )
    rules = policy(check(), timing)
    assert compare_blocks(rules.checks[1], None, alpha=0.05).kind == "inestimable"
    assert judge_with_timing(rules) is Verdict.INCONCLUSIVE


def judge_with_timing(rules) -> Verdict:  # type: ignore[no-untyped-def]
    noise = np.clip(0.5 + RNG.normal(0, 0.1, N), 0, 1)
    quality = judge(policy(), SET, noise, np.clip(noise + RNG.normal(0, 0.01, N), 0, 1))
    assert quality.verdict is Verdict.PASS
    comparisons = {r.check.id: r.comparison for r in quality.results}
    comparisons["tpot"] = compare_blocks(rules.checks[1], None, alpha=0.05)
    return decide(rules, comparisons).verdict


def test_supporting_checks_must_be_estimable_for_a_pass() -> None:
    rules = policy(check(), check(id="second", tier="supporting", min_items=10_000))
    noise = np.clip(0.5 + RNG.normal(0, 0.1, N), 0, 1)
    other = np.clip(noise + RNG.normal(0, 0.01, N), 0, 1)
    assert judge(policy(), SET, noise, other).verdict is Verdict.PASS
    assert judge(rules, SET, noise, other).verdict is Verdict.INCONCLUSIVE


def test_an_implausible_gain_is_not_a_pass() -> None:
    better = np.clip(GOOD * 0.3 + RNG.random(N) * 0.1, 0, 1)
    judgement = judge(policy(), SET, better, np.clip(better + 0.4 + RNG.normal(0, 0.02, N), 0, 1))
    assert judgement.verdict is Verdict.INCONCLUSIVE
    assert judgement.results[0].outcome == "anomalous"


def test_every_critical_check_declared_away() -> None:
    length = check(metric="log_length", direction="lower", scale="relative", margin=0.1)
    tokens = RNG.integers(5, 40, N)
    first = measured(SET, GOOD, tokens=tokens)
    second = measured(SET, GOOD, arm="candidate", tokens=tokens * 3 + RNG.integers(0, 3, N))
    rules = policy(length)
    assert judge(rules, SET, first, second).verdict is Verdict.BLOCK
    judgement = judge(rules, SET, first, second, intends=["longer"])
    assert judgement.verdict is Verdict.INCONCLUSIVE, "the implicit check on failures alone shows nothing"
    assert judgement.results[0].declared


def test_a_peek_at_an_eighth_of_the_items() -> None:
    """Ever so good a first slice, looked at with the whole five percent, is no pass: peeking doubles false ships."""
    rules = policy(check(), looks="adaptive", failure_margin=0.05)
    first = looks_for_sets(rules, all_checks(rules), [SET], hypothesis_count(rules))[0]
    part = restrict_items(SET, slice_items(SET, rules.looks, rules.seed)[0])
    noise = {item.id: RNG.uniform(0.3, 0.7) for item in part.items}
    arms = [
        measured(part, [noise[i.id] + RNG.normal(0, 1e-3) for i in part.items], arm=arm)
        for arm in ("baseline", "candidate")
    ]
    found = {
        c.id: compare(c, pair(c.metric, [part], {"set": arms[0]}, {"set": arms[1]}), alpha=first.levels[c.id])
        for c in all_checks(rules)
    }
    assert decide(rules, found, (), first).verdict is Verdict.INCONCLUSIVE
    assert judge(policy(), part, *arms).verdict is not Verdict.BLOCK


GATING = (
    "id: a, metric: score, evalset: [s], direction: higher, margin: .1, because: hello there, tier: critical"
)

TIMED = (
    "id: t, metric: tpot, statistic: p50, direction: lower, scale: relative, margin: .1, because: hello there, "
    "tier: critical, min_clusters: 12"
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("checks: []", "at least 1 item"),
        ("", "checks"),
        ("checks: {a: ", "well-formed"),
        ("checks: [{" + GATING.replace("score", "scroe") + "}]", "did you mean 'score'"),
        ("checks: [{" + GATING.replace("critical", "advisory") + "}]", "critical"),
        ("checks: [{" + GATING.replace(".1", ".nan") + "}]", "finite"),
        ("checks: [{" + GATING.replace(".1", "-0.1") + "}]", "greater than or equal to 0"),
        ("checks: [{" + GATING.replace(".1", "0") + "}]", "above zero"),
        ("checks: [{" + GATING.replace(".1", "3") + "}]", "three points are 0.03"),
        (
            "checks: [{" + GATING.replace("score", "log_length, kind: equivalence") + "}]",
            "non_inferiority for log_length",
        ),
        (
            "checks: [{"
            + GATING.replace("score", "kl, where: {stratum: a}").replace("higher", "lower")
            + "}]",
            "no where for kl",
        ),
        ("checks: [{" + TIMED + ", where: {stratum: a}}]", "no where for tpot"),
        ("checks: [{" + TIMED + "}]", "min_clusters of at least 20"),
        ("timing: {pairs: 10}\nchecks: [{" + TIMED + "}]", "timing.pairs of at least"),
        ("timing: {requests: 5}\nchecks: [{" + TIMED.replace("p50", "p99").replace("12", "20") + "}]", "100"),
        ("checks: [{" + GATING.replace("higher", "lower") + "}]", "direction higher"),
        ("checks: [{" + GATING.replace("evalset: [s], ", "") + "}]", "evalset"),
        ("checks: [{" + GATING.replace("because: hello there, ", "") + "}]", "because"),
    ],
)
def test_policies_that_check_nothing_are_refused(text: str, message: str) -> None:
    from checkweigh.records.policy import Policy
    from checkweigh.records.yaml.document import parse

    with pytest.raises(BadDocument, match=message):
        parse(Policy, f"schema: checkweigh/policy@1\nname: x\n{text}\n".encode(), "p.yaml")


SOURCES, GATE, HF = "unit/sources/test_awkward_checkpoints.py", "unit/usecases/gate", "unit/engines/hf"
# How bytes were served that nobody had pinned, or pinned that nobody served -> the test that shows it refused.
BYTES = {
    "a configuration names other weights": (
        SOURCES, "test_weights_below_the_folder_are_never_loaded_from_a_configuration"),
    "a configuration names another source": (SOURCES, "test_a_setting_that_names_another_source_is_refused"),
    "a tensor is missing, unexpected or renamed": (
        f"{HF}/test_tensor_account.py", "test_a_checkpoint_that_is_not_its_architectures_is_refused_by_name"),
    "a drafting model lacks one": (f"{HF}/test_tensor_account.py", "test_a_drafting_model_is_held_to_the_same"),
    "a fused tensor lacks a part, on vLLM": (
        "integration/test_vllm_engine.py",
        "test_a_tensor_that_a_fused_parameter_lacks_is_named_before_anything_starts"),
    "experts are numbered otherwise": (
        "unit/engines/test_expected_tensors.py", "test_experts_that_are_put_together_are_all_needed"),
    "a server gives no account": ("unit/engines/vllm/test_account.py", "test_no_account_is_no_account"),
    "two sets of weights": (SOURCES, "test_a_second_set_of_weights_is_refused"),
    "a stale index": (SOURCES, "test_an_index_is_held_against_its_shards_in_every_way"),
    "a quantization that nobody stated": (SOURCES, "test_manifest_configuration_and_tensors_must_agree"),
    "every awkward folder, at pin": (SOURCES, "test_what_is_right_for_each_folder"),
    "every awkward folder, at the gate": (
        "integration/test_awkward_gates.py", "test_every_folder_gets_its_right_answer"),
    "a file added after the pin": (SOURCES, "test_a_file_that_is_added_after_pinning_is_noticed_by_name"),
    "weights swapped during a gate": (f"{GATE}/test_gate_swaps.py", "test_weights_that_are_overwritten_are_bad_input"),
    "weights swapped and put back": (f"{GATE}/test_gate_swaps.py", "test_what_is_put_back_was_there_all_the_same"),
    "the same on a real engine": (
        "integration/test_exchanged_files.py", "test_a_gate_whose_weights_are_put_back_leaves_nothing"),
    "weights overwritten under a running engine": (
        f"{HF}/test_file_mappings.py", "test_weights_that_are_overwritten_after_loading_change_nothing"),
    "a write through a memory map": (SOURCES, "test_a_write_through_a_memory_map_is_seen_where_files_are_read_again"),
    "another baseline at admit": (
        "unit/attest/test_bindings.py", "test_the_demanded_baseline_must_be_the_attested_one"),
    "other sets at admit": (
        "unit/attest/test_bindings.py", "test_sets_of_another_content_than_those_beside_the_policy_are_refused"),
    "an arm that nobody verified": (
        "unit/attest/test_bindings.py", "test_an_arm_that_nobody_could_verify_is_refused_unless_accepted"),
    "one folder read in two ways": (
        f"{GATE}/test_loaded_configuration.py",
        "test_what_nothing_declared_explains_is_refused_before_the_candidate_is_measured"),
    "a quantization that was not applied": (
        f"{GATE}/test_no_effect.py", "test_a_gate_refuses_a_quantization_without_effect_and_spends_no_attempt"),
}  # fmt: skip


@pytest.mark.parametrize("how", BYTES)
def test_what_was_served_unpinned_has_a_test(how: str) -> None:
    file, name = BYTES[how]
    tree = ast.parse((Path(__file__).parents[1] / file).read_text())
    assert name in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}, file
