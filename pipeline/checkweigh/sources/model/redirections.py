"""Configurations that make a loader read something else than the folder's own, well-known files: refused by name.

Collected from the loaders of transformers 5.23 and vLLM 0.32. ``_name_or_path`` is not among them: both set it to the
folder that they load, whatever the file says.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from checkweigh.errors import Problem, SourceError
from checkweigh.records.manifest import Model
from checkweigh.sources.model.model_directory import CONFIGURATIONS, Files, read_json_object, walk

# Key, in any object of a configuration -> what a loader takes from where it says.
REDIRECTIONS = {
    "transformers_weights": "weights",
    "configuration_files": "the configuration",
    "fast_tokenizer_files": "the tokenizer",
    "speculators_config": "the model and its tokenizer",  # vLLM serves the verifier that it names
    "base_model_name_or_path": "the model",
    "text_model_id": "weights", "audio_model_id": "weights",  # vLLM's Ultravox
    "backbone": "a part of the model", "use_pretrained_backbone": "weights",
    "mm_vision_tower": "a part of the model", "vision_tower": "a part of the model",
    "gguf_file": "weights",
}  # fmt: skip
CODE = ("attn_implementation", "_attn_implementation", "experts_implementation", "_experts_implementation")
# A tokenizer's own arguments that name files; transformers leaves this one unread.
UNREAD = "special_tokens_map_file"
REGEX = "fix_mistral_regex"  # decided by config.json's transformers_version, which no pin holds
TOKENIZER_SETTINGS = ("tokenizer_config.json", "special_tokens_map.json")
# JSON that holds data, not settings: its keys are tokens or tensors.
DATA = ("tokenizer.json", "vocab.json", "added_tokens.json", "tekken.json", "*.index.json")


def redirection_problems(files: Files, model: Model, *, drafts: bool = False) -> Iterator[Problem]:
    """Every setting in the folder's own JSON files that names another file, another source or code.

    ``drafts``: a drafting model may name the model that it was trained for. A
    configuration that cannot be read is a problem.
    """
    for name, path in files.items():
        if "/" in name or not name.endswith(".json") or any(fnmatchcase(name, data) for data in DATA):
            continue
        try:
            settings = read_json_object(path)
        except SourceError as error:
            if name not in (*CONFIGURATIONS, *TOKENIZER_SETTINGS):
                continue  # no engine needs it; it is pinned by its bytes
            _, _, said = str(error).partition(": ")
            expected, _, found = said.removeprefix("expected ").partition(", found ")
            yield _problem(path, "", expected, found or "something else")
            continue
        yield from _settings_problems(path, settings, model, drafts)


def _settings_problems(
    path: Path, settings: Mapping[str, Any], model: Model, drafts: bool
) -> Iterator[Problem]:
    for place, key, value in walk(settings):
        if key == "auto_map" and (not model.unsafe_remote_code or "--" in str(value)):
            found = "remote code, which is refused (model.unsafe_remote_code: true allows the folder's own)"
            yield _problem(path, place, "no auto_map", found)
        elif key in REDIRECTIONS and _names_something(value) and not (drafts and key == "speculators_config"):
            yield _problem(
                path, place, f"no {key}", f"{_shown(value)}, from where {REDIRECTIONS[key]} would be read"
            )
        elif key in CODE and "/" in str(value):
            yield _problem(path, place, "an implementation of the engine's own", f"code of {_shown(value)}")
        elif path.name in TOKENIZER_SETTINGS and key == REGEX and _names_something(value):
            found = f"{_shown(value)}: transformers then splits text by a version that config.json states"
            yield _problem(path, place, f"no {key} (a tokenizer saved with it holds it)", found)
        elif (
            path.name in TOKENIZER_SETTINGS
            and key.endswith("_file")
            and key != UNREAD
            and _names_something(value)
        ):
            yield _problem(
                path, place, f"no {key}", f"{_shown(value)}, from where the tokenizer would be read"
            )


def _names_something(value: Any) -> bool:
    return value not in (None, False, "", [], {})


def _shown(value: Any) -> str:
    text = str(value)
    return ascii(text if len(text) <= 80 else text[:77] + "...")[1:-1]


def _problem(file: Path, path: str, expected: str, found: str) -> Problem:
    return Problem(file=str(file), line=None, path=path, expected=expected, found=found)
