"""What drafts for a loaded model, as ``engine.speculative`` pins it."""

from __future__ import annotations

from checkweigh import canonical
from checkweigh.engines.hf.found_configuration import effective_configuration
from checkweigh.engines.hf.load_model import LoadedModel, load_weights
from checkweigh.engines.hf.speculative import Speculator, drafting_config
from checkweigh.engines.spec import EngineSpec
from checkweigh.errors import BadInput
from checkweigh.records.manifest import Draft, Quantization


def load_draft(spec: EngineSpec, loaded: LoadedModel) -> Speculator | None:
    """None without speculation. Raises as ``load_weights``, and BadInput for one that does not fit the model."""
    setting = spec.manifest.engine.speculative
    if setting is None:
        return None
    if not isinstance(setting, Draft):
        return Speculator(setting=setting)
    if spec.draft_dir is None:
        raise BadInput("engine.speculative.model: the drafting model was not resolved")
    where = f"{spec.manifest.name}: engine.speculative.model"
    model = load_weights(where, spec.draft_dir, spec.manifest, Quantization())
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
    effective = effective_configuration(model, ())
    del (
        effective["eos"],
        effective["generation_defaults"],
    )  # a draft ends nowhere, and has ``drafting_config``
    return Speculator(setting=setting, model=model, effective=canonical.dumps(effective))
