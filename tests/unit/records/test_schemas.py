"""JSON Schema of every kind of document, for editors: with the descriptions, and as strict as the parser."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel

from checkweigh.errors import BadInput
from checkweigh.records.yaml.document import _inner
from checkweigh.usecases.schema import DOCUMENTS, json_schema


def models(model: type[BaseModel], seen: set[type[BaseModel]]) -> Iterator[type[BaseModel]]:
    if model in seen:
        return
    seen.add(model)
    yield model
    for field in model.model_fields.values():
        inner = _inner(field.annotation)
        if inner is not None:
            yield from models(inner, seen)


@pytest.mark.parametrize("kind", sorted(DOCUMENTS))
def test_every_description_is_in_the_schema(kind: str) -> None:
    schema = json_schema(kind)
    written = json.dumps(schema, ensure_ascii=False)
    described = [
        field.description
        for model in models(DOCUMENTS[kind], set())
        for field in model.model_fields.values()
        if field.description
    ]
    assert described or kind == "evalset"
    for description in described:
        assert json.dumps(description, ensure_ascii=False) in written
    versions = schema["properties"]["schema"]
    for version in versions.get("enum") or [versions["const"]]:
        assert version.startswith("checkweigh/")


@pytest.mark.parametrize("kind", sorted(DOCUMENTS))
def test_unknown_keys_are_refused_everywhere(kind: str) -> None:
    schema = json_schema(kind)
    objects: list[dict[str, Any]] = [schema, *schema.get("$defs", {}).values()]
    for each in objects:
        if each.get("type") == "object":
            assert each["additionalProperties"] is False
            assert each["description"]


def test_another_kind() -> None:
    with pytest.raises(
        BadInput, match="schema: expected one of manifest, policy, evalset, lock, decision, guard, found 'x'"
    ):
        json_schema("x")
