"""Every warning of a library is read while a model loads, and reaches the log once."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import pytest

pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from tests.unit.engines.conftest import make_spec

from checkweigh.engines.hf import library_warnings
from checkweigh.engines.hf.backend import TransformersBackend
from checkweigh.engines.hf.library_warnings import judged, telling
from checkweigh.errors import BadInput, EngineError

TELLING = (
    "Some weights of the model checkpoint were not used when initializing LlamaForCausalLM: ['lora_A']",
    "Some weights of LlamaForCausalLM were newly initialized: ['lm_head.weight']",
    "Unrecognized keys in `rope_parameters` for 'rope_type'='yarn': {'type'}",
    "Using MXFP4 quantized models requires a GPU; we will default to dequantizing the model to bf16",
    "sdpa attention does not support output_attentions, falling back to eager",
    "The `quantization_config` from the model will be used.",
    "The tokenizer you are loading from 'x' with an incorrect regex pattern",
    "This checkpoint seem corrupted.",
)
HARMLESS = (
    "The following generation flags are not valid and may be ignored: ['temperature', 'top_k'].",
    "specifies to tie a to b, but both are present in the checkpoints with different values, so we will NOT tie them.",
    "Failed to load CPU gemm_4bit_forward from kernels-community: No module named 'kernels'.",
    "MatMul8bitLt: inputs will be cast from torch.bfloat16 to float16 during quantization",
    "Setting `pad_token_id` to `eos_token_id`:2 for open-end generation.",
)


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library_warnings.EAR, "written", set())


def test_which_texts_tell_of_another_model() -> None:
    assert [text for text in TELLING if not telling(text)] == []
    assert [text for text in HARMLESS if telling(text)] == []


@pytest.mark.parametrize(
    "source", ["transformers.modeling_utils", "torch.nn", "bitsandbytes", "accelerate.utils"]
)
def test_a_telling_warning_of_any_library_refuses(source: str, capfd: pytest.CaptureFixture[str]) -> None:
    with (
        pytest.raises(BadInput, match="tiny: while it was loaded a library warned: the mask is ignored"),
        judged("tiny"),
    ):
        logging.getLogger(source).warning("the %s is ignored", "mask")
    assert capfd.readouterr().err == f"[{source}] the mask is ignored\n"


def load(*texts: tuple[str, type[Warning] | None], error: Exception | None = None) -> None:
    """As a load that warns of each text, by way of logging where no category is given, and may fail."""
    with judged("tiny"):
        for text, category in texts:
            if category is None:
                logging.getLogger("transformers").warning(text)
            else:
                warnings.warn(text, category, stacklevel=1)
        if error is not None:
            raise error


def test_warnings_that_the_environment_turned_off_are_heard() -> None:
    transformers.logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    told = (
        ("a layer was replaced", None),
        ("a key is not used", UserWarning),
        ("ignored in v9", FutureWarning),
    )
    with pytest.raises(BadInput) as refused:
        load(*told)
    assert [line.rpartition(": ")[2] for line in str(refused.value).splitlines()] == [
        "a layer was replaced", "a key is not used",
    ]  # fmt: skip


def test_a_library_that_fails_after_it_warned_is_the_models_fault() -> None:
    report = ("LOAD REPORT | UNEXPECTED", None)
    with pytest.raises(BadInput, match="UNEXPECTED") as refused:
        load(report, error=RuntimeError("issues during conversion"))
    assert isinstance(refused.value.__cause__, RuntimeError)
    with pytest.raises(EngineError, match="ours"):
        load(report, error=EngineError("ours"))
    with pytest.raises(RuntimeError, match="theirs"):
        load(error=RuntimeError("theirs"))


def test_the_same_text_reaches_the_log_once(capfd: pytest.CaptureFixture[str]) -> None:
    with judged("tiny"):
        for _ in range(3):
            logging.getLogger("bitsandbytes").warning("cast to float16")
            warnings.warn("slow", stacklevel=1)
    for _ in range(3):  # while it runs
        logging.getLogger("transformers").warning("cast to float16")
        warnings.warn("another", stacklevel=1)
        logging.getLogger("transformers").warning("is ignored")
    assert capfd.readouterr().err.splitlines() == [
        "[bitsandbytes] cast to float16", "[UserWarning] slow", "[UserWarning] another", "[transformers] is ignored",
    ]  # fmt: skip


def test_a_model_that_loads_with_a_telling_warning_is_refused(
    tiny_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def warm_up(self: TransformersBackend) -> None:
        transformers.logging.get_logger("transformers.models.llama").warning("the scaling is not applied")

    monkeypatch.setattr(TransformersBackend, "_warm_up", warm_up)
    with pytest.raises(BadInput, match="a library warned: the scaling is not applied"):
        TransformersBackend(make_spec(tiny_dir, "transformers"))
