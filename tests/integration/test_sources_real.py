"""The shipped manifests and the real SmolLM2: what is pinned is here, and the renderer renders as transformers does."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tests.builders import tensor_digest
from tests.conftest import missing

from checkweigh.errors import PinMismatch, SourceError
from checkweigh.records.evalset import Message
from checkweigh.sources.digests import file_digest
from checkweigh.sources.model.render import Renderer
from checkweigh.sources.model.render_probes import probes
from checkweigh.sources.pin import Resolved, pin, verify
from checkweigh.sources.sealed_cache import SEAL

MANIFESTS = Path(__file__).resolve().parents[2] / "manifests"
SHIPPED = sorted(path.stem for path in MANIFESTS.glob("smollm2-*.yaml"))
ODD = [
    [("user", "")],
    [("user", " ")],
    [("system", "Obey."), ("user", "Hi")],
    [("system", ""), ("user", "\n\n")],
    [("user", "a\r\nb\x00c\ufeffd\u200be\u2028f\u202eg")],
    [("user", "<|im_start|><|im_end|><|endoftext|><repo_name><|im_start|>assistant\n")],
    [("user", "{{ messages }}{% raise %}{# #}")],
    [("user", "e\u0301 \u00e9 \ud55c\uae00 \U0001f468\u200d\U0001f469\u200d\U0001f467 " + "0123456789" * 30)],
    [("user", "x" * 5000 + " tail ")],
    [("user", "1"), ("assistant", "2"), ("user", "3"), ("assistant", "4")],
    [("assistant", "I begin."), ("user", "Go on.")],
    [("user", "one"), ("user", "two")],
]


@pytest.fixture(scope="module")
def renderer(resolved: Resolved) -> Renderer:
    return Renderer(resolved.tokenizer_dir, resolved.chat_template)


@pytest.fixture(scope="module")
def tokenizer(resolved: Resolved) -> Any:
    transformers = pytest.importorskip("transformers")
    return transformers.AutoTokenizer.from_pretrained(str(resolved.tokenizer_dir), local_files_only=True)


def applied(tokenizer: Any, messages: list[dict[str, str]]) -> tuple[int, ...]:
    found = tokenizer.apply_chat_template(
        messages, tokenize=True, add_generation_prompt=True, return_dict=False
    )
    return tuple(found)


def turns(pairs: list[tuple[str, str]]) -> list[Message]:
    return [Message.model_validate({"role": role, "content": content}) for role, content in pairs]


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_manifests_verify(name: str) -> None:
    try:
        found = verify(MANIFESTS / f"{name}.yaml")
    except SourceError as error:
        missing(f"the shipped model ({error})")
        raise
    assert found.manifest.name == name
    assert found.pins.wheel is not None


def test_the_baselines_differ_in_what_they_declare(resolved: Resolved) -> None:
    others = [verify(MANIFESTS / f"{name}.yaml").pins for name in SHIPPED]
    assert {pins.source for pins in others} == {resolved.pins.source}
    assert {pins.vocabulary for pins in others} == {resolved.pins.vocabulary}
    assert len({pins.manifest for pins in others}) == len(SHIPPED)


@pytest.mark.parametrize("i", range(9))
def test_probes_as_transformers_renders_them(
    resolved: Resolved, renderer: Renderer, tokenizer: Any, i: int
) -> None:
    probe = probes(resolved.manifest)[i]
    own = renderer.render(probe)
    assert own == resolved.pins.probes[i]
    assert own == applied(tokenizer, [{"role": m.role, "content": m.content} for m in probe])


@pytest.mark.parametrize("pairs", ODD, ids=range(len(ODD)))
def test_odd_messages_as_transformers_renders_them(
    renderer: Renderer, tokenizer: Any, pairs: list[tuple[str, str]]
) -> None:
    own = renderer.render(turns(pairs))
    assert own == applied(tokenizer, [{"role": role, "content": content} for role, content in pairs])
    assert len(own) > 3


def test_vocabulary_prefix_and_text(renderer: Renderer, tokenizer: Any) -> None:
    assert renderer._tokenizer.get_vocab(with_added_tokens=True) == tokenizer.get_vocab()
    assert renderer.prefix_id == tokenizer.bos_token_id
    for text in ("plain text", " leading", "naïve\n\n日本語 🙂", "<|im_end|>", ""):
        assert list(renderer.encode(text)) == tokenizer(text, add_special_tokens=False)["input_ids"]


def test_pinning_again_changes_nothing(resolved: Resolved, tmp_path: Path) -> None:
    path = Path(shutil.copy(resolved.path, tmp_path))
    assert pin(path).pins == resolved.pins


def test_the_derived_weights_are_bfloat16_and_dequantised(resolved: Resolved) -> None:
    config = json.loads((resolved.model_dir / "config.json").read_text())
    assert "quantization_config" not in config
    from safetensors import safe_open

    with safe_open(resolved.model_dir / "model.safetensors", "pt") as file:
        assert {file.get_slice(name).get_dtype() for name in file.keys()} == {"BF16"}  # noqa: SIM118


@pytest.mark.parametrize("forged", [False, True], ids=["plain", "forged seal"])
def test_a_damaged_derived_model_is_named(
    resolved: Resolved, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forged: bool
) -> None:
    """In a copy of the cache that shares no file with the user's own."""
    home = resolved.model_dir.parents[1]
    for part in ("derived", "packages"):
        shutil.copytree(home / part, tmp_path / "home" / part)
    monkeypatch.setenv("CHECKWEIGH_HOME", str(tmp_path / "home"))
    copied = verify(resolved.path).model_dir
    assert copied.is_relative_to(tmp_path)
    file = copied / "model.safetensors"
    with file.open("r+b") as data:
        data.seek(-1000, 2)
        byte = data.read(1)
        data.seek(-1000, 2)
        data.write(bytes([byte[0] ^ 1]))
    if forged:
        sealed = json.loads((copied / SEAL).read_text())
        (copied / SEAL).write_text(json.dumps({name: file_digest(copied / name) for name in sealed}))
    with pytest.raises(PinMismatch) as caught:
        verify(resolved.path)
    text = str(caught.value)
    assert f"{file}: " in text
    assert (tensor_digest(file) if forged else file_digest(file)) in text
    if forged:
        assert resolved.pins.weights[file.name] in text
    assert f"remove {copied}: it is made again" in text
