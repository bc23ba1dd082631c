"""The manifests that benchmarks/gpu/run.sh gates: the shipped ones, moved to a device and to one version of vLLM."""

from __future__ import annotations

import argparse
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
CPU_ENV = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "0-1"}
# Nothing is sampled; FlashInfer may be absent, and then vLLM 0.22 does not start without this.
GPU_ENV = {"VLLM_USE_FLASHINFER_SAMPLER": "0"}
NGRAM = {"method": "ngram", "num_tokens": 4, "max_ngram": 4, "min_ngram": 2}


def documents(spec: str, device: str, interpreter: Path | None) -> dict[str, dict[str, Any]]:
    """Name -> manifest. ``interpreter``: a Python that has vLLM already; None: the lock that was installed."""
    base = yaml.safe_load((ROOT / "manifests" / "smollm2-135m.yaml").read_text())
    args: dict[str, Any] = {"max_num_seqs": 64, "prefix_caching": True, "chunked_prefill": True}
    if device == "cpu":
        args |= {"enforce_eager": True, "max_num_seqs": 16}
    else:
        args["gpu_memory_utilization"] = 0.3  # both arms run while they are timed, on one device
    environment = (
        {"lock": "engine.txt"} if interpreter is None else {"interpreter": str(interpreter.absolute())}
    )
    vllm = base["engine"] | {
        "kind": "vllm", "version": spec.partition("==")[2], "device": device, "environment": environment,
        "env": CPU_ENV if device == "cpu" else GPU_ENV, "args": args,
    }  # fmt: skip
    own = base["engine"] | {"device": device, "version": metadata.version("transformers")}
    engines = {
        "vllm": vllm,
        "vllm-same": vllm | {"args": args | {"max_num_batched_tokens": 4096}},
        "vllm-ngram": vllm | {"speculative": NGRAM},
        "transformers": own,
        "transformers-continuous": own | {"continuous": True},
    }
    return {name: base | {"name": name, "comment": "", "engine": engine} for name, engine in engines.items()}


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--spec", required=True)
    parser.add_argument("--device", choices=("cuda", "cpu"), required=True)
    parser.add_argument("--interpreter", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    for name, document in documents(options.spec, options.device, options.interpreter).items():
        (options.out / f"{name}.yaml").write_text(yaml.safe_dump(document, sort_keys=False))


if __name__ == "__main__":
    main()
