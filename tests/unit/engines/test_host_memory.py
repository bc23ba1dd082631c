"""The memory check, on numbers worked out by hand."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from tests.unit.engines.conftest import make_spec

from checkweigh.engines import host_memory
from checkweigh.engines.host_memory import DecoderShape, MemoryEstimate
from checkweigh.errors import BadInput, EngineOutOfMemory

SHAPE = DecoderShape(layers=2, hidden=8, intermediate=16, kv_heads=1, head_dim=4, vocabulary=100)
GIB = 1 << 30


def manifest(**sections: Any) -> Any:
    return make_spec(Path("nowhere"), "transformers", **sections).manifest


def test_weights_are_scaled_to_the_dtype_they_are_held_in() -> None:
    elements = {"F32": 1000, "BF16": 500, "I64": 10}
    whole = host_memory.estimate_memory(manifest(), SHAPE, elements)
    half = host_memory.estimate_memory(manifest(engine={"dtype": "bfloat16"}), SHAPE, elements)
    assert whole.weights == 1500 * 4 + 80
    assert half.weights == 1500 * 2 + 80


@pytest.mark.parametrize(("bits", "kind", "extra"), [(8, "int8", 1000), (4, "nf4", 500)])
def test_quantized_weights_stand_beside_the_whole_ones(bits: int, kind: str, extra: int) -> None:
    quantization = {"method": "bitsandbytes", "bits": bits, "type": kind}
    found = host_memory.estimate_memory(manifest(quantization=quantization), SHAPE, {"BF16": 1000})
    assert found.weights == 4000 + extra


def test_cache_activations_and_logits() -> None:
    one = manifest(engine={"max_batch": 4, "max_batch_tokens": 100}, sampling={"max_tokens": 44})
    assert host_memory.kv_budget(one) == 4 * (256 + 44)
    found = host_memory.estimate_memory(one, SHAPE, {})
    assert (
        found.kv_cache == 1200 * (2 * 1 * 4 * 4) * 3
    )  # tokens x bytes a layer x (layers + the one being copied)
    assert found.activations == 256 * 4 * (6 * 8 + 3 * 16 + 256)
    assert found.logits == 64 * 100 * 12
    assert (
        found.total == found.weights + found.kv_cache + found.activations + found.logits + host_memory.RUNTIME
    )


def test_int8_keeps_the_inputs_of_its_layers() -> None:
    batch = {"max_batch_tokens": 1000}
    quantization = {"method": "bitsandbytes", "bits": 8, "type": "int8"}
    plain = host_memory.estimate_memory(manifest(engine=batch), SHAPE, {})
    found = host_memory.estimate_memory(manifest(engine=batch, quantization=quantization), SHAPE, {})
    assert found.activations - plain.activations == 3 * 1000 * 2 * (6 * 8 + 16)


def test_the_cache_budget_covers_one_longest_sequence() -> None:
    small = {"max_batch": 1, "max_batch_tokens": 16}
    assert host_memory.kv_budget(manifest(engine=small, limits={"max_sequence": 5000})) == 5000


def test_the_headroom_is_kept_and_every_number_named() -> None:
    need = MemoryEstimate(
        weights=2 * GIB, kv_cache=GIB, activations=GIB // 2, logits=GIB // 4, runtime=GIB // 4
    )
    host_memory.require_fit(need, 8 * GIB, 0.5)
    with pytest.raises(EngineOutOfMemory) as caught:
        host_memory.require_fit(need, 8 * GIB - 2, 0.5)
    assert str(caught.value) == (
        "the model needs about 4.00 GiB "
        "(weights 2.00, kv_cache 1.00, activations 0.50, logits 0.25, runtime 0.25), "
        "and 4.00 GiB may be used: 8.00 GiB are available and limits.memory_headroom keeps 50% of them free"
    )


def test_shapes_from_configs() -> None:
    config = {"num_attention_heads": 4, "hidden_size": 64, "num_hidden_layers": 3, "vocab_size": 9}
    wanted = DecoderShape(layers=3, hidden=64, intermediate=256, kv_heads=4, head_dim=16, vocabulary=9)
    assert host_memory.shape_of(config) == host_memory.shape_of({"text_config": config}) == wanted
    with pytest.raises(BadInput, match="hidden_size is missing"):
        host_memory.shape_of({"num_attention_heads": 4})


def test_a_real_directory(tiny_dir: Path) -> None:
    spec = make_spec(tiny_dir, "transformers")
    need = host_memory.require_room(spec.manifest, tiny_dir, 64 * GIB)
    stored = sum(f.stat().st_size for f in tiny_dir.glob("*.safetensors"))
    assert stored * 0.9 < need.weights < stored  # the file has a header
    with pytest.raises(EngineOutOfMemory):
        host_memory.require_room(spec.manifest, tiny_dir, 0)


@pytest.mark.parametrize(
    "content",
    [b"", b"short", struct.pack("<Q", 1 << 40), struct.pack("<Q", 4) + b"oops", struct.pack("<Q", 2) + b"[]"],
)
def test_what_is_no_safetensors_file_is_bad_input(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(content)
    with pytest.raises(BadInput, match=r"model\.safetensors is no safetensors file"):
        host_memory.read_header(file)


def test_directories_without_a_model_are_bad_input(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"config\.json cannot be read"):
        host_memory.require_room(manifest(), tmp_path, GIB)
    (tmp_path / "config.json").write_text(json.dumps({}))
    with pytest.raises(BadInput, match="no safetensors file; other formats are not loaded"):
        host_memory.require_room(manifest(), tmp_path, GIB)


def test_a_control_groups_limit_is_a_room_and_its_idle_files_are_free(tmp_path: Path) -> None:
    host = host_memory.memory_limits(tmp_path)
    assert len(host) == 1
    (tmp_path / "memory.max").write_text(f"{8 << 20}\n")
    (tmp_path / "memory.current").write_text(f"{7 << 20}\n")
    (tmp_path / "memory.stat").write_text(f"anon 1\nactive_file 7\ninactive_file {2 << 20}\nfile 9\n")
    assert host_memory.memory_limits(tmp_path)[1:] == [(3 << 20, 8 << 20)]
    (tmp_path / "memory.current").write_text(f"{11 << 20}\n")
    assert host_memory.memory_limits(tmp_path)[1:] == [(0, 8 << 20)]
    (tmp_path / "memory.max").write_text("max\n")
    assert len(host_memory.memory_limits(tmp_path)) == 1
