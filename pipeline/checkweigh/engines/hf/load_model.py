"""Loading a model with transformers, and finding out what was really loaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, GenerationConfig

from checkweigh import canonical
from checkweigh.engines.effective import significant
from checkweigh.engines.hf.file_mappings import leave_files
from checkweigh.engines.hf.found_configuration import effective_configuration, found_dtype, found_quantization
from checkweigh.engines.hf.library_warnings import listen
from checkweigh.engines.hf.tensor_account import require_expected, require_whole
from checkweigh.engines.spec import EngineSpec
from checkweigh.errors import BadInput, EngineError
from checkweigh.records.manifest import Manifest, Quantization
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
    """Load ``spec`` from its local directories, of which nothing is read or used afterwards.

    Raises BadInput (adapters, no such device; what was loaded is not what was asked for or what the files hold) and
    EngineError (logits that this engine does not understand; a file that is still mapped).
    """
    manifest = spec.manifest
    _check_supported(manifest)
    torch.set_num_threads(manifest.engine.threads)
    tokenizer = AutoTokenizer.from_pretrained(
        str(spec.tokenizer_dir), local_files_only=True, trust_remote_code=False
    )
    model = load_weights(f"{manifest.name}: model", spec.model_dir, manifest, manifest.quantization)
    longest = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if longest is not None and manifest.limits.max_sequence > longest:
        raise BadInput(
            f"limits.max_sequence: expected at most the model's {longest}, found {manifest.limits.max_sequence}"
        )
    eos = _eos(model, tokenizer)
    # transformers fills what a call leaves open from it.
    model.generation_config = GenerationConfig()
    # Before anything runs: bitsandbytes repacks its weights when first used.
    quantization = found_quantization(model)
    prefix = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else (eos[0] if eos else None)
    if prefix is None:
        raise BadInput("the tokenizer has neither a BOS nor an EOS token; raw text cannot be scored")
    device = next(model.parameters()).device
    base = model.base_model
    head, scale, softcap = _head(model, base, device)
    logits = {"scale": significant(scale), "softcap": softcap}
    effective = effective_configuration(model, eos) | {"logits": canonical.dumps(logits)}
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
        identity=_identity(manifest, model, eos, quantization, effective),
    )


def load_weights(where: str, folder: Path, manifest: Manifest, wanted: Quantization) -> Any:
    """The model in ``folder``, quantized as ``wanted``, with an account of every tensor and off its files.

    ``where`` names it in errors. BadInput: its files are not exactly the tensors of its architecture, or what was
    loaded is not what was asked for. EngineError: a file is still mapped.
    """
    config = AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    stated = _stated_quantization(where, config, wanted)
    require_expected(where, folder, config)
    listen()  # building an architecture is no news
    if stated is not None:  # computed in the manifest's dtype, whatever was written down when it was saved
        config.quantization_config = stated | {"bnb_4bit_compute_dtype": manifest.engine.dtype}
    model, info = AutoModelForCausalLM.from_pretrained(
        str(folder),
        config=config,
        local_files_only=True,
        trust_remote_code=False,
        use_safetensors=True,
        dtype=DTYPES[manifest.engine.dtype],
        quantization_config=_quantization(manifest, wanted) if stated is None else None,
        device_map={"": manifest.engine.device},
        ignore_mismatched_sizes=True,  # they are refused below, by name
        output_loading_info=True,
    )
    require_whole(where, folder, model, info)
    _require_wanted(where, manifest, model, wanted)
    leave_files([folder])
    return model.eval()


def _check_supported(manifest: Manifest) -> None:
    """BadInput: adapters, or a device that this host does not have."""
    if manifest.model.adapters:
        raise BadInput("model.adapters: LoRA adapters are not built yet for engine transformers")
    if manifest.engine.device == "cuda" and not torch.cuda.is_available():
        raise BadInput("engine.device: cuda, but torch finds no CUDA device here")
    if manifest.engine.device == "mps" and not torch.backends.mps.is_available():
        raise BadInput("engine.device: mps, but torch finds no Apple GPU here")


def _stated_quantization(where: str, config: Any, wanted: Quantization) -> dict[str, Any] | None:
    """How the checkpoint says that it was saved; None: not quantized. BadInput: not as the manifest says."""
    stated = getattr(config, "quantization_config", None)
    stated = stated or getattr(config.get_text_config(), "quantization_config", None)
    if stated is None:
        return None
    stated = dict(stated if isinstance(stated, dict) else stated.to_dict())
    four = bool(stated.get("load_in_4bit") or stated.get("_load_in_4bit"))
    eight = bool(stated.get("load_in_8bit") or stated.get("_load_in_8bit"))
    method = "bitsandbytes" if four or eight else str(stated.get("quant_method"))
    kind = str(stated.get("bnb_4bit_quant_type", "fp4")) if four else "int8" if eight else None
    found = _words(method, kind, four and bool(stated.get("bnb_4bit_use_double_quant")))
    expected = _words(wanted.method, wanted.type, wanted.double)
    if found != expected:
        raise BadInput(
            f"{where}: expected quantization {expected}, as the manifest says, found {found} in its configuration"
        )
    return stated


def _words(method: str, kind: str | None, double: bool) -> str:
    return " ".join(filter(None, (method, kind, "with doubly quantized constants" * double)))


def _require_wanted(where: str, manifest: Manifest, model: Any, wanted: Quantization) -> None:
    """BadInput: what the loaded modules are is not what was asked for."""
    found = found_quantization(model)
    if (
        found.partition(":")[0] != _words(wanted.method, wanted.type, False)
        or found.endswith(", constants too") != wanted.double
    ):
        asked = _words(wanted.method, wanted.type, wanted.double)
        raise BadInput(f"{where}: quantization {asked} was asked for, but loaded is: {found}")
    if (dtype := found_dtype(model)) != manifest.engine.dtype:
        raise BadInput(f"{where}: dtype {manifest.engine.dtype} was asked for, but loaded is: {dtype}")


def _quantization(manifest: Manifest, wanted: Quantization) -> BitsAndBytesConfig | None:
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


def _identity(
    manifest: Manifest, model: Any, eos: tuple[int, ...], quantization: str, effective: dict[str, str]
) -> EngineIdentity:
    """What was found, never what was asked for."""
    packages = ["torch", "transformers", "tokenizers", "safetensors"]
    packages += ["bitsandbytes"] if manifest.quantization.method == "bitsandbytes" else []
    return EngineIdentity(
        kind="transformers",
        version=transformers.__version__,
        dtype=found_dtype(model),
        device=next(model.parameters()).device.type,
        quantization=quantization,
        threads=torch.get_num_threads(),
        max_sequence=manifest.limits.max_sequence,
        vocabulary_size=model.get_input_embeddings().weight.shape[0],
        eos=eos,
        packages={name: version(name) for name in sorted(packages)},
        effective=effective,
    )
