"""Strict YAML: text -> record, with every problem's line and dotted path. Pure; no file is opened here.

Duplicate keys, tags, aliases, non-string keys, NaN and infinity are errors; dates stay strings.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from checkweigh.errors import BadDocument, Problem
from checkweigh.records.base import Record

R = TypeVar("R", bound=Record)
Path = tuple[str | int, ...]
MAX_BYTES = 1_000_000


class _Loader(yaml.SafeLoader):
    """SafeLoader without timestamps, and with YAML 1.2's booleans only (so that ``no`` stays a word)."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, regexp) for tag, regexp in resolvers if tag.rsplit(":", 1)[1] in ("int", "float", "null", "merge")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|false)$"), list("tf"))


class _Reader:
    """Walks YAML nodes once; collects values, line numbers and problems."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.lines: dict[Path, int] = {}
        self.problems: list[Problem] = []
        self.seen: set[int] = set()
        self.loader = _Loader("")

    def problem(self, node: yaml.Node, path: Path, expected: str, found: str, suggestion: str | None = None) -> None:
        self.problems.append(
            Problem(
                file=self.file, line=node.start_mark.line + 1, path=dotted(path),
                expected=expected, found=found, suggestion=suggestion,
            )
        )

    def value(self, node: yaml.Node, path: Path) -> Any:
        self.lines[path] = node.start_mark.line + 1
        if id(node) in self.seen:
            self.problem(node, path, "a value written out", "a YAML alias")
            return None
        self.seen.add(id(node))
        if isinstance(node, yaml.MappingNode):
            return self.mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self.value(child, (*path, i)) for i, child in enumerate(node.value)]
        return self.scalar(node, path)

    def mapping(self, node: yaml.MappingNode, path: Path) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
            if key is None or key == "<<":
                self.problem(key_node, path, "a plain key", "a merge key or a structured key")
                continue
            if key in result:
                self.problem(key_node, (*path, key), "each key once", f"'{key}' a second time")
                continue
            result[key] = self.value(value_node, (*path, key))
            self.lines[(*path, key)] = key_node.start_mark.line + 1
        return result

    def scalar(self, node: yaml.Node, path: Path) -> Any:
        allowed = ("str", "int", "float", "bool", "null")
        if node.tag not in {f"tag:yaml.org,2002:{name}" for name in allowed}:
            self.problem(node, path, "plain YAML without tags", f"the tag {node.tag}")
            return None
        try:
            value = self.loader.construct_object(node)
        except (ValueError, OverflowError, yaml.YAMLError) as error:
            self.problem(node, path, "a number", f"{node.value!r} ({error})")
            return None
        if isinstance(value, float) and not math.isfinite(value):
            self.problem(node, path, "a finite number", str(node.value))
            return None
        return value


def dotted(path: Path) -> str:
    """``("checks", 0, "margin")`` -> ``checks[0].margin``."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else (f".{part}" if text else part)
    return text


def parse(model: type[R], data: bytes, file: str) -> R:
    """A record from the bytes of a YAML document. Raises BadDocument with every problem found."""
    reader = _Reader(file)
    node = _compose(data, file)
    value = reader.value(node, ())
    if not isinstance(node, yaml.MappingNode):
        raise BadDocument([_whole(file, "a mapping of keys to values", _kind(value), 1)])
    problems = reader.problems
    try:
        record = model.model_validate_json(json.dumps(value))
    except ValidationError as error:
        broken = {problem.path for problem in problems}
        errors = [item for item in error.errors() if not _echo(item, error.errors())]
        found = [_problem(model, item, value, reader, file) for item in errors]
        problems += [problem for problem in found if problem.path not in broken]
    if problems:
        raise BadDocument(sorted(problems, key=lambda p: (p.line or 0, p.path)))
    return record


def parse_json(model: type[R], data: bytes, file: str) -> R:
    """A record from the bytes of a JSON document (a lock, a decision). Raises BadDocument."""
    try:
        return model.model_validate_json(data)
    except ValidationError as error:
        raise BadDocument(
            [
                Problem(
                    file=file, line=None, path=dotted(item["loc"]), expected=_expected(item), found=_found(item)
                )
                for item in error.errors()
            ]
        ) from None


def _compose(data: bytes, file: str) -> yaml.Node:
    if len(data) > MAX_BYTES:
        raise BadDocument([_whole(file, f"at most {MAX_BYTES} bytes", f"{len(data)} bytes")])
    try:
        node = yaml.compose(data.decode("utf-8"), Loader=_Loader)
    except UnicodeDecodeError as error:
        raise BadDocument([_whole(file, "UTF-8 text", f"byte {data[error.start]:#04x} at {error.start}")]) from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else None
        raise BadDocument([_whole(file, "well-formed YAML", str(error.problem), line)]) from None
    except (yaml.YAMLError, RecursionError) as error:
        raise BadDocument([_whole(file, "well-formed YAML", str(error).splitlines()[0])]) from None
    if node is None:
        raise BadDocument([_whole(file, "a document", "an empty file")])
    return node


def _whole(file: str, expected: str, found: str, line: int | None = None) -> Problem:
    return Problem(file=file, line=line, path="", expected=expected, found=found)


def _echo(item: ErrorDetails, items: list[ErrorDetails]) -> bool:
    """Whether a list counts as too short only because its members are wrong."""
    loc = item["loc"]
    return item["type"] == "too_short" and any(o["loc"][: len(loc)] == loc and o["loc"] != loc for o in items)


def _kind(value: object) -> str:
    return {"list": "a list", "str": "text", "NoneType": "nothing"}.get(type(value).__name__, repr(value))


def _problem(model: type[Record], item: ErrorDetails, value: Any, reader: _Reader, file: str) -> Problem:
    path: Path = tuple(item["loc"])
    suggestion = None
    if item["type"] == "extra_forbidden":
        keys = _siblings(model, path)
        near = difflib.get_close_matches(str(path[-1]), keys, n=1)
        suggestion = near[0] if near else None
    if item["type"] == "value_error" and path and path[-1] == "metric":
        near = difflib.get_close_matches(str(item["input"]), str(item["ctx"]["error"]).split(" ", 2)[2].split(", "))
        suggestion = near[0] if near else None
    known = path
    while known not in reader.lines and known:
        known = known[:-1]
    return Problem(
        file=file, line=reader.lines.get(known), path=dotted(path),
        expected=_expected(item), found=_found(item), suggestion=suggestion,
    )


def _siblings(model: type[BaseModel], path: Path) -> list[str]:
    """Names a key at ``path`` could have had, following the model down the path."""
    current: Any = model
    for part in path[:-1]:
        if isinstance(part, int):
            continue
        field = next((f for n, f in current.model_fields.items() if part in (n, f.alias)), None)
        current = _inner(field.annotation) if field else None
        if current is None:
            return []
    return [field.alias or name for name, field in current.model_fields.items()]


def _inner(annotation: Any) -> type[BaseModel] | None:
    """The record type inside an annotation such as ``tuple[Check, ...]`` or ``Derive | None``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        if (inner := _inner(argument)) is not None:
            return inner
    return None


_EXPECTED = {
    "missing": "this key",
    "extra_forbidden": "a known key",
    "bool_type": "true or false",
    "int_type": "a whole number",
    "float_type": "a number",
    "string_type": "text (put it in quotes)",
    "tuple_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
}


def _expected(item: ErrorDetails) -> str:
    kind, context = item["type"], item.get("ctx", {})
    if kind in _EXPECTED:
        return _EXPECTED[kind]
    if kind == "value_error":
        return str(context["error"])
    if kind == "literal_error":
        return "one of " + str(context["expected"])
    if kind == "string_pattern_mismatch":
        return f"text that matches {context['pattern']}"
    return item["msg"].removeprefix("Input should be ").removeprefix("Value error, ")


def _found(item: ErrorDetails) -> str:
    if item["type"] == "missing":
        return "nothing"
    if item["type"] == "extra_forbidden":
        return f"'{item['loc'][-1]}'"
    if item["type"] == "value_error" and isinstance(item["input"], dict):
        return "these values together"
    text = json.dumps(item["input"], ensure_ascii=False, default=str)
    return text if len(text) <= 80 else text[:77] + "..."
