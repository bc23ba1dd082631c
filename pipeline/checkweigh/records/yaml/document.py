"""Strict YAML and JSON: text -> record, with every problem's dotted path, and its line where there is one. Pure.

YAML is read as in the core schema of version 1.2, less what surprises. Errors are: duplicate keys, tags, aliases, merge
keys, keys that are not text, NaN, infinity, control characters and lone surrogates. Dates, octals and sexagesimals stay
text. JSON: no duplicate keys, no NaN. No file is opened here.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any, NoReturn, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from checkweigh.errors import BadDocument, Problem
from checkweigh.records.base import SHA256, Record
from checkweigh.records.manifest import SOURCE
from checkweigh.records.yaml.yaml_tree import (
    KeyPath,
    Reader,
    compose,
    dotted,
    not_text,
    shortened,
    whole,
)

R = TypeVar("R", bound=Record)
MAX_JSON = 64_000_000  # of a lock: a long system prompt is in it as token ids


def parse(model: type[R], data: bytes, file: str) -> R:
    """A record from the bytes of a YAML document. Raises BadDocument with every problem found."""
    reader = Reader(file)
    node = compose(data, file)
    value = reader.value(node, (), node)
    if not isinstance(value, dict):
        if reader.problems:
            raise BadDocument(reader.problems)
        raise BadDocument([whole(file, "a mapping of keys to values", _kind(value), 1)])
    problems = reader.problems
    try:
        record = model.model_validate_json(json.dumps(value))
    except ValidationError as error:
        problems += _problems(model, error, value, file, reader.lines, reader.broken)
    if problems:
        raise BadDocument(sorted(problems, key=lambda p: (p.line or 0, p.path)))
    return record


def parse_json(model: type[R], data: bytes, file: str) -> R:
    """A record from the bytes of a JSON document (a lock, a decision). Raises BadDocument."""
    if len(data) > MAX_JSON:
        raise BadDocument([whole(file, f"at most {MAX_JSON} bytes", "more")])
    value = load_json(data, file)
    try:
        return model.model_validate_json(data)
    except ValidationError as error:
        raise BadDocument(explain(model, error, value, file)) from None


def explain(
    model: type[Record], error: ValidationError, value: Any, file: str, line: int | None = None
) -> list[Problem]:
    """The problems of a record that came from JSON; ``line`` where a document holds one record a line."""
    lines: dict[KeyPath, int] = {} if line is None else {(): line}
    return _problems(model, error, value, file, lines, [])


def load_json(data: bytes, file: str, line: int | None = None) -> Any:
    """The value of one JSON text; keys once, no NaN. BadDocument says where it breaks.

    ``line`` is the text's own line where it is one of many in ``file``.
    """
    try:
        text = data.decode("utf-8")
        return json.loads(text, object_pairs_hook=_once, parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        raise BadDocument([not_text(file, data, error)]) from None
    except json.JSONDecodeError as error:
        at = error.lineno if line is None else line
        found = "an empty file" if not text.strip() else f"{error.msg} (column {error.colno})"
        raise BadDocument([whole(file, "well-formed JSON", found, at)]) from None
    except RecursionError:
        raise BadDocument([whole(file, "well-formed JSON", "too many levels", line)]) from None
    except ValueError as error:
        raise BadDocument([whole(file, "well-formed JSON", shortened(str(error)), line)]) from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        twice = next(key for i, (key, _) in enumerate(pairs) if key in dict(pairs[:i]))
        raise ValueError(f"the key {json.dumps(twice)} twice in one object")
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name}, which is no number")


def _kind(value: object) -> str:
    return {"list": "a list", "str": "text", "NoneType": "nothing"}.get(type(value).__name__, repr(value))


def _problems(
    model: type[Record],
    error: ValidationError,
    value: Any,
    file: str,
    lines: Mapping[KeyPath, int],
    broken: Iterable[KeyPath],
) -> list[Problem]:
    """pydantic's errors, each at the place in the document that it is about; the branches of a union as one."""
    errors = error.errors()
    branches: dict[KeyPath, Problem] = {}
    problems: list[Problem] = []
    for item in errors:
        path = _place(item, value)
        if any(path[: len(place)] == place for place in broken) or _echo(item, errors):
            continue
        problem = Problem(
            file=file, line=_line(lines, path), path=dotted(path),
            expected=_expected(item), found=_found(item, path), suggestion=_suggestion(model, item),
        )  # fmt: skip
        if len(path) == len(item["loc"]):
            problems.append(problem)
        elif path in branches and problem.found == branches[path].found:
            merged = f"{branches[path].expected} or {problem.expected}"
            branches[path] = Problem(
                file=file, line=problem.line, path=problem.path, expected=merged, found=problem.found
            )
        else:
            branches.setdefault(path, problem)
    return problems + list(branches.values())


def _place(item: ErrorDetails, value: Any) -> KeyPath:
    """Where in the document an error is: pydantic's location without the names of union branches."""
    path: KeyPath = ()
    last = len(item["loc"]) - 1
    for i, part in enumerate(item["loc"]):
        if isinstance(part, str) and isinstance(value, dict):
            if part in value:
                value = value[part]
                path = (*path, part)
            elif i == last and item["type"] == "missing":
                path = (*path, part)
        elif isinstance(part, int) and isinstance(value, list) and part < len(value):
            value = value[part]
            path = (*path, part)
    return path


def _line(lines: Mapping[KeyPath, int], path: KeyPath) -> int | None:
    while path not in lines and path:
        path = path[:-1]
    return lines.get(path)


def _echo(item: ErrorDetails, items: list[ErrorDetails]) -> bool:
    """Whether a list counts as too short only because its members are wrong."""
    loc = item["loc"]
    return item["type"] == "too_short" and any(o["loc"][: len(loc)] == loc and o["loc"] != loc for o in items)


def _suggestion(model: type[Record], item: ErrorDetails) -> str | None:
    """The known word nearest to an unknown key, metric or choice."""
    kind, context = item["type"], item.get("ctx", {})
    if kind == "extra_forbidden":
        word, known = item["loc"][-1], _siblings(model, item["loc"])
    elif kind == "literal_error":
        word, known = item["input"], re.findall(r"'([^']*)'", str(context["expected"]))
    elif kind == "value_error" and item["loc"] and str(context["error"]).startswith("one of "):
        word, known = item["input"], str(context["error"]).removeprefix("one of ").split(", ")
    else:
        return None
    near = difflib.get_close_matches(word, known, n=1) if isinstance(word, str) else []
    return near[0] if near else None


def _siblings(model: type[BaseModel], path: KeyPath) -> list[str]:
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
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "none_required": "nothing",
    "string_type": "text (put it in quotes)",
    "tuple_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "json_invalid": "JSON without half surrogate pairs",
}
_PATTERNS = {
    SHA256: "sha256: and 64 hex digits",
    SOURCE: "path:DIR-or-FILE, hf:OWNER/REPO@40-hex-commit (no branch or tag: they move), "
    "or package:DIST==VERSION/FILE-IN-WHEEL",
    r"^[a-z0-9][a-z0-9._-]*$": "a name of lower-case letters, digits, '.', '_' and '-'",
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
        return _PATTERNS.get(context["pattern"], f"text that matches {context['pattern']}")
    return item["msg"].removeprefix("Input should be ").removeprefix("Value error, ")


def _found(item: ErrorDetails, path: KeyPath) -> str:
    if item["type"] == "missing":
        return "nothing"
    if item["type"] == "json_invalid":  # what Python's reader lets through
        return str(item["ctx"]["error"])
    if item["type"] == "extra_forbidden":
        return f"'{path[-1]}'"
    if item["type"] == "value_error" and isinstance(item["input"], dict):
        return "these values together"
    return shortened(json.dumps(item["input"], ensure_ascii=False, default=str))
