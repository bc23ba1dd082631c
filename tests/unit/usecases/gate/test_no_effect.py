"""A change that alters no output: said in the first line, refused where it must have altered some."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from tests import awkward, builders
from tests.conftest import WriteManifest
from tests.unit.usecases.gate_bench import ENDINGS, PERPLEXITY, SCORE, GateBench

from checkweigh.errors import BadInput
from checkweigh.records.evalset import EvalSet
from checkweigh.records.manifest import Manifest, Pins
from checkweigh.records.measurement import MeasurementSet, Observation, WorstToken
from checkweigh.sources.pin import Resolved, verify
from checkweigh.sources.undeclared import _leaves
from checkweigh.usecases.gate.arms.measure_divergence import Divergences
from checkweigh.usecases.gate.measured import Measured
from checkweigh.usecases.gate.no_effect import (
    EFFECTS,
    PINNED,
    NoEffect,
    effect_of,
    find_no_effect,
    refuse_without_effect,
)

PROSE, ANSWERS = builders.evalset("text", 4, name="prose"), builders.evalset("generation", 4, name="answers")
VALUES = [1.0, 2.0, 3.0, 4.0]
Arm = Callable[..., Resolved]


@pytest.fixture
def arm(write_manifest: WriteManifest) -> Arm:
    """``arm(name, **sections)``: a pinned and verified manifest."""
    return lambda name, **sections: verify(write_manifest(name, **sections))


def records(*sets: EvalSet, values: list[float] = VALUES) -> dict[str, MeasurementSet]:
    return {s.card.name: builders.measured(s, values) for s in sets}


def measured(*sets: EvalSet, candidate: dict[str, MeasurementSet] | None = None, **changes: Any) -> Measured:
    """Both arms on the sets, alike unless the candidate has records of its own."""
    arms = {
        "baseline": records(*sets),
        "candidate": records(*sets) if candidate is None else candidate,
        "anchor": {},
    }
    return Measured(sets=sets, records=arms, **changes)


def found(
    baseline: Resolved, candidate: Resolved, seen: Measured | None = None, no_effect: str | None = None
) -> NoEffect | None:
    rules = builders.policy(builders.check(), no_effect=no_effect)
    inputs: Any = SimpleNamespace(baseline=baseline, candidate=candidate, policy=rules)
    return find_no_effect(inputs, measured(PROSE, ANSWERS) if seen is None else seen)


def test_what_is_declared_and_alters_nothing_is_named(arm: Arm) -> None:
    one, other = arm("one"), arm("other", sampling={"stop": ["###"], "seed": 3}, intends=["shorter"])
    nothing = found(one, other)
    assert nothing is not None
    assert nothing.changes == ("sampling.seed", "sampling.stop", "intends (shorter)")
    assert nothing.refused == ()
    assert nothing.sentence == (
        "NO EFFECT of sampling.seed, sampling.stop and intends (shorter): every output of both arms is identical "
        "(8 items; log-probabilities too)"
    )
    replies = found(one, other, measured(ANSWERS))
    assert replies is not None
    assert "4 items; replies only: no log-probabilities are measured" in replies.sentence


def test_two_arms_that_are_alike_are_no_change(arm: Arm) -> None:
    assert found(arm("one"), arm("other", comment="another")) is None


def test_a_setting_that_by_design_alters_no_output_is_not_noise(arm: Arm) -> None:
    engine = {"threads": 2, "max_batch": 3, "max_batch_tokens": 64}
    assert found(arm("one"), arm("other", engine=engine, limits={"memory_headroom": 0.1})) is None


def failing(observations: list[Observation]) -> list[Observation]:
    failed = builders.measured(ANSWERS, [float("nan")] * 4).observations
    return [failed[0], *observations[1:]]


def unscored(observations: list[Observation]) -> list[Observation]:
    return [observations[0].model_copy(update={"raw": None}), *observations[1:]]


def fewer(observations: list[Observation]) -> list[Observation]:
    return observations[1:]


@pytest.mark.parametrize("change", [failing, unscored, fewer])
def test_what_lacks_a_result_is_not_identical_even_on_both_arms(arm: Arm, change: Any) -> None:
    arms = arm("one"), arm("other", sampling={"stop": ["###"]})
    assert found(*arms, measured(ANSWERS)) is not None
    lacking = {"answers": builders.with_observations(records(ANSWERS)["answers"], change)}
    seen = Measured(sets=(ANSWERS,), records={"baseline": lacking, "candidate": lacking, "anchor": {}})
    assert found(*arms, seen) is None


def test_nothing_measured_is_not_identical(arm: Arm) -> None:
    arms = arm("one"), arm("other", sampling={"stop": ["###"]})
    assert found(*arms, measured()) is None
    assert found(*arms, measured(PROSE, candidate={})) is None
    assert found(*arms, Measured(sets=(PROSE,))) is None
    assert found(*arms, measured(PROSE, ANSWERS, candidate=records(PROSE))) is None


def test_one_other_log_probability_is_an_effect(arm: Arm) -> None:
    arms = arm("one"), arm("other", sampling={"stop": ["###"]})
    other = records(PROSE, values=[1.0, 2.0, 3.0, 4.0000001]) | records(ANSWERS)
    assert found(*arms, measured(PROSE, ANSWERS, candidate=other)) is None


@pytest.mark.parametrize(("kl", "same"), [((0.0, 0.0), True), ((0.0, 1e-9), False)])
def test_distributions_that_diverge_are_an_effect(arm: Arm, kl: tuple[float, ...], same: bool) -> None:
    token = WorstToken(position=0, kl=kl[1], before="", token="a", baseline="a", baseline_p=1, candidate="b",
                       candidate_p=1)  # fmt: skip
    record = builders.with_observations(
        records(PROSE)["prose"],
        lambda seen: [o.model_copy(update={"kl": kl, "worst": (token,)}) for o in seen],
    )
    seen = measured(PROSE, divergences=Divergences(records={"prose": record}))
    assert (found(arm("one"), arm("other", sampling={"seed": 1}), seen) is not None) is same


def test_another_prompt_with_the_same_replies_is_without_effect(arm: Arm) -> None:
    """A raw output's digest covers the prompt's ids, which differ here by themselves."""
    one, other = arm("one"), arm("other", prompts={"system": "Be brief."})
    asked = builders.with_observations(
        records(ANSWERS)["answers"],
        lambda seen: [o.model_copy(update={"raw": "sha256:" + f"{i:064}"}) for i, o in enumerate(seen)],
    )
    seen = measured(ANSWERS, candidate={"answers": asked})
    nothing = found(one, other, seen)
    assert nothing is not None
    assert nothing.changes == ("prompts.system",)
    assert found(one, arm("third", sampling={"seed": 1}), seen) is None


QUANTIZED = {"method": "bitsandbytes", "bits": 4, "type": "nf4"}


@pytest.mark.parametrize(("no_effect", "refused"), [(None, True), ("refuse", True), ("warn", False)])
def test_a_quantization_without_effect_was_not_applied(
    arm: Arm, no_effect: str | None, refused: bool
) -> None:
    one, other = arm("one"), arm("other", quantization=QUANTIZED)
    rules = builders.policy(builders.check(), no_effect=no_effect)
    inputs: Any = SimpleNamespace(baseline=one, candidate=other, policy=rules)
    seen = measured(PROSE, ANSWERS)
    nothing = find_no_effect(inputs, seen)
    assert nothing is not None
    assert bool(nothing.refused) is refused
    if refused:
        with pytest.raises(BadInput, match=r"not applied.*'no_effect: warn' in the policy"):
            refuse_without_effect(inputs, seen)
    else:
        refuse_without_effect(inputs, seen)


def test_an_adapter_without_effect_was_not_applied(arm: Arm) -> None:
    one = arm("one")
    with_adapter = one.pins.model_copy(update={"adapters": ("sha256:" + "1" * 64,)})
    other = Resolved(**{name: getattr(one, name) for name in Resolved.__slots__} | {"pins": with_adapter})
    nothing = found(one, other)
    assert nothing is not None
    assert nothing.refused == ("adapters",)


def test_refuse_refuses_whatever_has_no_effect(arm: Arm) -> None:
    nothing = found(arm("one"), arm("other", sampling={"stop": ["###"]}), no_effect="refuse")
    assert nothing is not None
    assert nothing.refused == ("sampling.stop",)


def test_auto_is_a_name_of_the_engines_own_dtype(arm: Arm) -> None:
    plain = {"engine": {"dtype": "bfloat16"}}
    assert found(arm("one", **plain), arm("other", quantization={"kv_dtype": "bfloat16"}, **plain)) is None
    nothing = found(arm("one", **plain), arm("third", quantization={"kv_dtype": "fp8"}, **plain))
    assert nothing is not None
    assert nothing.refused == ("quantization.kv_dtype",)


def test_the_same_tensors_in_other_files_or_another_place_are_no_change(
    arm: Arm, tiny_model_dir: Path, tmp_path: Path
) -> None:
    copied = awkward.make("good", tiny_model_dir, tmp_path)
    sharded = awkward.make("sharded", tiny_model_dir, tmp_path)
    one = arm("one")
    for folder in (copied, sharded):
        other = arm(folder.name, model={"source": f"path:{folder}"})
        assert (one.pins.weights == other.pins.weights) is (folder is copied)
        assert found(one, other) is None
        assert found(other, one) is None


def test_other_tensors_that_compute_the_same_pass_and_are_said(
    arm: Arm, tiny_model_dir: Path, tmp_path: Path
) -> None:
    folder = awkward.make("good", tiny_model_dir, tmp_path)
    tensors = awkward.tensors(folder)
    name = next(name for name in tensors if name.endswith("q_proj.weight"))
    awkward.write_tensors(folder, tensors | {name: tensors[name] * 2})
    other = arm("rescaled", model={"source": f"path:{folder}"})
    nothing = found(arm("one"), other)
    assert nothing is not None
    assert (nothing.changes, nothing.refused) == (("weights",), ())


def test_a_configuration_that_is_ignored_is_said(arm: Arm, tiny_model_dir: Path, tmp_path: Path) -> None:
    folder = awkward.make("legacy_rope", tiny_model_dir, tmp_path)
    nothing = found(arm("one"), arm("rope", model={"source": f"path:{folder}"}))
    assert nothing is not None
    assert nothing.changes == ("config.json",)


def leaves() -> Iterator[str]:
    """Every setting of a manifest that has all sections."""
    manifest = Manifest.model_validate_json(
        '{"schema": "checkweigh/manifest@1", "name": "x", "model": {"source": "path:x"}, "intends": ["longer"],'
        ' "engine": {"kind": "fake", "version": "1"}}'
    )
    yield from (path for path, _ in _leaves(manifest.declared(), ""))


def test_every_section_and_every_pin_says_what_it_does() -> None:
    assert {path.partition(".")[0] for path in leaves()} <= set(EFFECTS)
    assert set(PINNED) == set(Pins.model_fields)
    assert effect_of("something.new") == "may"
    assert effect_of("model.adapters[0].scale") == effect_of("quantization.type") == "must"
    assert effect_of("engine.endpoint.model") == "may"
    assert effect_of("engine.endpoint.key_env") == effect_of("engine.args.block_size") == "none"


def test_a_gate_refuses_a_quantization_without_effect_and_spends_no_attempt(bench: GateBench) -> None:
    bench.policy(PERPLEXITY, SCORE, ENDINGS)
    same, quantized = {"noise_seed": 1}, {"quantization": QUANTIZED}
    assert bench.gate(same, **quantized) == 2, bench.stderr
    assert "NO EFFECT of quantization.bits, quantization.method and quantization.type: every" in bench.stderr
    assert not (bench.out / "decision.json").exists()
    assert not [
        path for path in (bench.home / "attempts").rglob("*.json") if b'"looks":[{' in path.read_bytes()
    ]
    bench.policy(PERPLEXITY, SCORE, ENDINGS, no_effect="warn")
    assert bench.gate(same, **quantized) == 0, bench.stderr
    assert bench.decision.no_effect.startswith("NO EFFECT of quantization.bits")


def test_a_stop_string_that_is_never_reached_passes_with_that_in_the_first_line(bench: GateBench) -> None:
    bench.policy(PERPLEXITY, SCORE, ENDINGS, looks=[0.5, 1.0])
    assert bench.gate({"noise_seed": 1}, sampling={"max_tokens": 64, "stop": ["###"]}) == 0, bench.stderr
    decision = bench.decision
    assert decision.no_effect.startswith("NO EFFECT of sampling.stop: every output")
    said = [line.strip() for line in bench.stderr.splitlines()]
    headline = "PASS: the candidate may ship, though what changed altered no output"
    assert headline in said
    assert headline in (bench.out / "summary.md").read_text()
    assert "NO EFFECT of sampling.stop: every output" in (bench.out / "report.html").read_text()
    verdict = next(ET.parse(bench.out / "junit.xml").getroot().iter("testcase"))
    assert (verdict.findtext("system-out") or "").splitlines()[:2] == [headline, decision.no_effect]
