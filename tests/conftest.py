"""Fixtures for everyone: a tiny real model, and manifests for it that need no network."""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import settings

from checkweigh.sources.pin import pin

TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'assistant' and loop.first %}"
    "{{ raise_exception('the user speaks first') }}{% endif %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SENTENCES = [
    "the quick brown fox jumps over the lazy dog and runs into the quiet wood",
    "what is the capital of France and who wrote the long letter to the river",
    "system user assistant red blue green one two three four five",
]
WriteManifest = Callable[..., Path]
# Files that take longest begin first, so that no process is left alone with one at the end.
SLOWEST = (
    "test_registry", "test_mlflow", "test_twenty_kills", "test_full_disk", "test_gate_store",
    "test_gate_divergence", "test_calibrated_policies", "test_calibrate", "test_load_pairs", "test_gate_served",
    "test_vllm", "test_ledger", "test_github_workflow", "test_continuous_batching",
)  # fmt: skip
# Sending a gate to MLflow costs seconds: only tests that say so do it.
os.environ["CHECKWEIGH_MLFLOW"] = "none"
# A shell that starts tests in the background makes them, and all that they start and interrupt, deaf to Ctrl-C.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# Machines that run tests are shared: how long an example took says nothing about it.
settings.register_profile("shared", deadline=None)
settings.load_profile("shared")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Where several processes run tests, the slowest files come first; all others stay as they were."""
    if not hasattr(config, "workerinput"):
        return
    place = {name: i for i, name in enumerate(SLOWEST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(place)))


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    """Let the garbage collector pass over what was collected: thousands of tests and PyTorch, again and again else."""
    gc.collect()
    gc.freeze()


def missing(what: str) -> None:
    """Skip with a visible reason; where everything is required (CI), fail."""
    if os.environ.get("CHECKWEIGH_REQUIRE_ALL") == "1":
        pytest.fail(f"{what} is missing, and CHECKWEIGH_REQUIRE_ALL=1")
    pytest.skip(f"{what} is missing")


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Path]:
    """A file system of ``size`` bytes at ``folder``, which is made."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        done = subprocess.CompletedProcess(mount, 1, "", "no mount command")
    if done.returncode:
        missing(f"a small file system, which only root can mount ({done.stderr.strip()})")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def write_tokenizer(folder: Path) -> int:
    """A byte-level BPE tokenizer with chat tokens; its number of ids."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=340,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "pad_token": "<|im_end|>",
        "unk_token": "<|endoftext|>",
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return int(tokenizer.get_vocab_size())


def write_model(folder: Path, vocabulary: int) -> None:
    """A random Llama of three layers with grouped heads, in float32."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(7)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.3,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    # What a model brings of its own must not change the pinned sampling.
    (folder / "generation_config.json").write_text(
        json.dumps(
            {"eos_token_id": [2, 5], "do_sample": True, "temperature": 1.7, "top_k": 3, "max_length": 9}
        )
    )


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tokenizer, chat template and random weights of a model that loads in a blink. Do not change it."""
    folder = tmp_path_factory.mktemp("tiny-model")
    vocabulary = write_tokenizer(folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    write_model(folder, vocabulary)
    return folder


@pytest.fixture
def checkweigh_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache and store of the test's own."""
    home = tmp_path / "home"
    monkeypatch.setenv("CHECKWEIGH_HOME", str(home))
    return home


@pytest.fixture
def write_manifest(tmp_path: Path, tiny_model_dir: Path, checkweigh_home: Path) -> WriteManifest:
    """``write_manifest(name, options={...}, **sections)`` -> path of a pinned manifest of the fake engine."""

    def write(
        name: str, options: Mapping[str, Any] | None = None, *, pinned: bool = True, **sections: Any
    ) -> Path:
        engine: dict[str, Any] = {"kind": "fake", "version": "1", "dtype": "float32", "threads": 1}
        document: dict[str, Any] = {
            "schema": "checkweigh/manifest@1",
            "name": name,
            "model": {"source": f"path:{tiny_model_dir}"},
            "engine": engine | {"options": dict(options or {})},
            "sampling": {"max_tokens": 24},
            "limits": {"max_sequence": 512},
        }
        for section, value in sections.items():
            if isinstance(value, Mapping) and isinstance(document.get(section), dict):
                document[section] = document[section] | dict(value)
            else:
                document[section] = value
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(document, sort_keys=False))
        if pinned:
            pin(path)
        return path

    return write
