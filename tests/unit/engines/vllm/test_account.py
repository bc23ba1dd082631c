"""What a server's workers say that they loaded: sealed, whole, of all of them, and of one mind."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.unit.engines.vllm.fake_vllm import ACCOUNT, KIND

from checkweigh.engines.vllm.account import Unaccounted, goes_on, loaded, read_accounts
from checkweigh.engines.vllm.in_server.checkweigh_account import runs, sample, sealed

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
