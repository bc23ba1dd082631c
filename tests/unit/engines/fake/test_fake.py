"""Every knob of the fake engine."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import Any

import numpy as np
import pytest
from tests.unit.engines.conftest import MakeSpec, user

from checkweigh.engines.fake.backend import FakeBackend
from checkweigh.engines.fake.knobs import KNOBS, FakeKnobs, read_knobs
from checkweigh.engines.protocol import (
    GenerateRequest,
    GenerateResult,
    ItemFailure,
    ScoreRequest,
    ScoreResult,
)
from checkweigh.errors import BadInput

COUNT = 200
TEXTS = [ScoreRequest(id=f"t{i}", messages=None, continuations=(f"the quick fox {i}",)) for i in range(COUNT)]
CHOICES = [
    ScoreRequest(id=f"c{i}", messages=user("the answer is blue"), continuations=("red", "blue", "green"))
    for i in range(COUNT)
]
REPLIES = [GenerateRequest(id=f"g{i}", messages=user("please say blue")) for i in range(COUNT)]


def backend(fake: MakeSpec, **knobs: Any) -> FakeBackend:
    return FakeBackend(fake(**knobs))


def nlls(fake: MakeSpec, **knobs: Any) -> np.ndarray:
    results = backend(fake, **knobs).score(TEXTS)
    return np.array([-r.continuations[0].logprobs.mean() for r in results if isinstance(r, ScoreResult)])


def accuracy(fake: MakeSpec, **knobs: Any) -> float:
    results = backend(fake, **knobs).score(CHOICES)
    best = [
        int(np.argmax([c.logprobs.mean() for c in r.continuations]))
        for r in results
        if isinstance(r, ScoreResult)
    ]
    return best.count(1) / len(best)


def replies(fake: MakeSpec, **knobs: Any) -> list[GenerateResult]:
    results = backend(fake, **knobs).generate(REPLIES, sent=time.monotonic())
    assert all(isinstance(r, GenerateResult) for r in results)
    return [r for r in results if isinstance(r, GenerateResult)]


def test_it_starts_without_torch(fake: MakeSpec) -> None:
    code = "import sys, checkweigh.engines.fake.backend; print({'torch', 'transformers'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"


def test_identical_knobs_give_identical_outputs(fake: MakeSpec) -> None:
    knobs = {"seed": 3, "noise_nats": 0.1, "wrong_share": 0.3}
    assert (nlls(fake, **knobs) == nlls(fake, **knobs)).all()
    first, second = replies(fake, **knobs), replies(fake, **knobs)
    assert [(r.text, r.token_ids, r.finish) for r in first] == [
        (r.text, r.token_ids, r.finish) for r in second
    ]
    assert (nlls(fake, seed=1) != nlls(fake, seed=2)).any()


def test_bias_and_noise(fake: MakeSpec) -> None:
    plain = nlls(fake)
    assert nlls(fake, bias_nats=0.5) == pytest.approx(plain + 0.5, abs=1e-5)
    noise = nlls(fake, noise_nats=0.2, bias_nats=2.0) - plain - 2
    other = nlls(fake, noise_nats=0.2, noise_seed=1, bias_nats=2.0) - plain - 2
    assert 0.15 < noise.std() < 0.25
    assert abs(np.corrcoef(noise, other)[0, 1]) < 0.3
    assert nlls(fake, constant_nats=1.5) == pytest.approx(1.5)


def test_choices_that_the_message_names_are_right_and_wrong_share_spoils_them(fake: MakeSpec) -> None:
    right = accuracy(fake)
    assert right > 0.7
    assert accuracy(fake, wrong_share=0.5) < right - 0.2
    assert accuracy(fake, right_share=0.2) < right - 0.2


def test_replies_say_the_last_word(fake: MakeSpec) -> None:
    def share(**knobs: Any) -> float:
        return sum("blue" in r.text for r in replies(fake, **knobs)) / COUNT

    assert share() == 1
    assert share(wrong_share=0.25) == pytest.approx(0.75, abs=0.1)
    assert share(right_share=0.5) == pytest.approx(0.5, abs=0.1)


def test_shapes_of_replies(fake: MakeSpec) -> None:
    plain = replies(fake)
    assert all(r.finish == "stop" and len(r.times) == len(r.token_ids) for r in plain)
    longer = replies(fake, length_factor=0.5)
    assert sum(len(r.text) for r in longer) < 0.7 * sum(len(r.text) for r in plain)
    assert all(
        r.text == "" and r.token_ids == () and r.finish == "stop" for r in replies(fake, empty_share=1.0)
    )
    looping = replies(fake, loop_share=1.0)
    assert all(len(r.token_ids) == 96 and r.finish == "length" and r.text.count("blue") > 5 for r in looping)
    endless = replies(fake, truncate_share=1.0)
    assert all(len(r.token_ids) == 96 and r.finish == "length" for r in endless)


def test_stop_strings_and_exact_lengths(fake: MakeSpec) -> None:
    engine = FakeBackend(fake({"sampling": {"max_tokens": 96, "stop": ["blue"]}}))
    (cut,) = engine.generate(REPLIES[:1], sent=time.monotonic())
    assert isinstance(cut, GenerateResult)
    assert (cut.text, cut.finish) == ("", "stop")
    exact = [GenerateRequest(id="e", messages=user("please say blue"), exact_tokens=40)]
    (whole,) = engine.generate(exact, sent=time.monotonic())
    assert isinstance(whole, GenerateResult)
    assert len(whole.token_ids) == 40


def test_failures(fake: MakeSpec) -> None:
    results = backend(fake, error_share=0.3).score(TEXTS)
    failed = {r.id for r in results if isinstance(r, ItemFailure) and r.reason == "engine"}
    assert len(failed) / COUNT == pytest.approx(0.3, abs=0.1)
    fewer = {r.id for r in backend(fake, error_share=0.1).score(TEXTS) if isinstance(r, ItemFailure)}
    assert fewer < failed  # a larger share strikes a superset
    spoilt = backend(fake, nan_share=0.2).score(TEXTS)
    values = [r.continuations[0].logprobs for r in spoilt if isinstance(r, ScoreResult)]
    assert sum(bool(np.isnan(v).all()) for v in values) / COUNT == pytest.approx(0.2, abs=0.1)


def test_too_long_and_empty_continuations_fail_alone(fake: MakeSpec) -> None:
    long = ScoreRequest(id="long", messages=None, continuations=("fox " * 300,))
    empty = ScoreRequest(id="empty", messages=user("x"), continuations=("", "red"))
    results = backend(fake).score([long, TEXTS[0], empty])
    assert [getattr(r, "reason", None) for r in results] == ["too_long", None, "engine"]
    request = GenerateRequest(id="long", messages=user("fox " * 300))
    (failure,) = backend(fake).generate([request], sent=time.monotonic())
    assert isinstance(failure, ItemFailure)
    assert failure.reason == "too_long"
    assert "limits.max_sequence = 256" in failure.detail


def test_latencies(fake: MakeSpec) -> None:
    engine = backend(fake, latency_s=0.05, token_latency_s=0.01)
    started = time.monotonic()
    (reply,) = engine.generate(REPLIES[:1], sent=started)
    assert isinstance(reply, GenerateResult)
    took = time.monotonic() - started
    assert took >= 0.05 + 0.01 * len(reply.token_ids)
    assert 0.06 <= reply.times[0] <= took
    assert np.diff(reply.times) == pytest.approx(0.01)


def test_top_k(fake: MakeSpec) -> None:
    (result,) = backend(fake).score([ScoreRequest(id="k", messages=None, continuations=("a fox",), top_k=3)])
    assert isinstance(result, ScoreResult)
    one = result.continuations[0]
    assert one.top_ids is not None
    assert one.top_logprobs is not None
    assert one.top_ids.shape == one.top_logprobs.shape == (len(one.token_ids), 3)
    assert (one.top_ids[:, 0] == one.token_ids).all()


def test_claims(fake: MakeSpec) -> None:
    assert backend(fake).identity.version == "1"
    assert backend(fake, claim_version="9").identity.version == "9"
    (right,), (wrong,) = (backend(fake, **k).render([user("x")]) for k in ({}, {"wrong_template": True}))
    assert right != wrong


def test_what_it_says_of_its_configuration(fake: MakeSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = backend(fake).identity.effective
    assert plain | {"rotary": ""} == {
        "rotary": "", "window": '[["none",1]]', "tied_head": "false", "eos": "2", "attention": "fake",
        "generation_defaults": "none",
    }  # fmt: skip
    assert backend(fake, effective='{"window": "[[8,1]]"}').identity.effective == plain | {
        "window": "[[8,1]]"
    }
    drifting = backend(fake, effective_drifts=True)
    rotary = drifting.identity.effective["rotary"]
    monkeypatch.setattr("os.getpid", lambda: 7)
    assert drifting.identity.effective["rotary"] not in (rotary, plain["rotary"])


def test_ballast(fake: MakeSpec) -> None:
    engine = backend(fake, ballast_mib=64)
    assert len(engine.ballast) == 64 << 20


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"wrong_shar": 0.1}, r"engine.options.wrong_shar: no such knob \(did you mean 'wrong_share'\?\)"),
        ({"wrong_share": 1.5}, "expected a share from 0 to 1, found 1.5"),
        ({"wrong_share": float("nan")}, "expected a share"),
        ({"latency_s": -1}, "expected 0 or more"),
        ({"seed": True}, "expected int, found True"),
        ({"crash_at": 1.5}, "expected int"),
        ({"lie": "white"}, "expected one of count"),
        ({"effective": '{"window": 8}'}, "expected a JSON object of texts"),
        ({"effective": "window"}, "expected a JSON object of texts"),
    ],
)
def test_bad_knobs(options: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        read_knobs(options)


def test_all_problems_at_once_and_all_knobs_are_read() -> None:
    with pytest.raises(BadInput) as caught:
        read_knobs({"seeds": 1, "bias": 1})
    assert len(str(caught.value).splitlines()) == 2
    assert read_knobs({}) == FakeKnobs()
    assert read_knobs({name: field.default for name, field in KNOBS.items()}) == FakeKnobs()
    assert read_knobs({"bias_nats": 1}).bias_nats == 1.0
