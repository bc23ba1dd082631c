"""Memory of this process, and whether a model will fit before it is loaded."""

from __future__ import annotations

import json
import re
import struct
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from checkweigh.engines.protocol import Resources
from checkweigh.errors import BadInput, EngineOutOfMemory
from checkweigh.records.manifest import Manifest, Quantization

BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
WIDTH = {"bfloat16": 2, "float16": 2, "float32": 4}
RUNTIME = 900 << 20  # Python, torch and transformers themselves; 600-850 MiB when measured on a CPU
HEAD_ROWS = 64  # rows of logits that exist at once while scoring
GIB = 1 << 30
MAX_HEADER = 100 << 20
GROUP = Path("/sys/fs/cgroup")  # of this process, in a container


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderShape:
    """What decides a decoder's memory beside its weights."""

    layers: int
    hidden: int
    intermediate: int
    kv_heads: int
    head_dim: int
    vocabulary: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryEstimate:
    """Bytes a model is expected to need at most, by part."""

    weights: int
    kv_cache: int
    activations: int
    logits: int
    runtime: int = RUNTIME

    @property
    def total(self) -> int:
        """Bytes in all."""
        return self.weights + self.kv_cache + self.activations + self.logits + self.runtime

    def with_draft(self, draft: MemoryEstimate) -> MemoryEstimate:
        """Both models in one process; they compute in turn, so that the larger activations and logits count."""
        return MemoryEstimate(
            weights=self.weights + draft.weights,
            kv_cache=self.kv_cache + draft.kv_cache,
            activations=max(self.activations, draft.activations),
            logits=max(self.logits, draft.logits),
            runtime=self.runtime,
        )


def shape_of(config: Mapping[str, Any]) -> DecoderShape:
    """The shape in a ``config.json``. BadInput: a needed key is missing."""
    config = config.get("text_config") or config
    try:
        heads = int(config["num_attention_heads"])
        hidden = int(config["hidden_size"])
        return DecoderShape(
            layers=int(config["num_hidden_layers"]),
            hidden=hidden,
            intermediate=int(config.get("intermediate_size") or 4 * hidden),
            kv_heads=int(config.get("num_key_value_heads") or heads),
            head_dim=int(config.get("head_dim") or hidden // heads),
            vocabulary=int(config["vocab_size"]),
        )
    except KeyError as error:
        raise BadInput(f"config.json: {error.args[0]} is missing; its memory cannot be estimated") from error


def kv_budget(manifest: Manifest) -> int:
    """Tokens that may lie in the KV cache at once.

    Generation splits a batch into parts whose rows times (longest prompt + new tokens) stay within it, so the
    estimate is a bound: twice the scoring budget, enough for ``max_batch`` prompts of 256 tokens, and never
    less than one sequence of the longest length allowed.
    """
    room = manifest.engine.max_batch * (256 + manifest.sampling.max_tokens)
    return max(2 * manifest.engine.max_batch_tokens, room, manifest.limits.max_sequence)


def stored_elements(header: Mapping[str, Any]) -> dict[str, int]:
    """Dtype -> number of elements, from the header of a safetensors file."""
    counts: dict[str, int] = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        count = 1
        for size in entry["shape"]:
            count *= size
        counts[entry["dtype"]] = counts.get(entry["dtype"], 0) + count
    return counts


def estimate_memory(manifest: Manifest, shape: DecoderShape, elements: Mapping[str, int]) -> MemoryEstimate:
    """An upper bound, in bytes. Pure.

    Floating-point weights are held in ``engine.dtype``. Quantized weights are loaded in that dtype first and
    stand beside their quantized copy (1 byte or 0.5 byte a weight) while they are made. The cache is counted
    twice over one layer, which is copied as it grows; activations are those of the largest padded batch: six
    hidden states, three of the feed-forward width, and a mask of batch tokens x longest sequence. The int8 of
    bitsandbytes was seen to keep about 2 bytes for each input of each linear layer of the largest batch
    (1.4 GB for 4,096 tokens of SmolLM2-135M); 3 are counted.
    """
    width = WIDTH[manifest.engine.dtype]
    weights = sum(n * (width if t.startswith(("F", "BF")) else BYTES.get(t, 8)) for t, n in elements.items())
    if manifest.quantization.method != "none":
        weights += sum(elements.values()) * (manifest.quantization.bits or 8) // 8
    longest = manifest.limits.max_sequence
    tokens = max(manifest.engine.max_batch_tokens, longest)
    layer = 2 * shape.kv_heads * shape.head_dim * width
    activations = tokens * width * (6 * shape.hidden + 3 * shape.intermediate + longest)
    if manifest.quantization.type == "int8":
        activations += 3 * tokens * shape.layers * (6 * shape.hidden + shape.intermediate)
    return MemoryEstimate(
        weights=weights,
        kv_cache=kv_budget(manifest) * layer * (shape.layers + 1),
        activations=activations,
        logits=max(HEAD_ROWS, manifest.engine.max_batch) * shape.vocabulary * (width + 4 + 4),
    )


def require_fit(need: MemoryEstimate, available: int, headroom: float) -> None:
    """Pure. EngineOutOfMemory, with all numbers: ``need`` exceeds ``available`` bytes less the headroom."""
    usable = int(available * (1 - headroom))
    if need.total <= usable:
        return
    parts = ", ".join(
        f"{name} {getattr(need, name) / GIB:.2f}"
        for name in ("weights", "kv_cache", "activations", "logits", "runtime")
    )
    raise EngineOutOfMemory(
        f"the model needs about {need.total / GIB:.2f} GiB ({parts}), "
        f"and {usable / GIB:.2f} GiB may be used: {available / GIB:.2f} GiB are available "
        f"and limits.memory_headroom keeps {headroom:.0%} of them free"
    )


def read_header(path: Path) -> dict[str, Any]:
    """The JSON header of a safetensors file. BadInput: it is none."""
    with path.open("rb") as file:
        start = file.read(8)
        size = struct.unpack("<Q", start)[0] if len(start) == 8 else MAX_HEADER + 1
        if size > MAX_HEADER:
            raise BadInput(f"{path.name} is no safetensors file")
        try:
            header = json.loads(file.read(size))
        except ValueError as error:
            raise BadInput(f"{path.name} is no safetensors file: {error}") from error
    if not isinstance(header, dict):
        raise BadInput(f"{path.name} is no safetensors file")
    return header


def memory_limits(group: Path = GROUP) -> list[tuple[int, int]]:
    """Bytes free, and in all: of this host and, where the control group this process runs in has a limit, of that.

    What a group holds of files that nobody used of late counts as free, as it does for the host: it makes way.
    """
    host = psutil.virtual_memory()
    limits = [(int(host.available), int(host.total))]
    with suppress(OSError, ValueError):
        limit = int((group / "memory.max").read_text())
        used = int((group / "memory.current").read_text())
        idle = re.search(r"^inactive_file (\d+)$", (group / "memory.stat").read_text(), re.M)
        limits.append((max(0, limit - used + (int(idle.group(1)) if idle else 0)), limit))
    return limits


def available() -> int:
    """Bytes this host, or the control group this process runs in, can still give."""
    return min(free for free, _ in memory_limits())


def require_room(
    manifest: Manifest, model_dir: Path, free: int, draft_dir: Path | None = None
) -> MemoryEstimate:
    """Estimate the model in ``model_dir``, and the one that drafts, and require them to fit into ``free`` bytes.

    Raises EngineOutOfMemory, or BadInput when a directory holds no config or no safetensors.
    """
    need = estimate_model(manifest, model_dir)
    if draft_dir is not None:  # never quantized, and the runtime stands once
        plain = manifest.model_copy(update={"quantization": Quantization()})
        need = need.with_draft(estimate_model(plain, draft_dir))
    require_fit(need, free, manifest.limits.memory_headroom)
    return need


def estimate_model(manifest: Manifest, model_dir: Path) -> MemoryEstimate:
    """The estimate of the model in a directory. BadInput: it holds no config or no safetensors."""
    try:
        config = json.loads((model_dir / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadInput(f"{model_dir / 'config.json'} cannot be read: {error}") from error
    files = sorted(model_dir.glob("*.safetensors"))
    if not files:
        raise BadInput(f"{model_dir} holds no safetensors file; other formats are not loaded")
    elements: dict[str, int] = {}
    for file in files:
        for dtype, count in stored_elements(read_header(file)).items():
            elements[dtype] = elements.get(dtype, 0) + count
    return estimate_memory(manifest, shape_of(config), elements)


def swap_activity() -> int:
    """Bytes that this host has moved to and from swap since it started."""
    counters = psutil.swap_memory()
    return int(counters.sin + counters.sout)


def process_memory(*, reset_peak: bool) -> Resources:
    """This process: resident, its peak since the last reset, and what of it lies in swap.

    On Linux from ``/proc/self/status``, whose peak starts anew through ``/proc/self/clear_refs``. Elsewhere
    psutil knows the resident size only: the peak is then the present size and swap reads 0.
    """
    if sys.platform != "linux":
        now = int(psutil.Process().memory_info().rss)
        return Resources(resident=now, peak=now, swapped=0)
    sizes = {"VmRSS": 0, "VmHWM": 0, "VmSwap": 0}
    for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
        name, _, rest = line.partition(":")
        if name in sizes:
            sizes[name] = int(rest.split()[0]) * 1024
    if reset_peak:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    peak = max(sizes["VmHWM"], sizes["VmRSS"])
    return Resources(resident=sizes["VmRSS"], peak=peak, swapped=sizes["VmSwap"])
