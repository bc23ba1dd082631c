"""The check of a folder's tensors before a start: asked of the engine's Python, remembered by content, not trusted."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.unit.engines.vllm.test_vllm import make

from checkweigh.engines import expected_tensors
from checkweigh.engines.tensor_check import require_tensors
from checkweigh.errors import BadDocument, BadInput, EngineError, SourceError
from checkweigh.files import write_sealed

Answer = Callable[..., Path]
LACKING = [{"name": "a.weight", "expected": "a tensor", "found": "none"}]


@pytest.fixture
def folder(tiny_model_dir: Path, tmp_path: Path, checkweigh_home: Path) -> Path:
    target = tmp_path / "model"
    shutil.copytree(tiny_model_dir, target)
    return target


@pytest.fixture
def python(tmp_path: Path) -> Answer:
    """``python(answer)``: an interpreter that answers so, and counts how often it was asked in a file beside it."""

    def build(answer: dict[str, Any] | str, code: int = 0) -> Path:
        path = tmp_path / "python"
        said = answer if isinstance(answer, str) else json.dumps(answer)
        path.write_text(
            f"#!/bin/sh\necho asked >> {path}.count\necho noise\ncat <<'END'\n{said}\nEND\nexit {code}\n"
        )
        path.chmod(0o755)
        return path

    return build


def asked(python: Path) -> int:
    file = python.with_name("python.count")
    return len(file.read_text().splitlines()) if file.exists() else 0


def sound(folder: Path) -> dict[str, Any]:
    return {"content": expected_tensors.content(folder), "problems": []}


def test_a_sound_answer_costs_once(folder: Path, python: Answer, tmp_path: Path) -> None:
    spec, own = make(tmp_path, folder), python(sound(folder))
    require_tensors(spec, own)
    require_tensors(spec, own)
    assert asked(own) == 1
    moved = folder.rename(tmp_path / "elsewhere")
    require_tensors(replace(spec, model_dir=moved), own)
    assert asked(own) == 1, "it is content that counts, not where it lies"
    require_tensors(replace(spec, model_dir=moved, packages={"transformers": "6"}), own)
    assert asked(own) == 2, "another environment may expect other tensors"
    (moved / "config.json").write_text((moved / "config.json").read_text() + " ")
    python(sound(moved))
    require_tensors(replace(spec, model_dir=moved), own)
    assert asked(own) == 3


def test_every_problem_is_named_and_none_is_remembered(folder: Path, python: Answer, tmp_path: Path) -> None:
    spec = replace(make(tmp_path, folder), draft_dir=folder)
    own = python(sound(folder) | {"problems": LACKING})
    for asked_before in (0, 2):
        with pytest.raises(BadDocument) as caught:
            require_tensors(spec, own)
        assert asked(own) == asked_before + 2
    assert "tiny: model: a.weight: expected a tensor, found none" in str(caught.value)
    assert "engine.speculative.model: a.weight" in str(caught.value)
    many = [LACKING[0] | {"name": f"{i}.weight"} for i in range(25)]
    with pytest.raises(BadDocument, match="5 more problems"):
        require_tensors(make(tmp_path, folder), python(sound(folder) | {"problems": many}))


@pytest.mark.parametrize("memory", ["", '{"digest": "sha256:0", "body": {}}', "lies"])
def test_a_memory_that_is_broken_or_lies_is_asked_again(
    folder: Path, python: Answer, tmp_path: Path, checkweigh_home: Path, memory: str
) -> None:
    spec, own = make(tmp_path, folder), python(sound(folder))
    require_tensors(spec, own)
    (kept,) = (checkweigh_home / "tensors").iterdir()
    if memory == "lies":  # the whole answer for another folder, in this one's place
        write_sealed(kept, {"content": "another", "words": ["model"]})
    else:
        kept.write_text(memory)
    python(sound(folder) | {"problems": LACKING})
    with pytest.raises(BadDocument):
        require_tensors(spec, own)
    assert asked(own) == 2


@pytest.mark.parametrize(
    ("answer", "code", "error", "why"),
    [
        ({"content": "other", "problems": []}, 0, SourceError, "was changed"),
        ("no JSON", 0, EngineError, "no answer"),
        ({"problems": []}, 0, EngineError, "no answer"),
        ({"content": 1, "problems": []}, 0, EngineError, "no answer"),
        ("", 1, BadInput, "cannot build the architecture"),
        ("", 9, BadInput, "cannot be checked"),
    ],
)
def test_no_answer_is_no_pass(
    folder: Path, python: Answer, tmp_path: Path, answer: Any, code: int, error: type[Exception], why: str
) -> None:
    with pytest.raises(error, match=why):
        require_tensors(make(tmp_path, folder), python(answer, code))


def test_without_a_python_or_with_cut_files_nothing_passes(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="could not be checked"):
        require_tensors(make(tmp_path, folder), tmp_path / "nobody")
    (folder / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(SourceError, match="cannot be read"):
        require_tensors(make(tmp_path, folder), tmp_path / "nobody")
