"""Whether a vLLM server on a CPU will fit into the host's memory, before it is started."""

from __future__ import annotations

from checkweigh.engines.host_memory import GIB, estimate_model
from checkweigh.engines.spec import EngineSpec
from checkweigh.errors import EngineOutOfMemory
from checkweigh.records.manifest import Quantization, VllmArgs

RUNTIME = int(2.2 * GIB)  # three processes with torch: API server .75, core .65, worker .8 GiB when measured


def require_server_room(spec: EngineSpec, free: int) -> int:
    """Bytes the server is expected to need. EngineOutOfMemory, with all numbers: more than may be used."""
    manifest = spec.manifest
    plain = manifest.model_copy(update={"quantization": Quantization()})
    weights = estimate_model(plain, spec.model_dir).weights
    if spec.draft_dir is not None:
        weights += estimate_model(plain, spec.draft_dir).weights
    cache = cache_bytes(spec)
    need = weights + cache + RUNTIME
    usable = int(free * (1 - manifest.limits.memory_headroom))
    if need > usable:
        raise EngineOutOfMemory(
            f"the server needs about {need / GIB:.2f} GiB (weights {weights / GIB:.2f}, cache {cache / GIB:.2f}, "
            f"runtime {RUNTIME / GIB:.2f}), and {usable / GIB:.2f} GiB may be used: {free / GIB:.2f} GiB are available "
            f"and limits.memory_headroom keeps {manifest.limits.memory_headroom:.0%} of them free"
        )
    return need


def cache_bytes(spec: EngineSpec) -> int:
    """The declared size of the key-value cache."""
    args = spec.manifest.engine.args or VllmArgs()
    if args.kv_cache_memory_bytes is not None:
        return args.kv_cache_memory_bytes
    return int(float(spec.manifest.engine.env.get("VLLM_CPU_KVCACHE_SPACE", "0")) * GIB)
