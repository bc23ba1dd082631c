"""Recipes that make servable weights from a source, in a process of their own.

``gguf-to-safetensors`` version 1: transformers dequantises the GGUF file; weights are stored as bf16
safetensors with the tokenizer, its chat template and a configuration without quantization. The result is what
was dequantised, not the checkpoint that was once quantised.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from checkweigh.canonical import short
from checkweigh.errors import PinMismatch, Problem, SourceError
from checkweigh.progress import Progress
from checkweigh.records.manifest import Derive, Model
from checkweigh.sources.cache import cache_root
from checkweigh.sources.digests import file_digest
from checkweigh.sources.model.loading_info import listed, loading_problems
from checkweigh.sources.sealed_cache import build_sealed, changed_files

TIMEOUT_S = 1800


def served_directory(model: Model, source_path: Path, progress: Progress) -> Path:
    """The directory that is served: the source's own, or the one derived from it."""
    source, recipe = model.source, model.derive
    if source_path.is_dir():
        if recipe is not None:
            raise SourceError(f"{source}: expected a GGUF file for {recipe.recipe}, found a directory")
        return source_path
    if recipe is None or source_path.suffix != ".gguf":
        raise SourceError(
            f"{source}: expected a model directory, or a .gguf file with model.derive, "
            f"found the file {source_path.name}"
        )
    return derive_model(source_path, file_digest(source_path), recipe, progress)


def derive_model(source: Path, digest: str, recipe: Derive, progress: Progress) -> Path:
    """Directory of the derived model, made on first use. SourceError when the recipe fails."""
    name = f"{short(digest)}-{recipe.recipe}-v{recipe.version}"

    def build(folder: Path) -> None:
        progress(f"converting {source.name} (once)", 0, 1)
        # -P: a file named torch.py in the working directory is nobody's torch.
        command = [sys.executable, "-P", "-m", "checkweigh.sources.model.derive", str(source), str(folder)]
        try:
            completed = subprocess.run(
                command, capture_output=True, text=True, errors="replace", timeout=TIMEOUT_S, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise SourceError(f"{source}: {recipe.recipe} took more than {TIMEOUT_S} s") from error
        if completed.returncode < 0:
            killed = f"killed by signal {-completed.returncode} (out of memory?)"
            raise SourceError(f"{source}: {recipe.recipe} was {killed}")
        if completed.returncode != 0:
            raise SourceError(f"{source}: {recipe.recipe} failed: {_last_line(completed.stderr)}")
        progress(f"converting {source.name} (once)", 1, 1)

    target = cache_root() / "derived" / name
    _refuse_changed(target)
    return build_sealed(target, build)


def _refuse_changed(folder: Path) -> None:
    """PinMismatch for derived files that were changed: nobody should think that they never were."""
    problems = [
        Problem(file=str(file), line=None, path="", expected=f"{sealed}, as it was made", found=found)
        for file, sealed, found in changed_files(folder)
    ]
    if problems:
        hint = f"a damaged one (remove {folder}: it is made again)"
        whole = Problem(file=str(folder), line=None, path="", expected="the derived model", found=hint)
        raise PinMismatch([*problems, whole])


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no message"])[-1]


def refuse_other_tensors(loading_info: Mapping[str, Any]) -> None:
    """SystemExit for a file whose tensors are not exactly those of its model, by transformers' loading info.

    transformers fills such a model with random numbers, or drops what it does not know, and a warning.
    """
    if problems := loading_problems(loading_info):
        raise SystemExit(
            f"the file does not hold exactly the tensors of its model, found otherwise {listed(problems)}"
        )


def _gguf_to_safetensors(source: Path, folder: Path) -> None:
    """Runs in the child process. ``save_pretrained`` refuses a model loaded from GGUF, hence the detour."""
    import copy

    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where = {"pretrained_model_name_or_path": str(source.parent), "gguf_file": source.name}
    tokenizer = AutoTokenizer.from_pretrained(**where, local_files_only=True, trust_remote_code=False)
    loaded, loading_info = AutoModelForCausalLM.from_pretrained(
        **where, local_files_only=True, trust_remote_code=False, dtype=torch.float32, output_loading_info=True
    )
    refuse_other_tensors(loading_info)
    config = copy.deepcopy(loaded.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.dtype = torch.bfloat16
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.load_state_dict({name: value.to(torch.bfloat16) for name, value in loaded.state_dict().items()})
    model.tie_weights()
    model.generation_config = loaded.generation_config
    model.save_pretrained(folder, max_shard_size="100GB")
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    _gguf_to_safetensors(Path(sys.argv[1]), Path(sys.argv[2]))
