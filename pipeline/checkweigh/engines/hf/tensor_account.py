"""The account of a load: every tensor of the checkpoint is in the model, and every tensor of the model is from it.

transformers fills what a checkpoint lacks with random numbers, drops what it does not know, and takes one of two
tensors that become the same. Its own account is asked for, and completed where it is silent.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from checkweigh.engines import expected_tensors
from checkweigh.errors import BadInput
from checkweigh.sources.model.loading_info import listed, loading_problems
from checkweigh.sources.model.safetensors_header import read_tensors

DISTRIBUTED = "shard-*-model-*-of-*.safetensors"


def require_expected(where: str, folder: Path, config: Any) -> None:
    """Hold the headers of the files against the architecture, before anything is loaded.

    ``where`` names the model in errors. Raises BadInput: a tensor is missing, unexpected, twice there, of another shape
    or kind, or the folder sends transformers to other weights than ``model.safetensors`` and its shards.
    """
    others = (
        [f"transformers_weights: {named}"] if (named := getattr(config, "transformers_weights", None)) else []
    )
    others += [path.name for path in folder.glob(DISTRIBUTED)]
    if (folder / "adapter_config.json").exists():
        others.append("adapter_config.json")
    if others:
        raise BadInput(
            f"{where}: expected no weights beside model.safetensors and its shards, found {', '.join(sorted(others))}"
        )
    _refuse(
        where,
        (
            f"{p['name']} (expected {p['expected']}, found {p['found']})"
            for p in expected_tensors.check(folder)
        ),
    )


def require_whole(where: str, folder: Path, model: Any, info: Mapping[str, Any]) -> None:
    """Hold the loaded model against its files. ``info`` is transformers' own loading info.

    Raises BadInput naming every tensor of the model that is not the one in the files. Tied ones are not missing.
    """
    _refuse(where, [*loading_problems(info), *_forgiven(model, folder), *_wrong_packing(model)])


def is_bitsandbytes(module: Any) -> bool:
    """Whether the weight of a module is one that bitsandbytes keeps."""
    return type(module).__name__ in ("Linear4bit", "Linear8bitLt")


def _refuse(where: str, problems: Iterable[str]) -> None:
    if found := list(problems):
        raise BadInput(
            f"{where}: expected exactly the tensors of its architecture, found otherwise {listed(found)}"
        )


def _forgiven(model: Any, folder: Path) -> list[str]:
    """What transformers does not report: parameters that may be missing, and tensors that become the same one."""
    sources: defaultdict[tuple[str, str | None], list[str]] = defaultdict(list)
    rename = _renaming(model)
    for name in {entry.name for file in folder.glob("*.safetensors") for entry in read_tensors(file)}:
        sources[rename(name)].append(name)
    problems = [
        f"{' and '.join(sorted(names))} (all are {name})"
        for (name, pattern), names in sources.items()
        if len(names) > 1 and "*" not in (pattern or "")  # a pattern with a star joins many, such as experts
    ]
    forgiven = "|".join(model._keys_to_ignore_on_load_missing or ()) or r"(?!)"
    tied = model.all_tied_weights_keys
    known = {name for name, _ in sources} | {*tied, *tied.values()}
    lacking = {name for name, _ in model.named_parameters(remove_duplicate=False)} - known
    return problems + [
        f"{name} (missing from the checkpoint)" for name in lacking if re.search(forgiven, name)
    ]


def _renaming(model: Any) -> Any:
    """Name in a file -> name in the model, and the pattern of the conversion it takes part in, as transformers does."""
    transforms = get_model_conversion_mapping(model, None, getattr(model, "hf_quantizer", None))
    renamings = [one for one in transforms if isinstance(one, WeightRenaming)]
    converters = [one for one in transforms if isinstance(one, WeightConverter)]
    prefix = model.base_model_prefix
    tensors = dict(model.named_parameters(remove_duplicate=False)) | dict(
        model.named_buffers(remove_duplicate=False)
    )

    def rename(name: str) -> tuple[str, str | None]:
        renamed, pattern = rename_source_key(name, renamings, converters, prefix, tensors)
        if renamed not in tensors and name in tensors:
            renamed, pattern = rename_source_key(name, [], [], prefix, tensors)
        return renamed, pattern

    return rename


def _wrong_packing(model: Any) -> list[str]:
    """Four-bit weights that say to have another shape than their layer; transformers compares no packed shapes."""
    problems = []
    for path, module in model.named_modules():
        state = getattr(getattr(module, "weight", None), "quant_state", None)
        if state is not None and tuple(state.shape) != (wanted := (module.out_features, module.in_features)):
            problems.append(
                f"{path}.weight ({tuple(state.shape)} packed in the checkpoint, {wanted} in the model)"
            )
    return problems
