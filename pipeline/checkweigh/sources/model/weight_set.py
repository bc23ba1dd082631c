"""Which files of a folder are its weights, and that they are one set: engines choose differently between two.

transformers takes ``model.safetensors`` before an index, and never looks into a shard that the index leaves out. vLLM
takes ``consolidated*.safetensors`` first, then every safetensors file that an index names, or all that are there.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from checkweigh.errors import Problem, SourceError
from checkweigh.records.manifest import Model
from checkweigh.sources.model.model_directory import Files, read_json_object
from checkweigh.sources.model.safetensors_header import TensorEntry, read_tensors

PICKLES = frozenset({".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".msgpack", ".h5", ".joblib"})
NO_WEIGHTS = (
    "training_args.bin",
    "optimizer.bin",
    "optimizer.pt",
    "scheduler.pt",
    "scaler.pt",
)  # of a trainer
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json")
ONE_SET = "one set of weights (remove the other)"
SHOWN = 3  # names of tensors in one problem
Headers = Mapping[str, Sequence[TensorEntry]]  # file name -> its tensors


def weight_files(files: Files) -> list[Path]:
    """The files that decide the weights: safetensors, their indexes, pickles, code. They lie in the folder itself."""
    endings = (".safetensors", ".safetensors.index.json", ".py", *PICKLES)
    return [path for name, path in files.items() if "/" not in name and name.endswith(endings)]


def read_headers(files: Files) -> tuple[Headers, list[Problem]]:
    """The tensors of every safetensors file, and what is wrong with the headers."""
    headers: dict[str, list[TensorEntry]] = {}
    problems = []
    for path in weight_files(files):
        if path.suffix == ".safetensors":
            try:
                headers[path.name] = read_tensors(path)
            except SourceError as error:
                found = str(error).partition("found ")[2] or str(error)
                problems.append(_problem(path, "a whole safetensors file", found))
    return headers, problems


def weight_problems(
    folder: Path, files: Files, model: Model, engine: str, headers: Headers
) -> Iterator[Problem]:
    """Pickles and code that are not allowed, more or less than one set of weights, an index that is stale."""
    paths = {path.name: path for path in weight_files(files)}
    pickles = [name for name in paths if name.endswith(tuple(PICKLES)) and name not in NO_WEIGHTS]
    code = [name for name in paths if name.endswith(".py")]
    if pickles and not model.unsafe_pickle:
        why = "pickles are refused, because loading one runs its code (model.unsafe_pickle: true allows it)"
        yield _problem(folder, "safetensors only", f"{', '.join(pickles)}: {why}")
    if code and not model.unsafe_remote_code:
        yield _problem(folder, "no code", f"remote code ({', '.join(code)}), which is refused "
                                          "(model.unsafe_remote_code: true allows it)")  # fmt: skip
    tensors = [name for name in paths if name.endswith(".safetensors")]
    loaded = pickles if model.unsafe_pickle else []
    if not tensors and not loaded:
        yield _problem(folder, "*.safetensors", "none")
    elif engine == "transformers" and not {SINGLE, INDEX, *PICKLED} & files.keys():
        yield _problem(folder, f"{SINGLE} or {INDEX}, which transformers reads", _some(tensors or loaded))
    yield from _second_sets(folder, files, tensors, loaded)
    if INDEX in paths:
        yield from _index_problems(paths[INDEX], tensors, headers)
    else:
        yield from _shared_names(folder, tensors, headers)


def _second_sets(folder: Path, files: Files, tensors: list[str], pickles: list[str]) -> Iterator[Problem]:
    """Weights beside weights. One of the two is to be removed; which one is the user's to know."""
    if tensors and pickles:
        yield _problem(folder, ONE_SET, f"pickles ({', '.join(pickles)}) beside {_some(tensors)}")
    if all(name in pickles or name in files for name in PICKLED):
        yield _problem(folder, ONE_SET, " beside ".join(PICKLED))
    if mistral := [name for name in tensors if name.startswith("consolidated")]:
        yield _problem(
            folder, "weights as transformers names them (remove these; a hub's are not fetched)",
            f"{_some(mistral)}, which vLLM takes before all others",
        )  # fmt: skip
    if adapter := [name for name in files if name in ("adapter_config.json", "adapter_model.safetensors")]:
        yield _problem(
            folder, "a whole model (an adapter belongs under model.adapters, in a folder of its own)",
            f"{', '.join(adapter)}, an adapter that would be loaded unasked",
        )  # fmt: skip
    indexes = [n for n in files if "/" not in n and n.endswith(".safetensors.index.json") and n != INDEX]
    if indexes:
        yield _problem(folder, f"no index but {INDEX}", ", ".join(indexes))


def _index_problems(index: Path, shards: list[str], headers: Headers) -> Iterator[Problem]:
    """The index names exactly the tensors that its shards hold, and every shard is named."""
    try:
        weight_map = read_json_object(index).get("weight_map")
    except SourceError as error:
        yield _problem(index, "an index", str(error))
        return
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        yield _problem(index, "tensor names and their files", "something else", "weight_map")
        return
    named: dict[str, set[str]] = defaultdict(set)
    for name, shard in weight_map.items():
        named[shard].add(name)
    if SINGLE in shards and SINGLE not in named:
        found = f"{SINGLE} beside {INDEX}: transformers takes the first, vLLM the second"
        yield _problem(index.parent, ONE_SET, found)
    for shard in sorted(named.keys() - set(shards)):
        yield _problem(index, f"{shard} beside it", "no such file", "weight_map")
    for shard in sorted(set(shards) - named.keys() - {SINGLE}):
        yield _problem(index.parent / shard, f"a shard that {INDEX} names", "one that it does not name")
    for shard in sorted(named.keys() & headers.keys()):
        held = {tensor.name for tensor in headers[shard]}
        if gone := sorted(named[shard] - held):
            yield _problem(
                index, f"tensors that {shard} holds", f"{_some(gone)}, which it lacks", "weight_map"
            )
        if more := sorted(held - named[shard]):
            found = f"another place, or none, for {_some(more)}"
            yield _problem(index, f"every tensor that {shard} holds", found, "weight_map")


def _shared_names(folder: Path, tensors: list[str], headers: Headers) -> Iterator[Problem]:
    """Without an index: no tensor in two files, of which an engine would take either."""
    first: dict[str, str] = {}
    shared: dict[tuple[str, str], list[str]] = defaultdict(list)
    for file in tensors:
        for tensor in headers.get(file, ()):
            other = first.setdefault(tensor.name, file)
            if other != file:
                shared[other, file].append(tensor.name)
    for (one, two), names in shared.items():
        yield _problem(folder, ONE_SET, f"{one} beside {two}, which both hold {_some(names)}")


def _some(names: list[str]) -> str:
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")


def _problem(file: Path, expected: str, found: str, path: str = "") -> Problem:
    return Problem(file=str(file), line=None, path=path, expected=expected, found=found)
