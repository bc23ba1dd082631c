"""Loading a model with transformers, and finding out what was really loaded."""

from __future__ import annotations

import logging
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from checkweigh.engines.spec import EngineSpec
from checkweigh.errors import BadInput, EngineError
from checkweigh.records.manifest import Manifest
from checkweigh.records.measurement import EngineIdentity

Tensor = Any  # torch is not type-checked here
Head = Callable[[Tensor], Tensor]
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """A model that is ready, and what scoring and generation need to know of it."""

    model: Any
    base: Any  # the decoder without its head; gives hidden states after the last norm
    head: Head  # (N, hidden) -> (N, vocabulary) float32, the model's own scale and softcap applied
    scale: float
    softcap: float | None
    tokenizer: Any
    device: Any
    prefix_id: int
    eos: tuple[int, ...]
    pad: int
    shares: bool  # whether branches of one context may be scored in one row (``shares_context``)
    identity: EngineIdentity


def load(spec: EngineSpec) -> LoadedModel:
    """Load ``spec`` from its local directories.

    Raises BadInput (adapters, no such device) and EngineError (what was loaded is not what was asked for).
    """
    manifest = spec.manifest
    _check_supported(manifest)
    _quiet()
    torch.set_num_threads(manifest.engine.threads)
    tokenizer = AutoTokenizer.from_pretrained(
        str(spec.tokenizer_dir), local_files_only=True, trust_remote_code=False
    )
    model = AutoModelForCausalLM.from_pretrained(
        str(spec.model_dir),
        local_files_only=True,
        trust_remote_code=False,
        use_safetensors=True,
        dtype=DTYPES[manifest.engine.dtype],
        quantization_config=_quantization(manifest),
        device_map={"": manifest.engine.device},
    ).eval()
    longest = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if longest is not None and manifest.limits.max_sequence > longest:
        raise BadInput(
            f"limits.max_sequence: expected at most the model's {longest}, found {manifest.limits.max_sequence}"
        )
    eos = _eos(model, tokenizer)
    # Before anything runs: bitsandbytes repacks its weights when first used.
    identity = _identity(manifest, model, eos)
    prefix = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else (eos[0] if eos else None)
    if prefix is None:
        raise BadInput("the tokenizer has neither a BOS nor an EOS token; raw text cannot be scored")
    device = next(model.parameters()).device
    base = model.base_model
    head, scale, softcap = _head(model, base, device)
    return LoadedModel(
        model=model,
        base=base,
        head=head,
        scale=scale,
        softcap=softcap,
        tokenizer=tokenizer,
        device=device,
        prefix_id=prefix,
        eos=eos,
        pad=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else prefix,
        shares=shares_context(model.config),
        identity=identity,
    )


def _check_supported(manifest: Manifest) -> None:
    """BadInput: adapters, or a device that this host does not have."""
    if manifest.model.adapters:
        raise BadInput("model.adapters: LoRA adapters are not built yet for engine transformers")
    if manifest.engine.device == "cuda" and not torch.cuda.is_available():
        raise BadInput("engine.device: cuda, but torch finds no CUDA device here")
    if manifest.engine.device == "mps" and not torch.backends.mps.is_available():
        raise BadInput("engine.device: mps, but torch finds no Apple GPU here")


def _quiet() -> None:
    """Silence what libraries say for every layer and call; errors still reach the log."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", module=r"(bitsandbytes|torch|transformers)(\.|$)")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def _quantization(manifest: Manifest) -> BitsAndBytesConfig | None:
    wanted = manifest.quantization
    if wanted.method == "none":
        return None
    if wanted.bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=wanted.type,
        bnb_4bit_compute_dtype=DTYPES[manifest.engine.dtype],
        bnb_4bit_use_double_quant=wanted.double,
    )


def _eos(model: Any, tokenizer: Any) -> tuple[int, ...]:
    """Every id that ends a reply: the generation config's, the model config's and the tokenizer's.

    Of the generation config nothing else is used, so it cannot change the pinned sampling.
    """
    ids: set[int] = set()
    for value in (model.generation_config.eos_token_id, model.config.eos_token_id, tokenizer.eos_token_id):
        ids.update(value if isinstance(value, list) else [] if value is None else [value])
    return tuple(sorted(ids))


def shares_context(config: Any) -> bool:
    """Whether an explicit attention mask and positions decide all that a token sees.

    So it is with rotary positions and full attention in every layer. Elsewhere (sliding windows, recurrent
    layers, ALiBi) each continuation is scored in a row of its own.
    """
    config = config.get_text_config()
    if not getattr(config, "rope_parameters", None):
        return False
    kinds = set(getattr(config, "layer_types", None) or ("full_attention",))
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    return kinds == {"full_attention"} and not window


def _head(model: Any, base: Any, device: Any) -> tuple[Head, float, float | None]:
    """The model's own head, its own scale and softcap, found by comparing with the model's logits.

    EngineError: none of the known transformations gives what the model itself gives.
    """
    config = model.config.get_text_config()
    layer = model.get_output_embeddings()
    softcap = getattr(config, "final_logit_softcapping", None)
    multiply, divide = getattr(config, "logit_scale", None), getattr(config, "logits_scaling", None)
    scales = [1.0, *([multiply] if multiply else []), *([1 / divide, divide] if divide else [])]
    ids = torch.arange(3, 11, device=device).unsqueeze(0) % config.vocab_size
    with torch.inference_mode():
        hidden = base(input_ids=ids, use_cache=False).last_hidden_state[0]
        wanted = model(input_ids=ids, use_cache=False).logits[0].float()
        for scale in scales:
            head = head_of(layer, float(scale), softcap)
            error = (head(hidden) - wanted).abs().max().item()
            if error <= 0.01 * max(1.0, wanted.abs().max().item()):
                return head, float(scale), softcap
    raise EngineError(
        f"{type(model).__name__} changes its logits in a way this engine does not know",
        cause=f"its own logits differ from the head's by up to {error:.3g}",
    )


def head_of(layer: Head, scale: float, softcap: float | None) -> Head:
    """``layer`` with its logits in float32, scaled and capped."""

    def head(hidden: Tensor) -> Tensor:
        logits = layer(hidden).float()
        if scale != 1.0:
            logits = logits * scale
        return torch.tanh(logits / softcap) * softcap if softcap else logits

    return head


def found_dtype(model: Any) -> str:
    """The dtype most floating-point weights have (some models keep a few small ones in float32)."""
    sizes: Counter[str] = Counter()
    for parameter in model.parameters():
        if parameter.is_floating_point():
            sizes[str(parameter.dtype).removeprefix("torch.")] += parameter.numel()
    return sizes.most_common(1)[0][0]


def found_quantization(model: Any) -> str:
    """What the modules are, whatever the config says: such as 'bitsandbytes int8: 210/211 linear layers'.

    The head counts as a layer; a tied one is not quantized.
    """
    kinds: Counter[tuple[str, str]] = Counter()
    for module in model.modules():
        name = type(module).__name__
        if name == "Linear8bitLt":
            kinds["int8", ""] += 1
        elif name == "Linear4bit":
            double = ", constants too" if getattr(module.weight.quant_state, "nested", False) else ""
            kinds[f"{module.weight.quant_type}", double] += 1
        elif isinstance(module, torch.nn.Linear):
            kinds["none", ""] += 1
    whole = sum(kinds.values())
    plain = kinds.pop(("none", ""), 0)
    if not kinds:
        return "none"
    if len(kinds) > 1:
        raise EngineError(f"layers of several quantizations: {dict(kinds)}")
    ((kind, double),) = kinds
    return f"bitsandbytes {kind}: {whole - plain}/{whole} linear layers{double}"


def _identity(manifest: Manifest, model: Any, eos: tuple[int, ...]) -> EngineIdentity:
    """What was found, never what was asked for. EngineError: the two contradict each other."""
    quantization = found_quantization(model)
    wanted = manifest.quantization
    if not quantization.startswith("none" if wanted.type is None else f"bitsandbytes {wanted.type}"):
        raise EngineError(
            f"quantization {wanted.type or 'none'} was asked for, but loaded is: {quantization}"
        )
    dtype = found_dtype(model)
    if dtype != manifest.engine.dtype:
        raise EngineError(f"dtype {manifest.engine.dtype} was asked for, but loaded is: {dtype}")
    packages = ["torch", "transformers", "tokenizers", "safetensors"]
    packages += ["bitsandbytes"] if wanted.method == "bitsandbytes" else []
    return EngineIdentity(
        kind="transformers",
        version=transformers.__version__,
        dtype=dtype,
        device=next(model.parameters()).device.type,
        quantization=quantization,
        threads=torch.get_num_threads(),
        max_sequence=manifest.limits.max_sequence,
        vocabulary_size=model.get_input_embeddings().weight.shape[0],
        eos=eos,
        packages={name: version(name) for name in sorted(packages)},
    )
