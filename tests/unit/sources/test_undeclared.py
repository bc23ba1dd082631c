"""What two manifests declare to change, what drifted without a word, and what stays comparable."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.conftest import WriteManifest

from checkweigh.records.manifest import Manifest, Pins
from checkweigh.records.metrics import METRICS
from checkweigh.sources.pin import Resolved, verify
from checkweigh.sources.undeclared import (
    _explanations,
    comparable_metrics,
    declared_changes,
    undeclared_differences,
)

Make = Callable[..., Resolved]
OTHER = "sha256:" + "1" * 64


@pytest.fixture
def make(write_manifest: WriteManifest) -> Make:
    """``make(name, **sections)`` -> a pinned and verified manifest of the tiny model."""
    return lambda name, **sections: verify(write_manifest(name, **sections))


def drift(one: Resolved, other: Resolved, pins: Pins | None = None) -> list[str]:
    return undeclared_differences(one.manifest, one.pins, other.manifest, pins or other.pins)


def test_nothing(make: Make) -> None:
    one, other = make("one"), make("other", comment="another", intends=["longer"])
    assert declared_changes(one.manifest, other.manifest) == ()
    assert drift(one, other) == []
    assert set(comparable_metrics(one.pins, other.pins)) == set(METRICS)
    assert set(comparable_metrics(one.pins, other.pins).values()) == {"yes"}


def test_declared_changes_are_shown_and_are_no_drift(make: Make) -> None:
    one = make("one")
    other = make(
        "other",
        prompts={"system": "Be brief."},
        sampling={"temperature": 0.5, "stop": ["\n"]},
        quantization={"method": "bitsandbytes", "bits": 8, "type": "int8"},
        options={"bias": 1.5},
    )
    shown = {
        change.path: (change.baseline, change.candidate)
        for change in declared_changes(one.manifest, other.manifest)
    }
    assert shown == {
        "prompts.system": ("null", "Be brief."),
        "sampling.temperature": ("0.0", "0.5"),
        "sampling.stop": ("[]", '["\\n"]'),
        "quantization.method": ("none", "bitsandbytes"),
        "quantization.bits": ("null", "8"),
        "quantization.type": ("null", "int8"),
        "engine.options": ("{}", "null"),
        "engine.options.bias": ("null", "1.5"),
    }
    assert list(shown) == sorted(shown)
    assert drift(one, other) == []


def test_a_long_value_is_cut(make: Make) -> None:
    (change,) = declared_changes(make("one").manifest, make("other", prompts={"system": "x" * 500}).manifest)
    assert len(change.candidate) == 200


@pytest.mark.parametrize(
    "pin", sorted(set(Pins.model_fields) - {"manifest", "weights", "draft", "tokenizer", "files"})
)
def test_every_pin_can_drift(make: Make, pin: str) -> None:
    one, other = make("one"), make("other")
    value = {"tensors": True, "probes": ((1,),), "adapters": (OTHER,), "parts": (OTHER,)}.get(pin, OTHER)
    (text,) = drift(one, other, other.pins.model_copy(update={pin: value}))
    assert text.startswith(f"{pin}: ")
    assert text.endswith("declared alike in both manifests")


def test_drift_names_the_file(make: Make) -> None:
    one, other = make("one"), make("other")
    pins = other.pins.model_copy(
        update={
            "tokenizer": other.pins.tokenizer | {"tokenizer.json": OTHER, "config.json": OTHER},
            "weights": {"new.safetensors": OTHER},
            "draft": {"config.json": OTHER},
            "files": other.pins.files | {"model/sub/extra.json": OTHER, "tokenizer/merges.txt": OTHER},
        }
    )
    assert [text.split(":")[0] for text in drift(one, other, pins)] == [
        "configuration config.json", "draft config.json", "model_files sub/extra.json", "tokenizer tokenizer.json",
        "tokenizer_files merges.txt", "weights model.safetensors", "weights new.safetensors",
    ]  # fmt: skip
    assert (
        "weights new.safetensors: nothing and 111111111111, though model.source" in drift(one, other, pins)[6]
    )


def test_a_changed_system_prompt_explains_no_other_weights(make: Make) -> None:
    one, other = make("one"), make("other", prompts={"system": "Be brief."})
    (text,) = drift(one, other, other.pins.model_copy(update={"source": OTHER}))
    assert text.startswith("source: ")


def test_another_model_explains_its_tokenizer_unless_that_is_named(
    make: Make, tiny_model_dir: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(tiny_model_dir, tmp_path / "copy"))
    value = json.loads((copy / "tokenizer.json").read_text())
    value["added_tokens"][0]["lstrip"] = True
    (copy / "tokenizer.json").write_text(json.dumps(value))
    one, other = make("one"), make("other", model={"source": "path:copy"})
    assert one.pins.tokenizer != other.pins.tokenizer
    assert drift(one, other) == []
    named = {"source": f"path:{tiny_model_dir}"}
    one = make("one-named", tokenizer=named)
    other = make("other-named", model={"source": "path:copy"}, tokenizer=named)
    assert drift(one, other) == []
    pins = other.pins.model_copy(update={"tokenizer": verify_pins(make, copy).tokenizer})
    assert [text.split(":")[0] for text in drift(one, other, pins)] == ["tokenizer tokenizer.json"]


def verify_pins(make: Make, folder: Path) -> Pins:
    return make("own", model={"source": f"path:{folder}"}).pins


def test_the_same_path_in_two_folders_is_drift(
    write_manifest: WriteManifest, tiny_model_dir: Path, tmp_path: Path
) -> None:
    from checkweigh.sources.pin import pin

    arms = []
    for name in ("a", "b"):
        model = Path(shutil.copytree(tiny_model_dir, tmp_path / name / "model"))
        if name == "b":
            text = (model / "chat_template.jinja").read_text()
            (model / "chat_template.jinja").write_text(text.replace("<|im_end|>\n", "<|im_end|>"))
        written = write_manifest(name, model={"source": "path:model"}, pinned=False)
        path = Path(shutil.move(written, tmp_path / name / "m.yaml"))
        pin(path)
        arms.append(verify(path))
    assert [text.split(":")[0] for text in drift(arms[0], arms[1])] == [
        "chat_template", "model_files chat_template.jinja", "probes",
    ]  # fmt: skip


def test_another_vocabulary(make: Make) -> None:
    pins = make("one").pins
    answers = comparable_metrics(pins, pins.model_copy(update={"vocabulary": OTHER}))
    assert {metric for metric, answer in answers.items() if answer != "yes"} == {
        "log_perplexity", "kl", "log_length", "tpot",
    }  # fmt: skip
    assert "use bits_per_byte" in answers["log_perplexity"]
    assert answers["bits_per_byte"] == "yes"


def test_no_pin_is_forgotten() -> None:
    manifest = Manifest.model_validate_json(
        '{"schema": "checkweigh/manifest@1", "name": "x", "model": {"source": "path:x"},'
        ' "engine": {"kind": "fake", "version": "1"}}'
    )
    sections = {"configuration", "model_files", "tokenizer_files"}
    assert set(_explanations(manifest)) == set(Pins.model_fields) - {"manifest", "files"} | sections
