"""The pinned rendering equals transformers' own, and refuses what no pin can hold."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests.conftest import TEMPLATE, write_tokenizer

from checkweigh.errors import SourceError
from checkweigh.records.evalset import Message
from checkweigh.records.manifest import Manifest
from checkweigh.sources.model.render import Renderer
from checkweigh.sources.model.render_probes import probes

MANIFEST = Manifest.model_validate_json(
    '{"schema": "checkweigh/manifest@1", "name": "x", "model": {"source": "path:x"},'
    ' "engine": {"kind": "fake", "version": "1"}}'
)
TEMPLATES = {
    "chatml": TEMPLATE,
    "blocks": (
        "{%- for m in messages %}\n  {% if m.role == 'user' %}\n{{ m.content | trim }}\n"
        "  {% endif %}\n{% endfor %}\n"
    ),
    "specials": (
        "{{ bos_token }}{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}{{ pad_token }}"
    ),
    "json": "{{ messages | tojson(indent=1) }}{{ {'b': '<é>', 'a': 1} | tojson(sort_keys=true) }}",
    "generation": (
        "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}\n{{ m.content }}\n"
        "{% endgeneration %}{% else %}{{ m.content }}{% endif %}{% endfor %}"
    ),
    "loopcontrols": (
        "{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}{{ m.content }}{% endfor %}"
    ),
    "undefined": (
        "{% if tools %}tools{% endif %}{{ nothing }}{% for m in messages %}{{ m.content }}{% endfor %}"
    ),
    "tools": "{{ tools is none }}{{ documents is none }}{{ add_generation_prompt }}",
    "namespace": (
        "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}"
    ),
}


def user(text: str) -> tuple[Message, ...]:
    return (Message(role="user", content=text),)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_tokenizer(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", TEMPLATES)
def test_it_equals_transformers(tiny_model_dir: Path, name: str) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(str(tiny_model_dir), local_files_only=True)
    ours = Renderer(tiny_model_dir, TEMPLATES[name])
    for probe in probes(MANIFEST):
        turns = [message.model_dump() for message in probe]
        expected = theirs.apply_chat_template(
            turns, chat_template=TEMPLATES[name], add_generation_prompt=True, tokenize=True, return_dict=False
        )
        assert ours.render(probe) == tuple(expected)


def test_text_there_and_back(folder: Path) -> None:
    renderer = Renderer(folder, TEMPLATE)
    for text in ("the quick brown fox", " spaces  ", "é 東 🙂", "", "line\nbreak"):
        assert renderer.decode(renderer.encode(text)) == text
    assert renderer.encode("<|im_end|>") == (2,)
    assert renderer.decode((2,)) == ""


def test_the_file_may_not_shorten_prompts(folder: Path) -> None:
    path = folder / "tokenizer.json"
    value = json.loads(path.read_text())
    value["truncation"] = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    value["padding"] = {
        "strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": None,
        "pad_id": 0, "pad_type_id": 0, "pad_token": "<|endoftext|>",
    }  # fmt: skip
    path.write_text(json.dumps(value))
    renderer = Renderer(folder, TEMPLATE)
    assert renderer.decode(renderer.encode("the quick brown fox")) == "the quick brown fox"


def test_the_prefix_is_bos_else_eos(folder: Path) -> None:
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text())
    assert Renderer(folder, TEMPLATE).prefix_id == 1
    path.write_text(json.dumps(config | {"bos_token": None, "eos_token": {"content": "<|im_end|>"}}))
    assert Renderer(folder, TEMPLATE).prefix_id == 2
    path.write_text(json.dumps(config | {"bos_token": None, "eos_token": None}))
    with pytest.raises(SourceError, match="neither a BOS nor an EOS"):
        _ = Renderer(folder, TEMPLATE).prefix_id
    (folder / "special_tokens_map.json").write_text('{"eos_token": "<|endoftext|>"}')
    path.write_text("{}")
    assert Renderer(folder, TEMPLATE).prefix_id == 0


def test_the_vocabulary_has_a_digest(folder: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(folder, tmp_path / "other"))
    assert Renderer(folder, "x").vocabulary_digest == Renderer(other, "y").vocabulary_digest
    value = json.loads((other / "tokenizer.json").read_text())
    vocabulary = value["model"]["vocab"]
    vocabulary["!"], vocabulary['"'] = vocabulary['"'], vocabulary["!"]
    (other / "tokenizer.json").write_text(json.dumps(value))
    assert Renderer(folder, "x").vocabulary_digest != Renderer(other, "x").vocabulary_digest


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ raise_exception('only users') }}", "only users"),
        ("{{ strftime_now('%Y') }}", "asks for the date"),
        ("{{ messages[9].content }}", "refuses a conversation"),
        ("{{ 1 / 0 }}", "refuses a conversation"),
        ("{{ 'a' + 1 }}", "refuses a conversation"),
        ("{{ range(10 ** 9) | list }}", "refuses a conversation"),
        ("{{ messages.append(1) }}", "refuses a conversation"),
        ("{{ ''.__class__.__mro__ }}", "refuses a conversation"),
        ("{{ cycler.__init__.__globals__ }}", "refuses a conversation"),
    ],
)
def test_templates_that_refuse_or_escape(folder: Path, template: str, said: str) -> None:
    with pytest.raises(SourceError, match=said):
        Renderer(folder, template).render(user("Hi"))


def test_what_cannot_be_read(folder: Path) -> None:
    with pytest.raises(SourceError, match="not valid Jinja"):
        Renderer(folder, "{% for %}")
    (folder / "tokenizer_config.json").write_text("[]")
    with pytest.raises(SourceError, match=r"tokenizer_config\.json: expected a JSON object, found list"):
        Renderer(folder, TEMPLATE)
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(SourceError, match=r"tokenizer\.json: not a tokenizer"):
        Renderer(folder, TEMPLATE)


def test_nothing_heavy_is_imported() -> None:
    code = (
        "import sys, checkweigh.sources.pin, checkweigh.sources.model.render, checkweigh.sources.evalsets.load_evalset;"
        "heavy = {'torch', 'transformers', 'datasets', 'huggingface_hub', 'scipy'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
