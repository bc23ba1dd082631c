"""The nodes of a strict YAML document: values, line numbers and problems. Pure; ``document`` makes records of them."""

from __future__ import annotations

import math
import re
from typing import Any

import yaml

from checkweigh.errors import BadDocument, Problem

KeyPath = tuple[str | int, ...]
MAX_BYTES = 1_000_000  # of YAML; a manifest has one thousand
MAX_DEPTH = 50
MAX_NODES = 50_000  # some seconds of YAML
MAX_DIGITS = 30
CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\ud800-\udfff]")
_TAG = "tag:yaml.org,2002:"
_TAGGED = "checkweigh:explicit-tag "


class _Loader(yaml.SafeLoader):
    """Composes nodes with YAML 1.2's numbers and booleans; counts them, and marks explicit tags."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - as PyYAML has it
    depth = 0
    nodes = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        self.depth += 1
        self.nodes += 1
        if self.depth > MAX_DEPTH:
            raise yaml.MarkedYAMLError(None, None, f"more than {MAX_DEPTH} levels", event.start_mark)
        if self.nodes > MAX_NODES:
            raise yaml.MarkedYAMLError(None, None, f"more than {MAX_NODES} values", event.start_mark)
        tag = getattr(event, "tag", None)
        node = super().compose_node(parent, index)
        if tag is not None and node is not None:
            node.tag = _TAGGED + tag
        self.depth -= 1
        return node


_Loader.add_implicit_resolver(_TAG + "bool", re.compile(r"^(?:true|false)$"), list("tf"))
_Loader.add_implicit_resolver(_TAG + "null", re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""])
_Loader.add_implicit_resolver(_TAG + "int", re.compile(r"^[-+]?(?:0|[1-9][0-9]*)$"), list("-+0123456789"))
_Loader.add_implicit_resolver(
    _TAG + "float",
    re.compile(
        r"^(?:[-+]?(?:[0-9]*\.[0-9]+|[0-9]+\.|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
    ),
    list("-+0123456789."),
)


class Reader:
    """Walks YAML nodes once; collects values, line numbers and problems."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.lines: dict[KeyPath, int] = {}
        self.problems: list[Problem] = []
        self.broken: list[KeyPath] = []
        self.seen: set[int] = set()

    def problem(self, node: yaml.Node, path: KeyPath, expected: str, found: str) -> None:
        self.problems.append(
            Problem(
                file=self.file,
                line=node.start_mark.line + 1,
                path=dotted(path),
                expected=expected,
                found=found,
            )
        )

    def refuse(self, node: yaml.Node, path: KeyPath, expected: str, found: str) -> Any:
        """A problem with a value, for which null then stands."""
        self.problem(node, path, expected, found)
        self.broken.append(path)

    def value(self, node: yaml.Node, path: KeyPath, within: yaml.Node) -> Any:
        """The value at ``path``; ``within`` is its key or list: an alias knows only its anchor's line."""
        if id(node) in self.seen:
            return self.refuse(within, path, "a value written out", "a YAML alias")
        self.lines[path] = node.start_mark.line + 1
        self.seen.add(id(node))
        if node.tag.startswith(_TAGGED):
            return self.refuse(
                node,
                path,
                "plain YAML without tags",
                f"the tag {node.tag.removeprefix(_TAGGED).replace(_TAG, '!!')}",
            )
        if isinstance(node, yaml.MappingNode):
            return self.mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self.value(child, (*path, i), node) for i, child in enumerate(node.value)]
        return self.scalar(node, path)

    def mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = self.key(key_node, path, value_node)
            if key is None:
                continue
            if key in result:
                self.problem(key_node, (*path, key), "each key once", f"'{key}' a second time")
                continue
            result[key] = self.value(value_node, (*path, key), key_node)
            self.lines[(*path, key)] = key_node.start_mark.line + 1
        return result

    def key(self, node: yaml.Node, path: KeyPath, value: yaml.Node) -> str | None:
        """The key ``node`` of ``value``; None when it is not a plain one, which is then a problem."""
        expected, found = "text as a key", ""
        if not isinstance(node, yaml.ScalarNode):
            found = "a structured key"
        elif id(node) in self.seen:
            node, found = value, "a YAML alias"
        elif node.tag.startswith(_TAGGED):
            found = "a tag"
        elif node.value == "<<" and node.style is None:
            path, expected, found = (*path, "<<"), "the keys written out", "a merge key"
        elif node.tag != _TAG + "str":
            expected, found = expected + " (put it in quotes)", shortened(str(node.value))
        elif CONTROL.search(node.value):
            found = f"a control character or half a surrogate pair in {node.value!a}"
        self.seen.add(id(node))
        if not found:
            return str(node.value)
        self.problem(node, path, expected, found)
        return None

    def scalar(self, node: yaml.Node, path: KeyPath) -> Any:
        kind, text = node.tag.removeprefix(_TAG), str(node.value)
        if kind in ("int", "float") and len(text) > MAX_DIGITS:
            return self.refuse(node, path, f"a number of at most {MAX_DIGITS} digits", shortened(text))
        if kind == "int":
            return int(text)
        if kind == "bool":
            return text == "true"
        if kind == "null":
            return None
        if kind == "float":
            value = math.nan if re.search(r"\.[a-zA-Z]", text) else float(text)
            return value if math.isfinite(value) else self.refuse(node, path, "a finite number", text)
        if hit := CONTROL.search(text):
            name = f"the character {hit.group()!a}"
            return self.refuse(node, path, "text without control characters and half surrogate pairs", name)
        return text


def dotted(path: KeyPath) -> str:
    """``("checks", 0, "margin")`` -> ``checks[0].margin``."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else (f".{part}" if text else part)
    return text


def compose(data: bytes, file: str) -> yaml.Node:
    if len(data) > MAX_BYTES:
        raise BadDocument([whole(file, f"at most {MAX_BYTES} bytes", "more")])
    expected = "well-formed YAML"
    try:
        text = data.decode("utf-8")
        loader = _Loader(text)
    except UnicodeDecodeError as error:
        raise BadDocument([not_text(file, data, error)]) from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise BadDocument(
            [whole(file, expected, f"the control character {chr(error.character)!a}", line)]
        ) from None
    try:
        node = loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        found = re.sub(r"^(?:but )?found ", "", str(error.problem))
        raise BadDocument([whole(file, expected, found, mark.line + 1 if mark else None)]) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: "\U00110000"
        raise BadDocument([whole(file, expected, str(error).splitlines()[0], loader.line + 1)]) from None
    if node is None:
        raise BadDocument([whole(file, "a document", "an empty file")])
    return node


def not_text(file: str, data: bytes, error: UnicodeDecodeError) -> Problem:
    return whole(file, "UTF-8 text", f"byte {data[error.start]:#04x}", data.count(b"\n", 0, error.start) + 1)


def whole(file: str, expected: str, found: str, line: int | None = None) -> Problem:
    return Problem(file=file, line=line, path="", expected=expected, found=found)


def shortened(text: str) -> str:
    return text if len(text) <= 80 else text[:77] + "..."
