"""What a vLLM worker has loaded, as one sealed line of its log. Runs inside the server and imports nothing of ours.

vLLM imports this module in every worker before the model is loaded, because ``--worker-extension-cls`` names it. After
the load the worker writes what its modules are, the drafting model's too. No route is opened and nothing is called
later. The seal is an HMAC with the server's own key, so that nothing else that reaches the log can pass for the line.
"""

from __future__ import annotations

import hmac
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

PREFIX = "checkweigh account"
SAMPLES = 6  # frequencies that stand for all: the first, four evenly spaced ones, the last
ACTIVATIONS = ("act_fn", "act", "activation_fn", "activation")
ROUNDING = {"torch.float32": 1e-4, "torch.float16": 2e-3, "torch.bfloat16": 1e-2}


class Account:
    """What the option names. vLLM adds it to its worker; it has no method that could be called."""


def write_after_loading() -> None:
    """Have the worker write its account as soon as it has loaded."""
    from vllm.v1.worker.gpu_worker import Worker

    load = Worker.load_model

    def load_model(self: Any, *arguments: Any, **options: Any) -> Any:
        loaded = load(self, *arguments, **options)
        try:
            account = of_worker(self)
        except Exception as error:  # the server is refused for it, with these words
            account = {"error": f"{type(error).__name__}: {error}"[:500]}
        os.write(2, sealed(account, os.environ["VLLM_API_KEY"]))
        return loaded

    Worker.load_model = load_model


def sealed(account: dict[str, Any], key: str) -> bytes:
    """The line of an account, with a line break before it: another process may be in the middle of one."""
    body = json.dumps(account, sort_keys=True, separators=(",", ":"))
    seal = hmac.new(key.encode(), body.encode(), "sha256").hexdigest()
    return f"\n{PREFIX} {seal} {body}\n".encode()


def of_worker(worker: Any) -> dict[str, Any]:
    """The account of a worker: its place among the others, what it loaded, and how replies end."""
    from vllm.distributed import get_pp_group
    from vllm.tokenizers import cached_tokenizer_from_config

    config, runner = worker.vllm_config, worker.model_runner
    drafter = getattr(runner, "drafter", None) or getattr(runner, "speculator", None)
    draft = getattr(drafter, "model", None)
    ends = config.model_config.try_get_generation_config().get("eos_token_id")
    own = getattr(cached_tokenizer_from_config(config.model_config), "eos_token_id", None)
    stage = get_pp_group()
    return {
        "rank": worker.rank,
        "stage": [stage.rank_in_group, stage.world_size],
        "workers": config.parallel_config.world_size,
        "eos": sorted({*(ends if isinstance(ends, list) else [ends]), own} - {None}),
        "defaults": config.model_config.get_diff_sampling_param(),
        "mapped": sorted(mapped_files()),
        "model": of_model(runner.get_model(), stage.world_size),
        "draft": of_model(draft, 1) if hasattr(draft, "named_modules") else None,
    }


def mapped_files() -> set[str]:
    """Names of the weight files that this process still has mapped: none, because the weights are copies."""
    with open("/proc/self/maps", encoding="utf-8", errors="replace") as maps:
        found = re.findall(r"/([^/\n]+\.(?:safetensors|bin|pt))$", maps.read(), re.MULTILINE)
    return set(found)


def of_model(model: Any, stages: int) -> dict[str, Any]:
    """What the modules of one model are; ``stages`` above 1 where other workers may have its head."""
    from vllm.model_executor.layers.logits_processor import LogitsProcessor

    modules = dict(model.named_modules())
    rotaries: list[dict[str, Any]] = []
    layers: dict[int, list[Any]] = {}
    attention = []
    for name, layer in attention_layers(model, modules):
        attention.append(layer)
        rotary = of_rotary(rotary_of(name, modules))
        if rotary is not None and rotary not in rotaries:
            rotaries.append(rotary)
        number = next((int(part) for part in name.split(".") if part.isdigit()), len(layers))
        place = None if rotary is None else rotaries.index(rotary)
        layers.setdefault(number, [getattr(layer, "sliding_window", None) or None, place])
    impls = [layer.impl for layer in attention]
    logits = [m for m in modules.values() if isinstance(m, LogitsProcessor)]
    return {
        "architecture": type(model).__name__,
        "layers": runs(layers),
        "rotaries": rotaries or [*buffered(modules)],
        "tied": tied(modules.values(), stages),
        "modules": dict(Counter(kinds(modules.values()))),
        "backend": distinct(type(impl).__name__ for impl in impls),
        "cache": distinct(getattr(layer, "kv_cache_dtype", None) for layer in attention),
        "scale": distinct(getattr(impl, "scale", None) for impl in impls),
        "softcap": distinct(getattr(impl, "logits_soft_cap", None) or None for impl in impls),
        "logits": distinct(json.dumps([float(m.scale), getattr(m, "soft_cap", None)]) for m in logits),
        "norm": distinct(getattr(m, "variance_epsilon", getattr(m, "eps", None)) for m in modules.values()),
        "activation": distinct(
            type(child).__name__
            for module in modules.values()
            for name, child in module.named_children()
            if name in ACTIVATIONS
        ),
    }


def attention_layers(model: Any, modules: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Name and module of every decoder layer's attention. vLLM's wrapper of transformers keeps them apart."""
    from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase

    for name, module in modules.items():
        if isinstance(module, AttentionLayerBase) and getattr(module, "attn_type", "decoder") == "decoder":
            yield name, module
    for number, module in dict(getattr(model, "attention_instances", None) or {}).items():
        yield str(number), module


def rotary_of(name: str, modules: dict[str, Any]) -> Any:
    """The rotary embedding of the layer that an attention module belongs to; None where it has none."""
    parts = name.split(".")
    for count in range(len(parts) - 1, 0, -1):
        parent: Any = modules.get(".".join(parts[:count]))
        if hasattr(parent, "rotary_emb"):
            return parent.rotary_emb
    return None


def of_rotary(rotary: Any) -> dict[str, Any] | None:
    """Angles of position 1 (the inverse frequencies as they are used) and their length (the factor on both).

    None for one of transformers' own, which ``buffered`` reads. The table that is held is rounded to the model's
    dtype, so it is computed again as vLLM computes it, and the two are compared. ValueError: they differ.
    """
    if rotary is None or any(
        name.endswith("inv_freq") for name, _ in getattr(rotary, "named_buffers", tuple)()
    ):
        return None
    if hasattr(rotary, "long_short_cos_sin_cache"):
        long = rotary.use_long_rope
        longest = rotary.max_position_embeddings if long else rotary.original_max_position_embeddings
        table = rotary._compute_cos_sin_cache(
            longest,
            rotary.long_factor if long else rotary.short_factor,
            rotary.long_mscale if long else rotary.short_mscale,
        )
        held = rotary.long_short_cos_sin_cache[rotary.original_max_position_embeddings if long else 0 :]
    else:
        table, held = rotary._compute_cos_sin_cache(), rotary.cos_sin_cache
    exact, used = table[1].cpu().double(), held[1].cpu().double()
    if exact.shape != used.shape or (exact - used).abs().max().item() > ROUNDING[str(held.dtype)]:
        raise ValueError(f"{type(rotary).__name__} holds another table than it computes")
    cos, sin = exact.chunk(2)
    return sample(sin.atan2(cos).tolist(), (cos.square() + sin.square()).sqrt().mean().item())


def buffered(modules: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Rotary embeddings of transformers' own modules, which vLLM serves where it has no model of its own."""
    for module in modules.values():
        for name, buffer in module.named_buffers(recurse=False):
            if name.endswith("inv_freq") and "original" not in name:
                kind = name.removesuffix("inv_freq")
                factor = float(getattr(module, f"{kind}attention_scaling", 1.0))
                yield sample(buffer.float().flatten().tolist(), factor) | {"kind": kind.rstrip("_") or "all"}


def sample(frequencies: list[float], factor: float) -> dict[str, Any]:
    """Six of the inverse frequencies, the rotated dimensions, and the factor on sine and cosine."""
    places = [round(i * (len(frequencies) - 1) / (SAMPLES - 1)) for i in range(SAMPLES)]
    return {
        "inv_freq": [float(f"{frequencies[at]:.7g}") for at in places],
        "dim": 2 * len(frequencies),
        "scaling": float(f"{factor:.7g}"),
    }


def runs(layers: dict[int, list[Any]]) -> list[list[Any]]:
    """Layers as [first, count, window, place of its rotary embedding], like neighbours as one."""
    found: list[list[Any]] = []
    for number in sorted(layers):
        if found and found[-1][2:] == layers[number] and number == found[-1][0] + found[-1][1]:
            found[-1][1] += 1
        else:
            found.append([number, 1, *layers[number]])
    return found


def tied(modules: Iterable[Any], stages: int) -> bool | None:
    """Whether the head's weights are the table of embeddings itself; None where another worker has the head."""
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding

    modules = list(modules)
    head = next((m for m in modules if isinstance(m, ParallelLMHead)), None)
    tables = [m for m in modules if isinstance(m, VocabParallelEmbedding) and m is not head]
    if head is None:  # such a model multiplies by its table, where no other stage has the head
        return None if stages > 1 else bool(tables)
    weight = getattr(head, "weight", None)
    return weight is not None and weight.data_ptr() in [
        table.weight.data_ptr() for table in tables if getattr(table, "weight", None) is not None
    ]


def kinds(modules: Iterable[Any]) -> Iterator[str]:
    """How each module that multiplies keeps its weights: ``none``, or the class that computes with them."""
    for module in modules:
        method = getattr(module, "quant_method", None)
        name = type(getattr(module, "scheme", None) or method).__name__
        if method is None or "KVCache" in name or name == "UnquantizedEmbeddingMethod":
            continue
        yield "none" if "Unquantized" in name else name


def distinct(values: Iterable[Any]) -> list[Any]:
    """The different values, None left out."""
    kept = {float(f"{v:.6g}") if isinstance(v, float) else v for v in values if v is not None}
    return sorted(kept, key=str)


if "vllm" in sys.modules:  # inside a server; elsewhere only the form of the line is wanted
    write_after_loading()
