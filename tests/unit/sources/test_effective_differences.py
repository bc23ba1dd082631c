"""What two loaded engines may differ in, and which declared difference can explain it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from checkweigh import canonical
from checkweigh.errors import UndeclaredDrift
from checkweigh.records.manifest import Manifest, Pins
from checkweigh.records.measurement import EngineIdentity
from checkweigh.sources.undeclared import EXPLAINED_BY, NEUTRAL, LoadedArm, effective_differences, unverified

ONE, OTHER = "sha256:" + "0" * 64, "sha256:" + "1" * 64
FREQUENCIES = [1.0, 0.158489, 0.0251189, 0.00398107, 0.000630957, 0.0001]
VLLM = {
    "kind": "vllm",
    "version": "0.32.0",
    "environment": {"lock": "vllm.lock"},
    "env": {"VLLM_CPU_OMP_THREADS_BIND": "0-1", "VLLM_CPU_KVCACHE_SPACE": "1"},
}


def rotary(frequencies: list[float] = FREQUENCIES, kind: str = "all", scaling: float = 1.0) -> str:
    return canonical.dumps({kind: {"inv_freq": frequencies, "dim": 64, "scaling": scaling}})


ACCOUNT = {
    "rotary": rotary(), "window": '[["none",30]]', "tied_head": "true", "eos": "2", "attention": "sdpa",
    "generation_defaults": "none",
}  # fmt: skip


def arm(
    effective: Mapping[str, str | None] | None = None,
    *,
    pins: Mapping[str, Any] | None = None,
    identity: Mapping[str, Any] | None = None,
    **sections: Any,
) -> LoadedArm:
    """An arm with a sound account; a field that is None is missing from it."""
    engine = {"kind": "transformers", "version": "5.20.1"} | sections.pop("engine", {})
    document = {
        "schema": "checkweigh/manifest@1",
        "name": "arm",
        "model": {"source": "path:model"},
        "engine": engine,
    }
    manifest = Manifest.model_validate_json(canonical.dumps(document | sections))
    account = {k: v for k, v in (ACCOUNT | dict(effective or {})).items() if v is not None}
    found = {
        "kind": manifest.engine.kind, "version": manifest.engine.version, "dtype": "bfloat16", "device": "cpu",
        "quantization": "none", "threads": 2, "max_sequence": 2048, "vocabulary_size": 49152, "eos": (2,),
        "packages": {"torch": "2.11.0"}, "effective": account,
    }  # fmt: skip
    pinned = {
        "manifest": canonical.digest(manifest.settings()), "source": ONE, "weights": {"model.safetensors": ONE},
        "tensors": False, "chat_template": ONE, "prompts": ONE, "probes": (), "vocabulary": ONE, "quantization": ONE,
        "sampling": ONE, "tokenizer": {"config.json": ONE, "generation_config.json": ONE, "tokenizer.json": ONE},
        "files": {"model/extra.json": ONE},
    }  # fmt: skip
    return LoadedArm(
        manifest=manifest,
        pins=Pins(**pinned | dict(pins or {})),
        identity=EngineIdentity(**found | dict(identity or {})),  # type: ignore[arg-type]
    )


def pinned_file(name: str) -> dict[str, Any]:
    return {
        "tokenizer": {"config.json": ONE, "generation_config.json": ONE, "tokenizer.json": ONE}
        | {name: OTHER}
    }


def found(one: LoadedArm, other: LoadedArm) -> dict[str, tuple[str, ...]]:
    return {d.field: d.explained for d in effective_differences(one, other)}


def refused(one: LoadedArm, other: LoadedArm) -> str:
    """The message of the refusal, which does not depend on which arm is the baseline."""
    with pytest.raises(UndeclaredDrift) as error:
        effective_differences(one, other)
    with pytest.raises(UndeclaredDrift):
        effective_differences(other, one)
    return str(error.value)


def test_equal_accounts_have_no_difference() -> None:
    assert found(arm(), arm()) == {}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("rotary", rotary(scaling=1.1)),
        ("rotary", rotary([1.0, 0.1, 0.01, 0.001, 0.0001, 0.00001])),
        ("rotary", "none"),
        ("window", '[[512,29],["none",1]]'),
        ("tied_head", "false"),
        ("eos", "2,7"),
        ("eos", "none"),
        ("attention", "eager"),
        ("generation_defaults", '{"temperature":0.6}'),
        ("something_new", "x"),
    ],
)
def test_a_field_that_nothing_declared_explains_is_refused_by_name(field: str, value: str) -> None:
    assert f"\n{field}: " in refused(arm(), arm({field: value}))


def test_all_unexplained_fields_are_said_at_once() -> None:
    text = refused(arm(), arm({"window": "[[512,30]]", "eos": "7", "attention": "eager"}))
    assert [line.split(":")[0] for line in text.splitlines()[1:]] == ["window", "eos", "attention"]


@pytest.mark.parametrize("facts", [{"vocabulary_size": 49153}, {"quantization": "bitsandbytes int8: 210/211"},
                                   {"packages": {"torch": "2.12.0"}}, {"settings": {"block_size": "16"}}])  # fmt: skip
def test_what_else_an_engine_reports_is_compared_too(facts: Mapping[str, Any]) -> None:
    assert f"\n{next(iter(facts))}" in refused(arm(), arm(identity=facts))


@pytest.mark.parametrize(
    ("field", "value", "explanation"),
    [
        ("rotary", rotary(scaling=1.1), "config.json"),
        ("window", "[[512,30]]", "config.json"),
        ("tied_head", "false", "config.json"),
        ("eos", "7", "generation_config.json"),
        ("eos", "7", "tokenizer.json"),
        ("generation_defaults", '{"top_p":0.9}', "generation_config.json"),
    ],
)
def test_content_that_differs_explains_what_is_read_from_it(field: str, value: str, explanation: str) -> None:
    assert found(arm(), arm({field: value}, pins=pinned_file(explanation))) == {field: (explanation,)}


@pytest.mark.parametrize(
    ("field", "value", "other"),
    [
        ("rotary", rotary(scaling=1.1), pinned_file("tokenizer.json")),
        ("rotary", rotary(scaling=1.1), pinned_file("generation_config.json")),
        ("rotary", rotary(scaling=1.1), {"weights": {"model.safetensors": OTHER}}),
        ("rotary", rotary(scaling=1.1), {"files": {"model/extra.json": OTHER}}),
        ("eos", "7", {"weights": {"model.safetensors": OTHER}}),
        ("attention", "eager", pinned_file("tokenizer.json")),
    ],
)
def test_content_explains_no_field_that_is_read_from_elsewhere(
    field: str, value: str, other: dict[str, Any]
) -> None:
    assert field in refused(arm(), arm({field: value}, pins=other))


def test_a_mere_other_place_explains_nothing() -> None:
    elsewhere = {"model": {"source": "path:copy"}, "tokenizer": {"source": "path:copy"}}
    for field, value in (("rotary", "none"), ("attention", "eager")):
        assert field in refused(arm(), arm({field: value}, **elsewhere))


def test_declared_settings_of_the_engine_explain_its_own_fields() -> None:
    eager = {"attention": "eager", "generation_defaults": "none"}
    assert found(arm(), arm(eager, engine={"dtype": "float32"})) == {"attention": ("engine.dtype",)}
    nf4 = {"quantization": {"method": "bitsandbytes", "bits": 4, "type": "nf4"}}
    packages = {
        "quantization": "bitsandbytes nf4: 210/211",
        "packages": {"torch": "2.11.0", "bitsandbytes": "0.50"},
    }
    explained = ("quantization.bits", "quantization.method", "quantization.type")
    assert found(arm(), arm(identity=packages, **nf4)) == {
        "packages.bitsandbytes": explained, "quantization.layers": explained,
    }  # fmt: skip
    assert "attention" in refused(arm(), arm(eager, engine={"threads": 1}, sampling={"seed": 3}))


def test_one_folder_read_differently_by_two_engines_is_refused() -> None:
    for field, value in (("rotary", rotary(scaling=1.1)), ("window", "[[512,30]]"), ("eos", "2,7")):
        assert "from files that are alike" in refused(arm(), arm({field: value}, engine=VLLM))
        newer = {"version": "5.21.0"}
        assert "from files that are alike" in refused(arm(), arm({field: value}, engine=newer))
    longer = {"limits": {"max_sequence": 4096}}
    assert "rotary" in refused(arm(), arm({"rotary": rotary(scaling=1.1)}, engine=VLLM, **longer))


def test_one_engine_may_rotate_otherwise_for_longer_sequences() -> None:
    longer = arm({"rotary": rotary(scaling=1.1)}, limits={"max_sequence": 4096})
    assert found(arm(), longer) == {"rotary": ("limits.max_sequence",)}


def test_two_kinds_of_engines_differ_in_what_is_their_own() -> None:
    served = {"settings": {"block_size": "16"}, "packages": {"vllm": "0.32.0"}}
    other = arm({"attention": "CPU_ATTN"}, engine=VLLM, identity=served, pins={"environment": OTHER})
    assert set(found(arm({"cache_window": "none"}), other)) == {"attention"}
    assert "engine.kind" in found(arm(), other)["attention"]


def test_engines_may_round_what_they_compute_and_nothing_else() -> None:
    near, far = ([f * (1 + e) for f in FREQUENCIES] for e in (5e-4, 2e-3))
    assert found(arm(), arm({"rotary": rotary(near)}, engine=VLLM)) == {}
    assert "rotary" in refused(arm(), arm({"rotary": rotary(far)}, engine=VLLM))
    assert "rotary" in refused(arm(), arm({"rotary": rotary(near)}))
    assert "eos" in refused(arm({"eos": "100257"}), arm({"eos": "100265"}, engine=VLLM))
    assert "vocabulary_size" in refused(arm(), arm(engine=VLLM, identity={"vocabulary_size": 49153}))


def test_engines_may_name_the_kinds_of_layers_as_they_like_where_all_rotate_alike() -> None:
    both = {"inv_freq": FREQUENCIES, "dim": 64, "scaling": 1.0}
    named = canonical.dumps({"full_attention": both, "sliding_attention": both})
    assert found(arm(), arm({"rotary": named}, engine=VLLM)) == {}


@pytest.mark.parametrize("field", ["rotary", "window", "tied_head", "eos"])
@pytest.mark.parametrize("value", ["", "NaN", "[NaN]", '{"all":{"inv_freq":[NaN],"dim":64,"scaling":1}}', "{", "maybe",
                                   '{"all":{"inv_freq":[1e999],"dim":64,"scaling":1}}', '{"all":{"inv_freq":[]}}',
                                   "[[0,1]]", None])  # fmt: skip
def test_what_cannot_be_read_equals_nothing_and_nothing_explains_it(field: str, value: str | None) -> None:
    broken = {field: value}
    assert "cannot be read" in refused(arm(broken), arm(broken))
    assert "cannot be read" in refused(arm(broken), arm(broken, pins=pinned_file("config.json")))


def test_an_arm_without_an_account_is_unverified_and_never_equal() -> None:
    endpoint = {"kind": "openai", "version": "1", "endpoint": {"url": "http://localhost/v1", "model": "m"}}
    silent = arm(engine=endpoint, identity={"settings": {"unverified": "dtype, weights"}})
    assert unverified(silent.manifest, silent.identity) == ("weights", "configuration", "dtype")
    assert unverified(silent.manifest, None) == ("weights", "configuration")
    assert effective_differences(arm(), silent) == ()
    sound, empty = arm(), arm(identity={"effective": {}})
    assert unverified(sound.manifest, sound.identity) == unverified(sound.manifest, None) == ()
    assert unverified(empty.manifest, empty.identity) == ("configuration",)


def test_every_neutral_field_says_what_it_is_read_from() -> None:
    own = {"engine", "arguments", "batching", "quantization"}
    for field in NEUTRAL:
        assert not own & set(EXPLAINED_BY[field]), field
