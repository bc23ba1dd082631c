"""Folders as people find them: what of them is pinned, what is refused and with which words, what verify notices."""

from __future__ import annotations

import json
import mmap
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.awkward import AWKWARD, GPTQ, edit_json, make, tensors, write_tensors
from tests.conftest import WriteManifest

from checkweigh.cli import main
from checkweigh.errors import BadInput, PinMismatch, RefusedFiles
from checkweigh.records.manifest import Model, Quantization
from checkweigh.sources.digests import fresh_digests
from checkweigh.sources.model.inventory import list_files
from checkweigh.sources.model.refusals import model_problems, tokenizer_problems
from checkweigh.sources.pin import lock_path, pin, resolve_manifest, verify, verify_files

Pinned = Callable[..., Path]
NF4 = {"method": "bitsandbytes", "bits": 4, "type": "nf4"}
INT8 = {"method": "bitsandbytes", "bits": 8, "type": "int8"}


@pytest.fixture
def manifest_of(write_manifest: WriteManifest) -> Pinned:
    """``manifest_of(folder, **sections)`` -> a manifest of the folder, not pinned yet."""

    def build(folder: Path, **sections: Any) -> Path:
        return write_manifest(folder.name, model={"source": f"path:{folder}"}, pinned=False, **sections)

    return build


def refused(folder: Path, quantization: Quantization | None = None, **model: bool) -> list[str]:
    """What the folder is refused for."""
    files, plain = list_files(folder), Model(source="path:x", **model)
    problems = model_problems(folder, files, plain, quantization or Quantization(), "transformers")
    return [str(problem) for problem in (*problems, *tokenizer_problems(folder, files, plain, own=False))]


# Folder -> what pin says of it; nothing: it pins. no_head, no_norm and renamed show only when they are loaded.
RIGHT: dict[str, tuple[str, ...]] = {
    "good": (), "sharded": (), "no_head": (), "no_norm": (), "renamed": (), "jinja_and_inline": (), "template_list": (),
    "added_tokens": (), "legacy_rope": (), "gen_list": (),
    "single_and_shards": (
        ": expected one set of weights (remove the other), found model.safetensors beside model.safetensors.index.json",
    ),
    "stale_map": (
        "index.json: weight_map: expected tensors that model-00002-of-00002.safetensors holds, found "
        "model.layers.9.mlp.up_proj.weight, which it lacks",
        "index.json: weight_map: expected every tensor that model-00002-of-00002.safetensors holds, found another "
        "place, or none, for model.norm.weight",
    ),
    "consolidated_beside": (
        "found consolidated.safetensors, which vLLM takes before all others",
        "found consolidated.safetensors beside model.safetensors, which both hold",
    ),
    "template_list_no_default": ("tokenizer_config.json: expected a chat template, found none",),
    "hf_quant": (
        "hf_quant_config.json: expected quantization: {method: none}, as the manifest says, found fp8; for it write "
        "quantization: {method: fp8}",
        "hf_quant_config.json: expected tensors of fp8, as it states, found tensors without quantization",
    ),
    "tekken": (": expected one configuration and one tokenizer (remove these; a hub's are not fetched), found "
               "params.json, tekken.json",),
    "gptq_config": (
        "config.json: quantization_config: expected tensors of gptq, as it states, found tensors without quantization",
        "write quantization: {method: gptq}",
    ),
    "gptq_real": ("config.json: quantization_config: expected quantization: {method: none}, as the manifest says, "
                  "found gptq; for it write quantization: {method: gptq}",),
    "gptq_legacy": ("quantize_config.json: expected quantization: {method: none}, as the manifest says, found gptq",),
    "bnb_pre": ("config.json: quantization_config: expected quantization: {method: none}, as the manifest says, found "
                "bitsandbytes; for it write quantization: {method: bitsandbytes, bits: 4, type: nf4}",),
    "fp8_ct": (": expected tensors as they are without quantization, or a quantization_config, found "
               "model.layers.0.mlp.down_proj.weight (float8), which neither config.json nor a side file states",),
    "bom_tokcfg": ("tokenizer_config.json: expected JSON, found a byte order mark before it; save it as UTF-8 without "
                   "one",),
    "spm_only": (": expected tokenizer.json (python -c \"from transformers import AutoTokenizer",),
    "lora_dir": (": expected a whole model (an adapter belongs under model.adapters, in a folder of its own), found "
                 "adapter_config.json",),
}  # fmt: skip


@pytest.mark.parametrize("name", AWKWARD)
def test_what_is_right_for_each_folder(
    name: str, tiny_model_dir: Path, tmp_path: Path, manifest_of: Pinned
) -> None:
    folder = make(name, tiny_model_dir, tmp_path)
    path = manifest_of(folder)
    if not RIGHT[name]:
        pin(path)
        verify(path)
        return
    with pytest.raises(BadInput) as caught:
        pin(path)
    said = str(caught.value).splitlines()
    for words in RIGHT[name]:
        assert any(words in line for line in said), said
    assert all(line.startswith(str(folder)) for line in said)
    assert not lock_path(path).exists()
    assert main(["pin", str(path)]) == 2


@pytest.mark.parametrize(
    ("name", "quantization"),
    [("bnb_pre", NF4), ("gptq_real", {"method": "gptq"}), ("gptq_legacy", {"method": "gptq"})],
)
def test_a_quantized_folder_pins_when_the_manifest_says_so(
    name: str, quantization: dict[str, Any], tiny_model_dir: Path, tmp_path: Path, manifest_of: Pinned
) -> None:
    path = manifest_of(make(name, tiny_model_dir, tmp_path), quantization=quantization)
    pin(path)
    verify(path)
    for other in ({"method": "awq"}, {"method": "fp8"}, INT8, NF4 | {"double": True}):
        document = yaml.safe_load(path.read_text()) | {"quantization": other}
        path.write_text(yaml.safe_dump(document))
        with pytest.raises(RefusedFiles, match="as the manifest says, found"):
            pin(path)


@pytest.mark.parametrize(
    "name",
    [
        "hf_quant_config.json", "quantize_config.json", "quant_config.json", "tekken.json", "params.json",
        "chat_template.json", "tokenizer.model.v3", "sentencepiece.bpe.model", "preprocessor_config.json",
        "special_tokens_map.json", "added_tokens.json", "spiece.model", "joint_head_config.json", "custom.tiktoken",
        "additional_chat_templates/default.jinja", "1_Pooling/config.json", "hidden/w.safetensors", ".hidden",
        "consolidated.safetensors", "modeling_x.py", "pytorch_model.bin", "no-ending",
    ],
)  # fmt: skip
def test_a_file_that_is_added_after_pinning_is_noticed_by_name(
    name: str, tiny_model_dir: Path, tmp_path: Path, manifest_of: Pinned
) -> None:
    folder = make("good", tiny_model_dir, tmp_path)
    path = manifest_of(folder)
    pin(path)
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("{}")
    for check in (verify, verify_files):
        with pytest.raises(PinMismatch) as caught:
            check(path)
        problem = next(p for p in caught.value.problems if p.file == str(folder / name))
        assert problem.path.endswith(name)
        assert (problem.expected, problem.found[:7]) == ("no such file", "sha256:")
    assert main(["verify", str(path)]) == 2


def test_a_file_that_is_changed_or_lost_is_noticed_by_name(
    tiny_model_dir: Path, tmp_path: Path, manifest_of: Pinned
) -> None:
    folder = make("good", tiny_model_dir, tmp_path)
    for name in ("preprocessor_config.json", "sub/extra.json"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("{}")
    path = manifest_of(folder)
    pin(path)
    assert set(verify(path).pins.files) == {
        "model/chat_template.jinja", "model/preprocessor_config.json", "model/sub/extra.json",
    }  # fmt: skip
    (folder / "sub/extra.json").write_text('{"a": 1}')
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(PinMismatch) as caught:
        verify(path)
    first, second = map(str, caught.value.problems)
    where = f"{folder}/preprocessor_config.json: pins.files.model/preprocessor_config.json"
    assert first.startswith(f"{where}: expected sha256:")
    assert first.endswith(", found no such file")
    assert second.startswith(f"{folder}/sub/extra.json: pins.files.model/sub/extra.json: expected sha256:")


def test_what_no_engine_reads_is_ignored(tiny_model_dir: Path, tmp_path: Path, manifest_of: Pinned) -> None:
    folder = make("good", tiny_model_dir, tmp_path)
    path = manifest_of(folder)
    pin(path)
    for name in ("README.md", "LICENSE.txt", "NOTICE", ".gitattributes", ".git/config", ".cache/x.json",
                 "sub/.DS_Store", "onnx/model.onnx", "other.yaml", "other.lock.json"):  # fmt: skip
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("x")
    verify(path)


def test_weights_below_the_folder_are_never_loaded_from_a_configuration(
    tiny_model_dir: Path, tmp_path: Path, manifest_of: Pinned
) -> None:
    """transformers would read hidden/w.safetensors and leave model.safetensors as a decoy."""
    folder = make("good", tiny_model_dir, tmp_path)
    (folder / "hidden").mkdir()
    shutil.copy(folder / "model.safetensors", folder / "hidden" / "w.safetensors")
    path = manifest_of(folder)
    pin(path)
    edit_json(folder, "config.json", transformers_weights="hidden/w.safetensors")
    (folder / "hidden" / "w.safetensors").write_bytes(b"bad")
    with pytest.raises(PinMismatch) as caught:
        verify(path)
    assert {p.path for p in caught.value.problems} == {
        "pins.tokenizer.config.json", "pins.files.model/hidden/w.safetensors",
    }  # fmt: skip
    with pytest.raises(RefusedFiles) as refusal:
        pin(path)
    (problem,) = refusal.value.problems
    assert (problem.file, problem.path) == (f"{folder}/config.json", "transformers_weights")
    assert problem.found == "hidden/w.safetensors, from where weights would be read"


@pytest.mark.parametrize(
    ("file", "changes", "place"),
    [
        (
            "config.json",
            {"text_config": {"transformers_weights": "x.safetensors"}},
            "text_config.transformers_weights",
        ),
        ("config.json", {"configuration_files": ["config.4.0.0.json"]}, "configuration_files"),
        ("config.json", {"vision_config": {"auto_map": {"AutoModel": "a.B"}}}, "vision_config.auto_map"),
        ("config.json", {"speculators_config": {"verifier": {"name_or_path": "x"}}}, "speculators_config"),
        ("config.json", {"text_model_id": "meta-llama/Llama-3.1-8B-Instruct"}, "text_model_id"),
        ("config.json", {"backbone": "resnet50"}, "backbone"),
        ("config.json", {"use_pretrained_backbone": True}, "use_pretrained_backbone"),
        ("config.json", {"_attn_implementation": "owner/kernel"}, "_attn_implementation"),
        ("generation_config.json", {"list": [{"auto_map": {}}]}, "list[0].auto_map"),
        ("preprocessor_config.json", {"auto_map": {"AutoProcessor": "a.B"}}, "auto_map"),
        ("tokenizer_config.json", {"fast_tokenizer_files": ["tokenizer.4.0.0.json"]}, "fast_tokenizer_files"),
        ("tokenizer_config.json", {"vocab_file": "/etc/other.model"}, "vocab_file"),
        ("special_tokens_map.json", {"tokenizer_file": "../tokenizer.json"}, "tokenizer_file"),
        ("tokenizer_config.json", {"fix_mistral_regex": True}, "fix_mistral_regex"),
    ],
)
def test_a_setting_that_names_another_source_is_refused(
    file: str, changes: dict[str, Any], place: str, tiny_model_dir: Path, tmp_path: Path
) -> None:
    folder = make("good", tiny_model_dir, tmp_path)
    edit_json(folder, file, **changes)
    (said,) = refused(folder)
    assert said.startswith(f"{folder}/{file}: {place}: expected ")


def test_settings_that_name_nothing_are_no_redirection(tiny_model_dir: Path, tmp_path: Path) -> None:
    folder = make("good", tiny_model_dir, tmp_path)
    edit_json(
        folder, "config.json", _name_or_path="owner/model", use_pretrained_backbone=False, text_model_id="",
        attn_implementation="sdpa", quantization_config=None,
    )  # fmt: skip
    edit_json(
        folder,
        "tokenizer_config.json",
        special_tokens_map_file="/elsewhere/x.json",
        vocab_file="",
        tokenizer_file="",
    )
    assert refused(folder) == []


def test_json_that_no_engine_needs_may_be_anything(
    tiny_model_dir: Path, tmp_path: Path, manifest_of: Pinned
) -> None:
    folder = make("good", tiny_model_dir, tmp_path)
    for name, text in (("modules.json", "[]"), ("log.json", "{"), ("results.json", "\ufeff{}")):
        (folder / name).write_text(text)
    path = manifest_of(folder)
    pin(path)
    (folder / "modules.json").write_text("[ ]")
    with pytest.raises(PinMismatch, match=r"pins\.files\.model/modules\.json"):
        verify(path)


def test_a_drafting_model_is_never_quantized(tiny_model_dir: Path, tmp_path: Path) -> None:
    folder = make("gptq_real", tiny_model_dir, tmp_path)
    files, plain = list_files(folder), Model(source="path:x")
    (problem,) = model_problems(folder, files, plain, Quantization(), "vllm", drafts=True)
    assert (problem.expected, problem.found) == ("none: a drafting model is never quantized", "gptq")


def test_code_of_another_repository_is_refused_even_where_code_is_allowed(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    folder = make("good", tiny_model_dir, tmp_path)
    edit_json(folder, "config.json", auto_map={"AutoModel": "modeling_x.X"})
    assert refused(folder, unsafe_remote_code=True) == []
    edit_json(folder, "config.json", auto_map={"AutoModel": "owner/repo--modeling_x.X"})
    assert len(refused(folder, unsafe_remote_code=True)) == 1


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("model.fp16.safetensors", "model.fp16.safetensors beside model.safetensors, which both hold"),
        ("model.fp16.safetensors.index.json", "expected no index but model.safetensors.index.json"),
        ("adapter_model.safetensors", "an adapter that would be loaded unasked"),
        ("pytorch_model.bin", "pickles are refused"),
    ],
)
def test_a_second_set_of_weights_is_refused(
    name: str, words: str, tiny_model_dir: Path, tmp_path: Path
) -> None:
    folder = make("good", tiny_model_dir, tmp_path)
    shutil.copy(folder / "model.safetensors", folder / name)
    assert words in " ".join(refused(folder))


def test_pickles_beside_safetensors_are_two_sets_even_where_they_are_allowed(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    folder = make("good", tiny_model_dir, tmp_path)
    (folder / "training_args.bin").write_bytes(b"x")  # no weights
    assert refused(folder) == refused(folder, unsafe_pickle=True) == [], (
        "every trainer leaves it; nothing loads it"
    )
    (folder / "pytorch_model.bin").write_bytes(b"x")
    (said,) = refused(folder, unsafe_pickle=True)
    assert "found pickles (pytorch_model.bin) beside model.safetensors" in said


def test_an_index_is_held_against_its_shards_in_every_way(tiny_model_dir: Path, tmp_path: Path) -> None:
    folder = make("sharded", tiny_model_dir, tmp_path)
    index = folder / "model.safetensors.index.json"
    weight_map: dict[str, str] = json.loads(index.read_text())["weight_map"]
    assert refused(folder) == []
    one, two = sorted(set(weight_map.values()))
    first = min(weight_map)
    edit_json(folder, index.name, weight_map=weight_map | {first: two})  # in the other shard
    said = refused(folder)
    assert f"expected tensors that {two} holds, found {first}, which it lacks" in said[1]
    assert f"expected every tensor that {one} holds, found another place, or none, for {first}" in said[0]
    for name in ("../other.safetensors", "sub/other.safetensors", "/x.safetensors"):
        edit_json(folder, index.name, weight_map=weight_map | {"x": name})
        assert f"expected {name} beside it, found no such file" in " ".join(refused(folder))
    edit_json(folder, index.name, weight_map=weight_map)
    shutil.copy(folder / one, folder / "more.safetensors")
    (said_of_one,) = refused(folder)
    assert said_of_one.startswith(f"{folder}/more.safetensors: expected a shard that {index.name} names")


def test_one_file_and_an_index_of_it_alone_are_one_set(tiny_model_dir: Path, tmp_path: Path) -> None:
    folder = make("good", tiny_model_dir, tmp_path)
    names = dict.fromkeys(tensors(folder), "model.safetensors")
    edit_json(folder, "model.safetensors.index.json", weight_map=names)
    assert refused(folder) == []
    edit_json(
        folder, "model.safetensors.index.json", weight_map=names | {"lm_head.bias": "model.safetensors"}
    )
    assert "found lm_head.bias, which it lacks" in refused(folder)[0]


def test_weights_under_a_name_that_transformers_does_not_read_are_refused(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    folder = make("good", tiny_model_dir, tmp_path)
    (folder / "model.safetensors").rename(folder / "weights.safetensors")
    (said,) = refused(folder)
    assert said.endswith("which transformers reads, found weights.safetensors")


@pytest.mark.parametrize(
    ("settings", "tensor", "declared", "words"),
    [
        ({"quant_method": "hqq"}, None, "none", "expected none, bitsandbytes, awq"),
        ({}, None, "none", "found no method"),
        (GPTQ, "a.qweight", "gptq", ""),
        (GPTQ, "a.weight_packed", "gptq", "expected tensors of gptq, as it states, found a.weight_packed"),
        ({"quant_method": "awq"}, "a.qweight", "awq", ""),
        ({"quant_method": "compressed-tensors"}, "a.weight_packed", "compressed-tensors", ""),
        ({"quant_method": "fp8"}, "a.weight_scale_inv", "fp8", "expected tensors of fp8"),
        (None, "a.weight.quant_state.bitsandbytes__nf4", "none", "(bitsandbytes), which neither"),
        (None, "a.SCB", "none", "(bitsandbytes), which neither"),
        (None, "a.weight_scale", "fp8", "(scaled), which neither"),
        (None, None, "fp8", ""),
        (None, None, "gptq", "expected quantization_config of gptq"),
    ],
)  # fmt: skip
def test_manifest_configuration_and_tensors_must_agree(
    settings: dict[str, Any] | None, tensor: str | None, declared: str, words: str, tiny_model_dir: Path,
    tmp_path: Path,
) -> None:  # fmt: skip
    folder = make("good", tiny_model_dir, tmp_path)
    if settings is not None:
        edit_json(folder, "config.json", text_config={"quantization_config": settings})
    if tensor is not None:
        values = tensors(folder)
        write_tensors(folder, values | {tensor: values["model.norm.weight"]})
    said = refused(folder, Quantization(method=declared))  # type: ignore[arg-type]
    assert words in " ".join(said)
    assert bool(said) == bool(words)


def test_two_files_must_state_the_same_quantization(tiny_model_dir: Path, tmp_path: Path) -> None:
    folder = make("gptq_real", tiny_model_dir, tmp_path)
    gptq = Quantization(method="gptq")
    edit_json(folder, "quantize_config.json", bits=4, group_size=64, desc_act=False)
    assert refused(folder, gptq) == []
    edit_json(folder, "quantize_config.json", group_size=128)
    (said,) = refused(folder, gptq)
    assert said.endswith(
        "quantize_config.json: expected the group_size that config.json states, found another"
    )


def test_all_that_is_wrong_is_said_at_once(tiny_model_dir: Path, tmp_path: Path, manifest_of: Pinned) -> None:
    folder = make("single_and_shards", tiny_model_dir, tmp_path)
    for name in ("tekken", "gptq_config", "bom_tokcfg", "spm_only", "lora_dir"):
        AWKWARD[name](folder)
    with pytest.raises(RefusedFiles) as caught:
        pin(manifest_of(folder))
    said = str(caught.value)
    assert len(caught.value.problems) == 8, said


def test_the_template_that_transformers_takes_and_a_note(
    tiny_model_dir: Path, tmp_path: Path, manifest_of: Pinned, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoTokenizer

    folder = make("jinja_and_inline", tiny_model_dir, tmp_path)
    path = manifest_of(folder)
    for step in ("", "additional_chat_templates/default.jinja"):
        if step:
            (folder / step).parent.mkdir()
            (folder / step).write_text("{{ messages[0].content }}")
        taken = resolve_manifest(path).chat_template
        theirs = AutoTokenizer.from_pretrained(folder).get_chat_template()
        assert taken == theirs
        assert main(["pin", str(path)]) == 0
        said = capsys.readouterr().err.replace("\n", "")
        assert "tokenizer_config.json holds another chat template, which is not used" in said
        assert f"{folder}/{step or 'chat_template.jinja'} is, as in transformers" in said


def test_a_lock_of_an_older_version_names_the_one_command_that_renews_it(
    tiny_model_dir: Path, tmp_path: Path, manifest_of: Pinned
) -> None:
    path = manifest_of(make("good", tiny_model_dir, tmp_path))
    pin(path)
    lock = json.loads(lock_path(path).read_text())
    del lock["pins"]["files"]
    lock_path(path).write_text(json.dumps(lock | {"schema": "checkweigh/lock@1"}, indent=1))
    with pytest.raises(BadInput) as caught:
        verify(path)
    where = f"{lock_path(path)}: schema: expected checkweigh/lock@2, which checkweigh pin {path} writes"
    assert str(caught.value) == f"{where}, found checkweigh/lock@1, of an older version that pinned less"
    assert main(["pin", str(path)]) == 0
    verify(path)


def test_a_write_through_a_memory_map_is_seen_where_files_are_read_again(
    tiny_model_dir: Path, tmp_path: Path, manifest_of: Pinned
) -> None:
    folder = make("good", tiny_model_dir, tmp_path)
    path = manifest_of(folder)
    pin(path)
    file = folder / "model.safetensors"
    with file.open("r+b") as opened, mmap.mmap(opened.fileno(), 0) as mapped:
        mapped[-1] = mapped[-1]  # the page is dirty from here on: the next write changes no time
        verify(path)
        mapped[-1] ^= 1
    for check in (verify_files, partial(verify, read=fresh_digests)):
        with pytest.raises(PinMismatch, match=r"pins\.weights\.model\.safetensors"):
            check(path)
    assert main(["verify", str(path)]) == 2
