"""The pinned rendering: messages -> token ids, with nothing but the tokenizer file and the chat template.

Independent of any engine, so that an engine's own prompt ids can be compared with it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from checkweigh import canonical
from checkweigh.errors import SourceError
from checkweigh.records.evalset import Message
from checkweigh.sources.model.model_directory import read_json_object

_TEMPLATE_FAILURES = (ArithmeticError, LookupError, RecursionError, TypeError, ValueError)
SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class _Generation(Extension):
    """``{% generation %}``, which marks a reply for training: here its body as it stands."""

    tags = {"generation"}  # noqa: RUF012 - as the base class has it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class Renderer:
    """Renders conversations as ``apply_chat_template(add_generation_prompt=True)`` does, and encodes text.

    SourceError when the tokenizer or the template cannot be read. A template that asks for the date is
    refused: its prompts would differ from day to day.
    """

    def __init__(self, tokenizer_dir: Path, chat_template: str) -> None:
        try:
            self._tokenizer = Tokenizer.from_file(str(tokenizer_dir / "tokenizer.json"))
        except Exception as error:  # tokenizers raises nothing more exact
            raise SourceError(f"{tokenizer_dir / 'tokenizer.json'}: not a tokenizer ({error})") from error
        self._tokenizer.no_truncation()  # as transformers does: what the file says of it is for training
        self._tokenizer.no_padding()
        config = _special_map(tokenizer_dir) | read_json_object(tokenizer_dir / "tokenizer_config.json")
        if config.get("split_special_tokens"):
            self._tokenizer.encode_special_tokens = True
        self._special = {name: _content(config[name]) for name in SPECIAL if config.get(name)}
        try:
            self._template = _environment().from_string(chat_template)
        except (jinja2.TemplateError, RecursionError) as error:
            raise SourceError(f"{tokenizer_dir}: the chat template is not valid Jinja ({error})") from error

    @property
    def prefix_id(self) -> int:
        """The token before raw text: BOS, else EOS."""
        name = self._special.get("bos_token") or self._special.get("eos_token")
        token_id = self._tokenizer.token_to_id(name) if name else None
        if token_id is None:
            raise SourceError("the tokenizer has neither a BOS nor an EOS token to put before raw text")
        return int(token_id)

    @cached_property
    def vocabulary_digest(self) -> str:
        """Digest of token -> id; equal digests make per-token numbers comparable."""
        return canonical.digest(self._tokenizer.get_vocab(with_added_tokens=True))

    def text(self, messages: Sequence[Message]) -> str:
        """The prompt of a conversation as text. SourceError when the template refuses it."""
        turns = [{"role": m.role, "content": m.content} for m in messages]
        try:
            return self._template.render(
                messages=turns, tools=None, documents=None, add_generation_prompt=True, **self._special
            )
        except (jinja2.TemplateError, *_TEMPLATE_FAILURES) as error:
            raise SourceError(f"the chat template refuses a conversation: {error}") from error

    def render(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """Prompt ids of a conversation. SourceError when the template refuses it."""
        return self.encode(self.text(messages))

    def encode(self, text: str) -> tuple[int, ...]:
        """Token ids of text, without special tokens added around it."""
        return tuple(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids, special tokens left out."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _Generation]
    )
    functions: dict[str, Callable[..., Any]] = {"raise_exception": _refuse, "strftime_now": _no_date}
    environment.globals.update(functions)
    environment.filters["tojson"] = _tojson
    return environment


def _special_map(folder: Path) -> dict[str, Any]:
    """Special tokens of an older tokenizer, whose configuration may leave them to a file of their own."""
    path = folder / "special_tokens_map.json"
    return read_json_object(path) if path.is_file() else {}


def _content(token: Any) -> str:
    return str(token["content"] if isinstance(token, dict) else token)


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: int | None = None,
    separators: tuple[str, str] | None = None, sort_keys: bool = False,
) -> str:  # fmt: skip
    """``tojson`` as chat templates know it: Jinja's own would escape HTML."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _refuse(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _no_date(*_: object) -> NoReturn:
    raise jinja2.TemplateError("the template asks for the date, which no pin can hold")
