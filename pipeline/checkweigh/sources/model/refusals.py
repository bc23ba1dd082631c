"""Everything that a model's or tokenizer's folder is refused for, at once."""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

from checkweigh.errors import Problem
from checkweigh.records.manifest import Model, Quantization
from checkweigh.sources.model.model_directory import Files
from checkweigh.sources.model.redirections import redirection_problems
from checkweigh.sources.model.stated_quantization import quantization_problems
from checkweigh.sources.model.weight_set import read_headers, weight_problems

# A configuration and tokenizers in Mistral's own format, which vLLM and mistral-common prefer to those of transformers.
MISTRAL = ("params.json", "tekken.json", "tokenizer.model.v*")


def model_problems(
    folder: Path, files: Files, model: Model, quantization: Quantization, engine: str, *, drafts: bool = False
) -> list[Problem]:
    """What is wrong with the folder of weights. ``drafts``: of a drafting model."""
    headers, damaged = read_headers(files)
    configured = engine != "fake" or drafts
    return [
        *damaged,
        *([] if "config.json" in files or not configured else [_problem(folder, "config.json", "none")]),
        *weight_problems(folder, files, model, engine, headers),
        *redirection_problems(files, model, drafts=drafts),
        *quantization_problems(folder, files, None if drafts else quantization, headers),
        *_second_formats(folder, files),
    ]


def tokenizer_problems(folder: Path, files: Files, model: Model, *, own: bool) -> list[Problem]:
    """What is wrong with the tokenizer. ``own``: it has a folder of its own, which nothing else has looked at."""
    return [
        *_missing_tokenizer(folder, files),
        *([*redirection_problems(files, model), *_code(folder, files, model)] if own else []),
        *(_second_formats(folder, files) if own else []),
    ]


def _missing_tokenizer(folder: Path, files: Files) -> Iterator[Problem]:
    """Only ``tokenizer.json`` says all that decides the ids; other formats are converted, by whom it concerns."""
    if "tokenizer.json" in files:
        return
    others = [name for name in files if name.endswith((".model", ".tiktoken", "vocab.json", "vocab.txt"))]
    convert = f"""python -c "from transformers import AutoTokenizer as A; A.from_pretrained('{folder}')"""
    convert += f""".save_pretrained('{folder}')" writes it, with the packages sentencepiece and protobuf"""
    expected = f"tokenizer.json ({convert})" if others else "tokenizer.json"
    yield _problem(folder, expected, ", ".join(others) or "none")


def _second_formats(folder: Path, files: Files) -> Iterator[Problem]:
    found = [n for n in files if "/" not in n and any(fnmatchcase(n, pattern) for pattern in MISTRAL)]
    if found:
        expected = "one configuration and one tokenizer (remove these; a hub's are not fetched)"
        yield _problem(
            folder,
            expected,
            f"{', '.join(found)}, which some engines prefer to config.json and tokenizer.json",
        )


def _code(folder: Path, files: Files, model: Model) -> Iterator[Problem]:
    code = [name for name in files if "/" not in name and name.endswith(".py")]
    if code and not model.unsafe_remote_code:
        found = (
            f"remote code ({', '.join(code)}), which is refused (model.unsafe_remote_code: true allows it)"
        )
        yield _problem(folder, "no code", found)


def _problem(file: Path, expected: str, found: str) -> Problem:
    return Problem(file=str(file), line=None, path="", expected=expected, found=found)
