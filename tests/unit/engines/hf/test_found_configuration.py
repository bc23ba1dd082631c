"""The effective configuration is read from the loaded modules."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from tests import awkward
from tests.family import write_gemma
from tests.unit.engines.conftest import make_spec

from checkweigh.engines.effective import Rotary, neutral
from checkweigh.engines.hf import found_configuration, load_model

SMALL: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128,
}  # fmt: skip


def effective(folder: Path, **sections: Any) -> dict[str, str]:
    return load_model.load(make_spec(folder, "transformers", **sections)).identity.effective


def of_model(kind: str, **settings: Any) -> dict[str, str]:
    config = transformers.AutoConfig.for_model(kind, **SMALL | settings)
    model = transformers.AutoModelForCausalLM.from_config(config)
    return found_configuration.effective_configuration(model, (2,))


def test_a_plain_model(tiny_dir: Path) -> None:
    found = effective(tiny_dir)
    rotary = json.loads(found.pop("rotary"))
    assert rotary == {
        "all": {"dim": 16, "inv_freq": [1.0, 0.316228, 0.0316228, 0.01, 0.001, 0.000316228], "scaling": 1.0}
    }
    assert found == {
        "window": '[["none",3]]', "tied_head": "false", "eos": "2,5", "attention": '["sdpa"]',
        "generation_defaults": "none", "cache_window": '[["none",3]]', "attention_scale": "[0.25]",
        "attention_softcap": "none", "logits": '{"scale":1.0,"softcap":null}', "norm": "[1e-06]",
        "activation": '["SiLUActivation"]',
    }  # fmt: skip


def test_windows_and_rotary_embeddings_that_differ_by_layer(tmp_path: Path) -> None:
    found = effective(write_gemma(tmp_path))
    assert found["window"] == '[[8,3],["none",1]]'
    assert found["tied_head"] == "true"
    assert json.loads(found["logits"]) == {"scale": 1.0, "softcap": 30.0}
    rotary = json.loads(found["rotary"])
    assert rotary.keys() == {"sliding_attention", "full_attention"}
    assert rotary["sliding_attention"]["inv_freq"] != rotary["full_attention"]["inv_freq"]


def test_a_legacy_way_to_scale_rotary_positions_is_seen(tiny_dir: Path, tmp_path: Path) -> None:
    plain, scaled = effective(tiny_dir), effective(awkward.make("legacy_rope", tiny_dir, tmp_path))
    assert [name for name in plain if plain[name] != scaled[name]] == ["rotary"]
    assert json.loads(scaled["rotary"])["all"]["scaling"] == 1.13863


def test_end_of_sequence_ids_are_those_in_use(tiny_dir: Path, tmp_path: Path) -> None:
    loaded = load_model.load(make_spec(awkward.make("gen_list", tiny_dir, tmp_path), "transformers"))
    assert loaded.identity.effective["eos"] == "1,2"
    assert loaded.model.generation_config.to_diff_dict().keys() <= {"transformers_version"}


def test_both_tensors_of_a_head_that_was_to_be_tied(tiny_dir: Path, tmp_path: Path) -> None:
    folder = awkward.make("good", tiny_dir, tmp_path)
    awkward.edit_json(folder, "config.json", tie_word_embeddings=True)
    assert effective(folder)["tied_head"] == "false", "transformers takes both, and says so"


@pytest.mark.parametrize(
    ("kind", "settings", "window"),
    [
        ("mistral", {"sliding_window": 16}, '[[16,3]]'),
        ("mistral", {"sliding_window": None}, '[["none",3]]'),
        ("qwen2", {"sliding_window": 16}, '[["none",3]]'),
        ("qwen2", {"sliding_window": 16, "use_sliding_window": True, "max_window_layers": 1}, '[["none",1],[16,2]]'),
        ("llama", {"sliding_window": 16}, '[["none",3]]'),
        ("gpt2", {"n_embd": 32, "n_head": 4, "n_layer": 3}, '[["none",3]]'),
    ],
)  # fmt: skip
def test_windows_as_the_attention_uses_them(kind: str, settings: dict[str, Any], window: str) -> None:
    """A key that a family does not read makes no window."""
    assert of_model(kind, **settings)["window"] == window


def test_frequencies_that_follow_the_length_are_named() -> None:
    dynamic = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    assert of_model("llama", rope_parameters=dynamic)["rotary_update"] == '["dynamic"]'
    assert of_model("gpt2", n_embd=32, n_head=4, n_layer=3)["rotary"] == "none"


def test_what_packs_its_numbers_is_no_plain_model() -> None:
    """Whatever the configuration says: by dtype, by further tensors, by where the class comes from."""
    config = transformers.AutoConfig.for_model("llama", **SMALL)
    quantized = {
        "Linear with weight in float8_e4m3fn": lambda: torch.nn.Parameter(
            torch.zeros(32, 32).to(torch.float8_e4m3fn), requires_grad=False
        ),
        "Linear with weight in int8": lambda: torch.nn.Parameter(
            torch.zeros(32, 32, dtype=torch.int8), requires_grad=False
        ),
    }
    for words, weight in quantized.items():
        model = transformers.AutoModelForCausalLM.from_config(config)
        model.model.layers[1].self_attn.q_proj.weight = weight()
        assert found_configuration.found_quantization(model) == f"{words}: 1/22 linear layers"
    model = transformers.AutoModelForCausalLM.from_config(config)
    model.model.layers[0].mlp.up_proj.register_buffer("weight_scale", torch.ones(1))

    class Packed(torch.nn.Linear):
        """Of no library that an unquantized model is made of."""

    model.model.layers[0].mlp.down_proj = Packed(48, 32)
    assert found_configuration.found_quantization(model) == (
        f"Linear with weight_scale and {__name__}.Packed: 2/22 linear layers"
    )


def test_neutral_fields_are_the_same_text_for_the_same_fact() -> None:
    rotary = {"all": Rotary(inv_freq=[1 / 3] * 7, dim=14, scaling=1)}
    assert neutral(rotary=rotary, windows=[512, 512, None, 0], tied_head=True, eos=[5, 2, 5]) == {
        "rotary": '{"all":{"dim":14,"inv_freq":[0.333333,0.333333,0.333333,0.333333,0.333333,0.333333],"scaling":1.0}}',
        "window": '[[512,2],["none",2]]', "tied_head": "true", "eos": "2,5",
    }  # fmt: skip
    assert neutral(rotary={}, windows=[], tied_head=False, eos=[]) == {
        "rotary": "none", "window": "[]", "tied_head": "false", "eos": "none",
    }  # fmt: skip
