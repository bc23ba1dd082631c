"""What drafts for a loaded model, as ``engine.speculative`` pins it."""

from __future__ import annotations

from transformers import AutoModelForCausalLM, GenerationConfig

from checkweigh.engines.hf.load_model import (
    DTYPES,
    LoadedModel,
    found_dtype,
    found_quantization,
)
from checkweigh.engines.hf.speculative import Speculator, drafting_config
from checkweigh.engines.spec import EngineSpec
from checkweigh.errors import BadInput, EngineError
from checkweigh.records.manifest import Draft


def load_draft(spec: EngineSpec, loaded: LoadedModel) -> Speculator | None:
    """None without speculation. From here on the model's own generation config is empty.

    Raises BadInput (a drafting model that does not fit the model) and EngineError (not what was asked for).
    """
    setting = spec.manifest.engine.speculative
    if setting is None:
        return None
    # transformers fills what a call leaves open from it; all of ``loaded.eos`` was read before
    loaded.model.generation_config = GenerationConfig()
    if not isinstance(setting, Draft):
        return Speculator(setting=setting)
    if spec.draft_dir is None:
        raise BadInput("engine.speculative.model: the drafting model was not resolved")
    engine = spec.manifest.engine
    model = AutoModelForCausalLM.from_pretrained(
        str(spec.draft_dir),
        local_files_only=True,
        trust_remote_code=False,
        use_safetensors=True,
        dtype=DTYPES[engine.dtype],
        device_map={"": engine.device},
    ).eval()
    if (kind := found_quantization(model)) != "none" or found_dtype(model) != engine.dtype:
        raise EngineError(f"the drafting model was to be {engine.dtype}, but is {found_dtype(model)}, {kind}")
    rows, limit = model.get_input_embeddings().weight.shape[0], loaded.identity.vocabulary_size
    if rows > limit:
        raise BadInput(f"engine.speculative.model: expected at most the model's {limit} ids, found {rows}")
    longest = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if longest is not None and spec.manifest.limits.max_sequence > longest:
        raise BadInput(
            f"limits.max_sequence: expected at most the drafting model's {longest}, "
            f"found {spec.manifest.limits.max_sequence}"
        )
    model.generation_config = drafting_config(setting)
    return Speculator(setting=setting, model=model)
