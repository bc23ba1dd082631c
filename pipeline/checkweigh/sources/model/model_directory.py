"""What a model or tokenizer directory holds: configurations, tokenizer files, chat templates; and how JSON is read."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from checkweigh.errors import SourceError

Files = Mapping[str, Path]  # relative POSIX name -> path, as ``inventory.list_files`` finds them
CONFIGURATIONS = ("config.json", "generation_config.json")
TOKENIZERS = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "vocab.txt", "merges.txt", "tokenizer.model", "spiece.model",
)  # fmt: skip
# Files of a chat template, in the order in which transformers prefers them to tokenizer_config.json.
TEMPLATES = ("additional_chat_templates/default.jinja", "chat_template.jinja")


def tokenizer_files(tokenizer: Files, model: Files) -> dict[str, Path]:
    """Name -> file, of the tokenizer and of the model's configurations: they decide ids and defaults."""
    files = {name: tokenizer[name] for name in TOKENIZERS if name in tokenizer}
    files |= {name: model[name] for name in CONFIGURATIONS if name in model}
    return dict(sorted(files.items()))


def template_file(folder: Path) -> Path:
    """Where transformers takes a tokenizer directory's chat template from, of the files that exist."""
    files = [folder / name for name in TEMPLATES]
    return next((file for file in files if file.is_file()), folder / "tokenizer_config.json")


def template_notes(folder: Path) -> tuple[str, ...]:
    """One sentence for each chat template that is not taken and differs from the one that is."""
    taken = template_file(folder)
    others = [folder / name for name in (*TEMPLATES, "tokenizer_config.json", "chat_template.json")]
    notes = []
    for other in others:
        with suppress(SourceError):
            if other != taken and other.is_file() and template_text(other) != template_text(taken):
                notes.append(
                    f"{other} holds another chat template, which is not used: {taken} is, as in transformers"
                )
    return tuple(notes)


def template_text(path: Path) -> str:
    """The chat template in a Jinja file or a ``tokenizer_config.json``. SourceError when there is none."""
    if path.suffix != ".json":
        return read_text(path)
    template = read_json_object(path).get("chat_template")
    if isinstance(template, list):  # several by name; engines use the one named default
        named = [entry for entry in template if isinstance(entry, dict) and entry.get("name") == "default"]
        template = named[-1].get("template") if named else None
    if not isinstance(template, str):
        raise SourceError(f"{path}: expected a chat template, found none; name one in prompts.chat_template")
    if any("\ud800" <= character <= "\udfff" for character in template):
        raise SourceError(f"{path}: expected a chat template, found half a surrogate pair in it")
    return template


def read_text(path: Path) -> str:
    """A file's text, byte for byte. SourceError when it cannot be read."""
    try:
        return path.read_bytes().decode("utf-8")
    except FileNotFoundError:
        raise SourceError(f"{path}: expected a file, found none") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(f"{path}: cannot be read as text ({error})") from error


def read_json_object(path: Path) -> dict[str, Any]:
    """A JSON object. SourceError when the file holds anything else."""
    text = read_text(path)
    if text.startswith("\ufeff"):
        raise SourceError(
            f"{path}: expected JSON, found a byte order mark before it; save it as UTF-8 without one"
        )
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{path}: expected JSON ({error})") from error
    if not isinstance(value, dict):
        raise SourceError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


def walk(value: Any) -> Iterator[tuple[str, str, Any]]:
    """Dotted path, key and value of every entry of every object in a JSON value, however deep."""
    left: list[tuple[str, Any]] = [("", value)]
    while left:
        path, value = left.pop()
        if isinstance(value, dict):
            for key, inner in value.items():
                place = f"{path}.{key}" if path else str(key)
                yield place, str(key), inner
                left.append((place, inner))
        elif isinstance(value, list):
            left += [(f"{path}[{number}]", inner) for number, inner in enumerate(value)]
