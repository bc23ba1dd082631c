"""A tiny real model and specs for it; nothing is downloaded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import TEMPLATE, write_model, write_tokenizer

from checkweigh.engines.spec import EngineSpec
from checkweigh.records.evalset import Message
from checkweigh.records.manifest import Manifest

MakeSpec = Callable[..., EngineSpec]


def user(text: str) -> tuple[Message, ...]:
    """A conversation of one user message."""
    return (Message(role="user", content=text),)


@pytest.fixture(scope="session")
def tokenizer_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    write_model(folder, write_tokenizer(folder))
    return folder


def make_spec(folder: Path, kind: str, **sections: Any) -> EngineSpec:
    """A spec; ``sections`` are merged into the manifest's."""
    engine = {"kind": kind, "version": "1", "dtype": "float32", "threads": 1} | sections.pop("engine", {})
    manifest = {
        "schema": "checkweigh/manifest@1",
        "name": "tiny",
        "model": {"source": "path:tiny"},
        "engine": engine,
        "limits": {"max_sequence": 256},
    }
    return EngineSpec(
        manifest=Manifest.model_validate_json(json.dumps(manifest | sections)),
        model_dir=folder,
        tokenizer_dir=folder,
        chat_template=TEMPLATE,
    )


@pytest.fixture
def fake(tokenizer_dir: Path) -> MakeSpec:
    """``fake(knob=value, ...)``: the spec of a fake engine."""

    def build(sections: dict[str, Any] | None = None, **knobs: Any) -> EngineSpec:
        merged = {"sampling": {"max_tokens": 96}} | (sections or {})
        return make_spec(tokenizer_dir, "fake", engine={"options": knobs}, **merged)

    return build
