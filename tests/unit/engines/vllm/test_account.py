"""What a server's workers say that they loaded: sealed, whole, of all of them, and of one mind."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.unit.engines.vllm.fake_vllm import ACCOUNT, KIND

from checkweigh.engines.vllm.account import Unaccounted, goes_on, loaded, read_accounts
from checkweigh.engines.vllm.in_server.checkweigh_account import (
    buffered,
    kinds,
    of_rotary,
    rotary_of,
    runs,
    sample,
    sealed,
)

KEY = "key of this start"
ROTARY = KIND["rotaries"][0]  # type: ignore[index]


def written(*accounts: dict[str, Any], key: str = KEY) -> str:
    return "a log\n" + "".join(sealed(account, key).decode() for account in accounts) + "more of it\n"


def effective(*accounts: dict[str, Any]) -> dict[str, str]:
    return loaded(read_accounts(written(*accounts), KEY))


def of(**model: Any) -> dict[str, Any]:
    return ACCOUNT | {"model": KIND | model}


def test_a_worker_s_account_becomes_the_effective_configuration() -> None:
    fields = effective(ACCOUNT)
    assert (fields["window"], fields["tied_head"], fields["eos"]) == ('[["none",3]]', "false", "2,5")
    assert json.loads(fields["rotary"]) == {"all": ROTARY}
    assert (fields["generation_defaults"], fields["architecture"]) == ("none", "LlamaForCausalLM")
    assert json.loads(fields["modules"]) == {"none": 12}
    assert "draft" not in fields
    assert "rotary" in effective(ACCOUNT | {"draft": KIND})["draft"]


def test_layers_with_a_window_have_a_rotary_embedding_of_their_own() -> None:
    local = ROTARY | {"scaling": 2.0}
    layers = [[0, 5, 512, 0], [5, 1, None, 1]]
    fields = effective(of(layers=layers, rotaries=[local, ROTARY]))
    assert fields["window"] == '[[512,5],["none",1]]'
    assert json.loads(fields["rotary"]) == {"sliding_attention": local, "full_attention": ROTARY}
    same = effective(of(layers=[[0, 5, 512, 0], [5, 1, None, 0]]))
    assert json.loads(same["rotary"]) == {"all": ROTARY}
    assert effective(of(layers=[[0, 3, None, None]], rotaries=[]))["rotary"] == "none"


def test_workers_of_a_stage_agree_and_stages_are_put_together() -> None:
    def worker(rank: int, stage: int, first: int, tied: bool | None) -> dict[str, Any]:
        model = KIND | {"layers": [[first, 2, None, 0]], "tied": tied, "modules": {"none": 8}}
        return ACCOUNT | {"rank": rank, "workers": 4, "stage": [stage, 2], "model": model}

    workers = [worker(0, 0, 0, None), worker(1, 0, 0, None), worker(2, 1, 2, True), worker(3, 1, 2, True)]
    fields = effective(*workers)
    assert (fields["window"], fields["tied_head"]) == ('[["none",4]]', "true")
    assert json.loads(fields["modules"]) == {"none": 16}
    with pytest.raises(Unaccounted, match="3 of 4 workers"):
        effective(*workers[:3])
    with pytest.raises(Unaccounted, match="differ in their account"):
        effective(*workers[:3], worker(3, 1, 2, False))
    with pytest.raises(Unaccounted, match="differ in their eos"):
        effective(*workers[:3], workers[3] | {"eos": [1]})


@pytest.mark.parametrize(
    ("log", "why"),
    [
        ("nothing", "0 of"),
        (written(ACCOUNT, key="another"), "not sealed"),
        (written(ACCOUNT).replace('"tied":false', '"tied":true'), "not sealed"),
        (written(ACCOUNT)[:-60], "broken line"),
        (written(ACCOUNT, ACCOUNT), "two accounts"),
        (written(ACCOUNT | {"workers": 2}), "1 of 2"),
        (written({"error": "AttributeError: no rotary"}), "AttributeError: no rotary"),
        ("checkweigh account", "broken line"),
        ("checkweigh account x []", "not sealed"),
    ],
)
def test_no_account_is_no_account(log: str, why: str) -> None:
    with pytest.raises(Unaccounted, match=why):
        read_accounts(log, KEY)


@pytest.mark.parametrize(
    ("account", "why"),
    [
        (ACCOUNT | {"mapped": ["model.safetensors"]}, "mapping: model.safetensors"),
        ({k: v for k, v in ACCOUNT.items() if k != "eos"}, "cannot be read"),
        (ACCOUNT | {"model": None}, "cannot be read"),
        (of(layers=[[0, 3, None, 7]]), "cannot be read"),
        (of(tied=None), "differ in their tied"),
    ],
)
def test_an_account_that_does_not_say_all_is_refused(account: dict[str, Any], why: str) -> None:
    with pytest.raises(Unaccounted, match=why):
        effective(account)


@pytest.mark.parametrize(
    "line",
    [
        "WARNING Skipping unknown checkpoint weight: a.b",
        "WARNING Found k_scale in the checkpoint (e.g. a), but not found the expected name in the model (e.g. b). "
        "k_scale is not loaded.",
        "[transformers] lm_head and embed_tokens differ, so we will NOT tie them. You should",
    ],
)
def test_what_it_left_out_is_found(line: str) -> None:
    assert goes_on(f"INFO all is well\n{line}\n{line}\n") == (line,)


def test_what_a_worker_writes() -> None:
    assert runs({0: [None, 0], 1: [None, 0], 3: [None, 0], 4: [8, 1]}) == [
        [0, 2, None, 0],
        [3, 1, None, 0],
        [4, 1, 8, 1],
    ]
    assert sample([float(i) for i in range(32)], 1.0) == {
        "inv_freq": [0.0, 6.0, 12.0, 19.0, 25.0, 31.0], "dim": 64, "scaling": 1.0,
    }  # fmt: skip


class Table:
    """A rotary embedding as vLLM has it: a table of cosines and sines, held in the model's dtype."""

    def __init__(self, factor: float = 1.0, dtype: torch.dtype = torch.bfloat16) -> None:
        self.factor = factor
        self.frequencies = 1.0 / 10000 ** (torch.arange(0, 64, 2, dtype=torch.float) / 64)
        self.cos_sin_cache = self._compute_cos_sin_cache().to(dtype)

    def _compute_cos_sin_cache(self) -> Any:
        angles = torch.outer(torch.arange(8, dtype=torch.float), self.frequencies)
        return torch.cat((angles.cos(), angles.sin()), dim=-1) * self.factor


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_table_gives_its_frequencies_to_more_digits_than_it_holds(dtype: torch.dtype) -> None:
    table = Table(1.1386, dtype)
    found = of_rotary(table)
    assert found is not None
    assert found["inv_freq"] == pytest.approx(
        [table.frequencies[i].item() for i in (0, 6, 12, 19, 25, 31)], rel=1e-5
    )
    assert (found["dim"], found["scaling"]) == (64, pytest.approx(1.1386, rel=1e-5))
    assert of_rotary(None) is None
    with pytest.raises(AttributeError):
        of_rotary(SimpleNamespace())  # of a kind that is not known


def test_a_rotary_embedding_of_transformers_keeps_its_frequencies() -> None:
    own = torch.nn.Module()
    own.register_buffer("inv_freq", torch.linspace(1, 0.1, 16))
    assert of_rotary(own) is None
    (found,) = buffered({"model.rotary_emb": own})
    assert (found["kind"], found["dim"], found["scaling"]) == ("all", 32, 1.0)


def test_a_table_that_was_changed_is_not_believed() -> None:
    table = Table()
    table.frequencies = table.frequencies * 1.05
    with pytest.raises(ValueError, match="another table"):
        of_rotary(table)


def test_the_rotary_embedding_is_that_of_the_layer() -> None:
    layer, vision = SimpleNamespace(rotary_emb="text"), SimpleNamespace(rotary_emb="vision")
    modules = {"": object(), "visual": vision, "model.layers.0.self_attn": layer, "model.layers.0": object()}
    assert rotary_of("model.layers.0.self_attn.attn", modules) == "text"
    assert rotary_of("model.layers.1.self_attn.attn", modules) is None


def test_modules_are_named_by_what_computes_with_them() -> None:
    def module(method: str, scheme: str = "") -> Any:
        own = {"scheme": type(scheme, (), {})()} if scheme else {}
        return SimpleNamespace(quant_method=type(method, (), {})(), **own)

    found = kinds([
        module("UnquantizedLinearMethod"), module("AutoGPTQLinearMethod"), SimpleNamespace(),
        module("CompressedTensorsLinearMethod", "CompressedTensorsW8A8Int8"), module("UnquantizedEmbeddingMethod"),
        module("CompressedTensorsKVCacheMethod"),
    ])  # fmt: skip
    assert list(found) == ["none", "AutoGPTQLinearMethod", "CompressedTensorsW8A8Int8"]
