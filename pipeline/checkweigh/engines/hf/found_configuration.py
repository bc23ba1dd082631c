"""What a loaded model is, read from its modules and not from its configuration file."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from transformers import DynamicCache

from checkweigh import canonical
from checkweigh.engines.effective import NONE, Rotary, neutral, significant, window_text
from checkweigh.engines.hf.tensor_account import is_bitsandbytes

INV_FREQ = "inv_freq"
ACTIVATIONS = ("act_fn", "act", "activation_fn", "activation")
OWN = ("torch.nn.", "transformers.")  # where modules of an unquantized model come from, and
PACKING = ("transformers.integrations.", "transformers.quantizers.")  # of one that was quantized


def found_dtype(model: Any) -> str:
    """The dtype most floating-point weights have (some models keep a few small ones in float32)."""
    sizes: Counter[str] = Counter()
    for parameter in model.parameters():
        if parameter.is_floating_point():
            sizes[str(parameter.dtype).removeprefix("torch.")] += parameter.numel()
    return sizes.most_common(1)[0][0]


def found_quantization(model: Any) -> str:
    """What the modules are, whatever the config says: such as 'bitsandbytes int8: 210/211 linear layers'.

    The head counts as a layer; a tied one is not quantized. What is no plain layer of torch or transformers and
    nothing of bitsandbytes is named by its class, so that it equals nothing that a manifest can ask for.
    """
    kinds: Counter[str] = Counter()
    for module in model.modules():
        if is_bitsandbytes(module):
            kinds[f"bitsandbytes {_bitsandbytes_type(module)}"] += 1
        elif foreign := _foreign(module):
            kinds[foreign] += 1
        elif isinstance(module, torch.nn.Linear):
            kinds[NONE] += 1
    whole = sum(kinds.values())
    plain = kinds.pop(NONE, 0)
    if not kinds:
        return NONE
    double = any(getattr(_state(module), "nested", False) for module in model.modules())
    return (
        f"{' and '.join(sorted(kinds))}: {whole - plain}/{whole} linear layers" + ", constants too" * double
    )


def _state(module: Any) -> Any:
    return getattr(getattr(module, "weight", None), "quant_state", None)


def _bitsandbytes_type(module: Any) -> str:
    return "int8" if type(module).__name__ == "Linear8bitLt" else str(module.weight.quant_type)


def _foreign(module: Any) -> str:
    """What keeps its numbers in another way than plain layers do; empty for those."""
    tensors = {n: t for n, t in (module._parameters | module._buffers).items() if t is not None}
    if not tensors:
        return ""
    kind = type(module)
    home = f"{kind.__module__}."
    if not home.startswith(OWN) or home.startswith(PACKING):
        return f"{kind.__module__}.{kind.__name__}"
    if isinstance(module, torch.nn.Linear) and not tensors.keys() <= {"weight", "bias"}:
        return f"{kind.__name__} with {', '.join(sorted(tensors.keys() - {'weight', 'bias'}))}"
    for name, tensor in module._parameters.items():
        if tensor is None:
            continue
        if type(tensor.data) is not torch.Tensor:
            return f"{kind.__name__} of {type(tensor.data).__name__}"
        if tensor.dtype not in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
            return f"{kind.__name__} with {name} in {str(tensor.dtype).removeprefix('torch.')}"
    return ""


def effective_configuration(model: Any, eos: Iterable[int]) -> dict[str, str]:
    """The effective configuration: the neutral fields, and what else decides numbers on this engine."""
    layers, config = _attention(model), model.config
    fields = neutral(
        rotary=_rotary(model),
        windows=[_window(model, layer) for layer in layers],
        tied_head=_tied(model),
        eos=eos,
    )
    cache = getattr(DynamicCache(config=model.config), "layers", ())
    fields |= {
        "attention": _distinct(getattr(layer, "config", config)._attn_implementation for layer in layers),
        "generation_defaults": NONE,  # its generation config was emptied; only the ids that end a reply are used
        "cache_window": window_text(getattr(layer, "sliding_window", None) for layer in cache),
        "attention_scale": _distinct(getattr(layer, "scaling", None) for layer in layers),
        "attention_softcap": _distinct(getattr(layer, "attn_logit_softcapping", None) for layer in layers),
        "norm": _distinct(
            getattr(module, "variance_epsilon", getattr(module, "eps", None)) for module in model.modules()
        ),
        "activation": _distinct(
            type(child).__name__
            for module in model.modules()
            for name, child in module.named_children()
            if name in ACTIVATIONS
        ),
    }
    rotary_updates = {
        str(kind)
        for module in model.modules()
        for kind in _values(getattr(module, "rope_type", None))
        if kind == "longrope" or "dynamic" in str(kind)
    }
    if rotary_updates:  # frequencies that follow the longest sequence of a batch
        fields["rotary_update"] = _distinct(rotary_updates)
    if details := {_bitsandbytes_settings(module) for module in model.modules() if is_bitsandbytes(module)}:
        fields["quantized_layers"] = _distinct(details)
    return fields


def _values(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else () if value is None else (value,)


def _distinct(values: Iterable[Any]) -> str:
    """The different values, None left out, as JSON."""
    kept = {significant(float(v)) if isinstance(v, (int, float)) else v for v in values if v is not None}
    return canonical.dumps(sorted(kept, key=str)) if kept else NONE


def _attention(model: Any) -> list[Any]:
    """The attention module of every layer, in order."""
    found = [
        module
        for module in model.modules()
        if "Attention" in type(module).__name__ and hasattr(module, "layer_idx")
    ]
    return sorted(found, key=lambda module: int(module.layer_idx or 0))


def _window(model: Any, layer: Any) -> int | None:
    """The tokens an attention module looks back over; None where all.

    Some keep it themselves; others take it from their configuration, if their family makes such masks at all.
    """
    if getattr(layer, "is_sliding", True) is False:
        return None
    if hasattr(layer, "sliding_window"):
        return layer.sliding_window or None
    makes_masks = hasattr(sys.modules[type(model.base_model).__module__], "create_sliding_window_causal_mask")
    return getattr(layer.config, "sliding_window", None) or None if makes_masks else None


def _rotary(model: Any) -> dict[str, Rotary]:
    """Layer kind -> rotary embedding, of every module that keeps inverse frequencies."""
    found: dict[str, Rotary] = {}
    for path, module in model.named_modules():
        for name, buffer in module.named_buffers(recurse=False):
            if not name.endswith(INV_FREQ) or "original" in name:
                continue
            kind = name.removesuffix(INV_FREQ)
            one = Rotary(
                inv_freq=buffer.float().flatten().tolist(),
                dim=2 * buffer.numel(),
                scaling=float(getattr(module, f"{kind}attention_scaling", 1.0)),
            )
            label = kind.rstrip("_") or "all"
            if found.setdefault(label, one) != one:
                found[path] = one
    return found


def _tied(model: Any) -> bool:
    """Whether the head is the table of embeddings itself."""
    head = model.get_output_embeddings()
    return head is not None and head.weight.data_ptr() == model.get_input_embeddings().weight.data_ptr()


def _bitsandbytes_settings(module: Any) -> str:
    """What decides the numbers of a quantized layer."""
    if type(module).__name__ == "Linear8bitLt":
        return f"int8, threshold {module.state.threshold:g}"
    state = module.weight.quant_state
    double = f", constants in blocks of {state.state2.blocksize}" if state.nested else ""
    return (
        f"{state.quant_type}, blocks of {state.blocksize}, computes in {_name(module.compute_dtype)}{double}"
    )


def _name(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")
