"""What a model or tokenizer directory holds, and what in it is refused.

Only safetensors are weights. Pickles and remote code are refused unless the manifest says ``unsafe_*``, and
then they are digested like weights.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from checkweigh.errors import SourceError
from checkweigh.records.manifest import Model

PICKLES = frozenset({".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".msgpack", ".h5", ".joblib"})
CONFIGURATIONS = ("config.json", "generation_config.json")
TOKENIZERS = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "vocab.txt", "merges.txt", "tokenizer.model", "spiece.model",
)  # fmt: skip


def weight_files(folder: Path, model: Model) -> list[Path]:
    """Every file that decides the weights: safetensors, their index, and what ``unsafe_*`` allows.

    SourceError for pickles, code, adapters that would be loaded unasked, and a directory without weights.
    """
    files = _files(folder)
    pickles = [path for path in files if path.suffix in PICKLES]
    if pickles and not model.unsafe_pickle:
        raise SourceError(
            f"{folder}: expected safetensors only, found {_names(pickles)}: pickles are refused, because "
            "loading one runs its code (model.unsafe_pickle: true allows it)"
        )
    code = refuse_code(folder, model)
    adapters = [path for path in files if path.name == "adapter_config.json"]
    if adapters:
        raise SourceError(f"{folder}: found adapter_config.json, an adapter that would be loaded unasked")
    weights = [path for path in files if path.suffix == ".safetensors"]
    if not weights and not pickles:
        raise SourceError(f"{folder}: expected *.safetensors, found none")
    indexes = [path for path in files if path.name.endswith(".safetensors.index.json")]
    return sorted(weights + indexes + pickles + code)


def refuse_code(folder: Path, model: Model) -> list[Path]:
    """The Python files of a directory; SourceError for them unless they are allowed."""
    code = [path for path in _files(folder) if path.suffix == ".py"]
    if code and not model.unsafe_remote_code:
        raise _remote_code(folder, _names(code))
    return code


def refuse_auto_map(folder: Path, model: Model) -> None:
    """SourceError for a configuration that names code of its own, unless that is allowed."""
    naming = [
        f"auto_map in {name}"
        for name in ("config.json", "tokenizer_config.json")
        if (folder / name).is_file() and "auto_map" in read_json_object(folder / name)
    ]
    if naming and not model.unsafe_remote_code:
        raise _remote_code(folder, ", ".join(naming))


def _remote_code(folder: Path, files: str) -> SourceError:
    return SourceError(
        f"{folder}: found remote code ({files}), which is refused (model.unsafe_remote_code: true allows it)"
    )


def small_files(tokenizer_dir: Path, model_dir: Path) -> dict[str, Path]:
    """Name -> file, of the tokenizer and of the model's configurations: they decide ids and defaults."""
    files = {name: tokenizer_dir / name for name in TOKENIZERS}
    files |= {name: model_dir / name for name in CONFIGURATIONS}
    return {name: path for name, path in sorted(files.items()) if path.is_file()}


def template_file(folder: Path) -> Path:
    """Where a tokenizer directory keeps its chat template: in its own file, or in the configuration."""
    template = folder / "chat_template.jinja"
    return template if template.is_file() else folder / "tokenizer_config.json"


def template_text(path: Path) -> str:
    """The chat template in a Jinja file or a ``tokenizer_config.json``. SourceError when there is none."""
    if path.suffix != ".json":
        return read_text(path)
    template = read_json_object(path).get("chat_template")
    if isinstance(template, list):  # several by name; engines use the one named default
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
        template = named.get("default")
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
    try:
        value = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{path}: expected JSON ({error})") from error
    if not isinstance(value, dict):
        raise SourceError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


def check_shards(weights: list[Path]) -> None:
    """SourceError for an index that names weights which are not there, or names them in no known way."""
    there = {path.name for path in weights}
    for index in (path for path in weights if path.suffix == ".json"):
        shards = read_json_object(index).get("weight_map")
        if not isinstance(shards, dict) or not all(isinstance(shard, str) for shard in shards.values()):
            raise SourceError(f"{index}: expected weight_map, tensor names and their files")
        gone = sorted(set(shards.values()) - there)
        if gone:
            raise SourceError(f"{index}: expected {', '.join(gone)} beside it, found no such file")


def _files(folder: Path) -> list[Path]:
    try:
        paths = sorted(folder.iterdir())
    except OSError as error:
        raise SourceError(f"{folder}: cannot be read ({error.strerror})") from error
    broken = [path for path in paths if path.is_symlink() and not path.exists()]
    if broken:
        raise SourceError(f"{folder}: expected files, found links to nothing: {_names(broken)}")
    return [path for path in paths if path.is_file()]


def _names(paths: list[Path]) -> str:
    return ", ".join(path.name for path in paths)
