"""A running engine does not depend on its files: they are overwritten in place and removed, and nothing changes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from tests import awkward
from tests.conftest import missing
from tests.unit.engines.conftest import make_spec, user

from checkweigh.engines.hf import file_mappings
from checkweigh.engines.hf.backend import TransformersBackend
from checkweigh.engines.protocol import (
    Divergence,
    Engine,
    GenerateRequest,
    GenerateResult,
    ScoreRequest,
    ScoreResult,
)
from checkweigh.engines.worker.engine import WorkerEngine
from checkweigh.errors import EngineError

TEXT = "the quick brown fox jumps over the lazy dog"
NF4 = {"method": "bitsandbytes", "bits": 4, "type": "nf4"}
INT8 = {"method": "bitsandbytes", "bits": 8, "type": "int8"}
DRAFT = {"method": "draft", "model": {"source": "path:draft"}, "num_tokens": 3}


def overwrite(folder: Path) -> None:
    """Other numbers in the same files, as ``cp`` writes them."""
    for file in folder.glob("*.safetensors"):
        data = bytearray(file.read_bytes())
        half = len(data) // 2
        data[half:] = bytes(byte ^ 1 for byte in data[half:])
        before = file.stat().st_ino
        with file.open("r+b") as opened:
            opened.write(data)
        assert file.stat().st_ino == before


def logprobs(engine: Any) -> bytes:
    (result,) = engine.score([ScoreRequest(id="a", messages=None, continuations=(TEXT,), top_k=3)])
    assert isinstance(result, ScoreResult)
    return result.continuations[0].logprobs.tobytes()


@pytest.mark.parametrize(
    ("name", "sections"),
    [
        ("good", {}),
        ("sharded", {}),
        ("bnb_pre", {"engine": {"dtype": "bfloat16"}, "quantization": NF4}),
        ("good", {"quantization": INT8}),
    ],
    ids=["one file", "shards", "saved in nf4", "int8"],
)
def test_weights_that_are_overwritten_after_loading_change_nothing(
    name: str, sections: dict[str, Any], tiny_dir: Path, tmp_path: Path
) -> None:
    if sections:
        pytest.importorskip("bitsandbytes")
    folder = awkward.make(name, tiny_dir, tmp_path)
    backend = TransformersBackend(make_spec(folder, "transformers", **sections))
    before = logprobs(backend)
    overwrite(folder)
    assert logprobs(backend) == before


def replies(engine: Engine) -> list[tuple[int, ...]]:
    found = engine.generate([GenerateRequest(id=str(i), messages=user(TEXT[i:])) for i in range(3)])
    assert all(isinstance(one, GenerateResult) for one in found)
    return [one.token_ids for one in found if isinstance(one, GenerateResult)]


def compared(engine: Engine, folder: Path) -> Sequence[object]:
    folder.mkdir()
    texts = [ScoreRequest(id="a", messages=None, continuations=(TEXT,))]
    engine.states(texts, folder)
    (found,) = engine.divergence(texts, folder, folder)
    assert isinstance(found, Divergence)
    return [found.token_ids, found.kl.tobytes()]


def test_a_running_engine_needs_none_of_its_folders(tiny_dir: Path, tmp_path: Path) -> None:
    """Overwritten, then removed: model, tokenizer and drafting model."""
    parts = {
        part: Path(shutil.copytree(tiny_dir, tmp_path / part)) for part in ("model", "tokenizer", "draft")
    }
    spec = make_spec(
        parts["model"], "transformers", engine={"speculative": DRAFT}, sampling={"max_tokens": 12}
    )
    spec = replace(spec, tokenizer_dir=parts["tokenizer"], draft_dir=parts["draft"])
    with WorkerEngine(spec, log=tmp_path / "log") as engine:
        assert '"window":"[[\\"none\\",3]]"' in engine.identity.effective["draft"]
        assert not [text for text in engine.identity.effective.values() if str(tmp_path) in text]
        if Path("/proc").exists():
            assert not held(engine.pid, parts.values())
        rendered, scored, answered = engine.render([user(TEXT)]), logprobs(engine), replies(engine)
        differing = compared(engine, tmp_path / "before")
        for folder in (parts["model"], parts["draft"]):
            overwrite(folder)
        assert (logprobs(engine), replies(engine)) == (scored, answered)
        for folder in parts.values():
            shutil.rmtree(folder)
        assert (logprobs(engine), replies(engine)) == (scored, answered)
        assert engine.render([user(TEXT)]) == rendered
        assert compared(engine, tmp_path / "after") == differing
        assert engine.resources(reset_peak=True).resident > 0


def held(pid: int | None, folders: Any) -> list[str]:
    """Mappings and open files of a process that lie in the folders."""
    process = Path(f"/proc/{pid}")
    opened = [os.readlink(link) for link in (process / "fd").iterdir()]
    lines = [*opened, *(process / "maps").read_text().splitlines()]
    return [line for line in lines if any(str(folder) in line for folder in folders)]


def test_a_mapping_that_is_left_is_the_engines_failure(
    tiny_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not file_mappings.MAPS.exists():
        missing("a list of this process's mappings")
    monkeypatch.setattr(file_mappings, "_copy_tensors", lambda areas: None)
    with pytest.raises(EngineError, match=r"still lies in its files: model\.safetensors is mapped"):
        TransformersBackend(make_spec(tiny_dir, "transformers"))


def test_where_no_mapping_can_be_seen_every_tensor_is_copied(
    tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = awkward.make("good", tiny_dir, tmp_path)
    monkeypatch.setattr(file_mappings, "MAPS", tmp_path / "nowhere")
    backend = TransformersBackend(make_spec(folder, "transformers"))
    before = logprobs(backend)
    overwrite(folder)
    assert logprobs(backend) == before


def test_tensors_that_share_their_numbers_still_do(tmp_path: Path) -> None:
    """Such as a tied head."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    save_file({"a": torch.arange(6.0)}, tmp_path / "one.safetensors")
    with safe_open(tmp_path / "one.safetensors", framework="pt") as opened:
        one = opened.get_tensor("a")
    other = torch.nn.Parameter(one)
    file_mappings.leave_files([tmp_path])
    assert one.data_ptr() == other.data_ptr()
    overwrite(tmp_path)
    assert one.tolist() == [0, 1, 2, 3, 4, 5]
