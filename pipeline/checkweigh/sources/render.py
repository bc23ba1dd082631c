"""The pinned rendering: messages -> token ids, with nothing but the tokenizer file and the chat template.

Independent of any engine, so that an engine's own prompt ids can be held against it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from checkweigh import canonical
from checkweigh.errors import SourceError
from checkweigh.records.evalset import Message

SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token")


class Renderer:
    """Renders conversations as ``apply_chat_template(add_generation_prompt=True)`` does, and encodes text.

    SourceError when the tokenizer or the template cannot be read. A template that asks for the date is refused:
    its prompts would differ from day to day.
    """

    def __init__(self, tokenizer_dir: Path, chat_template: str) -> None:
        try:
            self._tokenizer = Tokenizer.from_file(str(tokenizer_dir / "tokenizer.json"))
            config = json.loads((tokenizer_dir / "tokenizer_config.json").read_text(encoding="utf-8"))
        except Exception as error:  # tokenizers raises plain Exception
            raise SourceError(f"{tokenizer_dir}: expected tokenizer.json and tokenizer_config.json ({error})") from error
        self._special: dict[str, Any] = {
            name: config[name]["content"] if isinstance(config[name], dict) else config[name]
            for name in SPECIAL
            if config.get(name)
        }
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
        environment.globals["raise_exception"] = _refuse
        environment.globals["strftime_now"] = _no_date
        try:
            self._template = environment.from_string(chat_template)
        except jinja2.TemplateError as error:
            raise SourceError(f"{tokenizer_dir}: the chat template is not valid Jinja ({error})") from error

    @property
    def prefix_id(self) -> int:
        """The token before raw text: BOS, else EOS."""
        name = self._special.get("bos_token") or self._special.get("eos_token")
        found = self._tokenizer.token_to_id(name) if name else None
        if found is None:
            raise SourceError("the tokenizer has neither a BOS nor an EOS token to put before raw text")
        return int(found)

    @property
    def vocabulary_digest(self) -> str:
        """Digest of token -> id; equal digests make per-token numbers comparable."""
        return canonical.digest(self._tokenizer.get_vocab(with_added_tokens=True))

    def render(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """Prompt ids of a conversation. SourceError when the template refuses it."""
        turns = [{"role": m.role, "content": m.content} for m in messages]
        try:
            text = self._template.render(messages=turns, add_generation_prompt=True, **self._special)
        except jinja2.TemplateError as error:
            raise SourceError(f"the chat template refuses a conversation: {error}") from error
        return self.encode(text)

    def encode(self, text: str) -> tuple[int, ...]:
        """Token ids of text, without special tokens added around it."""
        return tuple(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids, special tokens left out."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))


def _refuse(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _no_date(*_: object) -> NoReturn:
    raise jinja2.TemplateError("the template asks for the date, which no pin can hold")
