"""Pin and verify, on a tiny real model: what is pinned is what is served, to the byte."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from tests.conftest import WriteManifest

from checkweigh import canonical
from checkweigh.cli import main
from checkweigh.errors import BadDocument, BadInput, ExitCode, PinMismatch, SourceError
from checkweigh.records.manifest import Lock
from checkweigh.records.yaml.document import parse_json
from checkweigh.sources.documents import read_manifest
from checkweigh.sources.pin import lock_path, pin, resolve_manifest, verify

Write = Callable[..., Path]


@pytest.fixture
def model(tmp_path: Path, tiny_model_dir: Path) -> Path:
    """A copy of the tiny model that a test may damage."""
    return Path(shutil.copytree(tiny_model_dir, tmp_path / "model"))


@pytest.fixture
def write(model: Path, write_manifest: WriteManifest) -> Write:
    """``write(**sections)`` -> manifest of ``model``, pinned unless told otherwise."""

    def build(name: str = "tiny", **sections: object) -> Path:
        own = {"source": "path:model"} | dict(sections.pop("model", {}))  # type: ignore[call-overload]
        return write_manifest(name, model=own, **sections)

    return build


def flip(path: Path, at: int = -2) -> None:
    """Change one bit of one byte."""
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def mismatches(path: Path) -> list[str]:
    with pytest.raises(PinMismatch) as caught:
        verify(path)
    for problem in caught.value.problems:
        assert problem.expected != problem.found
    return [str(problem) for problem in caught.value.problems]


def test_round_trip(write: Write, model: Path) -> None:
    path = write()
    before = path.read_bytes()
    resolved = verify(path)
    assert resolved.model_dir == resolved.tokenizer_dir == model
    assert resolved.pins == Lock.model_validate_json(lock_path(path).read_bytes()).pins
    assert set(resolved.pins.weights) == {"model.safetensors"}
    assert set(resolved.pins.tokenizer) == {
        "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    assert len(resolved.pins.probes) >= 8
    assert path.read_bytes() == before


def test_pins_are_reproducible(write: Write, checkweigh_home: Path) -> None:
    path = write()
    first = lock_path(path).read_bytes()
    shutil.rmtree(checkweigh_home, ignore_errors=True)
    pin(path)
    assert lock_path(path).read_bytes() == first


def test_a_probe_is_one_line(write: Write) -> None:
    lines = lock_path(write()).read_text().splitlines()
    assert len([line for line in lines if line.startswith("   [")]) == len(verify(write()).pins.probes)


def test_one_bit_of_the_weights(write: Write, model: Path) -> None:
    path = write()
    pinned = verify(path).pins.weights["model.safetensors"]
    flip(model / "model.safetensors")
    found = resolve_manifest(path).pins.weights["model.safetensors"]
    shown = mismatches(path)
    assert (
        shown[0]
        == f"{model}/model.safetensors: pins.weights.model.safetensors: expected {pinned}, found {found}"
    )


def test_one_byte_of_the_tokenizer(write: Write, model: Path) -> None:
    path = write()
    pinned = verify(path).pins.tokenizer["tokenizer.json"]
    file = model / "tokenizer.json"
    text = file.read_text()
    changed = re.sub(r'("the": *)3', r"\g<1>2", text, count=1)
    assert changed != text
    file.write_text(changed)
    shown = mismatches(path)
    assert shown[0].startswith(f"{file}: pins.tokenizer.tokenizer.json: expected {pinned}, found sha256:")


def test_a_tokenizer_that_is_no_longer_json(write: Write, model: Path) -> None:
    path = write()
    (model / "tokenizer.json").write_bytes((model / "tokenizer.json").read_bytes()[:-40])
    assert mismatches(path)[0].startswith(
        f"{model}/tokenizer.json: pins.tokenizer.tokenizer.json: expected sha256:"
    )


def test_weights_cut_off(write: Write, model: Path) -> None:
    path = write()
    file = model / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    assert mismatches(path)[0].startswith(f"{file}: pins.weights.model.safetensors: expected sha256:")
    with pytest.raises(SourceError, match=r"model\.safetensors: expected a whole safetensors file"):
        pin(path)


def test_all_mismatches_at_once(write: Write, model: Path) -> None:
    path = write()
    flip(model / "model.safetensors")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.5}))
    (model / "generation_config.json").unlink()
    (model / "extra.safetensors").write_bytes((model / "model.safetensors").read_bytes())
    (model / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    text = "\n".join(mismatches(path))
    for name in ("weights.model.safetensors", "weights.extra.safetensors", "tokenizer.config.json",
                 "chat_template", "tokenizer.generation_config.json", "probes[0]", "probes[8]"):  # fmt: skip
        assert f"pins.{name}: expected" in text
    assert "generation_config.json: pins.tokenizer.generation_config.json: expected sha256" in text
    assert "extra.safetensors: pins.weights.extra.safetensors: expected no such file, found sha256" in text


def test_the_way_json_is_written_is_no_change(write: Write, model: Path) -> None:
    path = write()
    for name in ("tokenizer.json", "config.json"):
        value = json.loads((model / name).read_text())
        if name == "config.json":
            value["transformers_version"] = "9.9.9"
        (model / name).write_text(json.dumps(dict(reversed(value.items())), indent=7))
    verify(path)


def test_a_key_twice_in_the_configuration_is_a_change(write: Write, model: Path) -> None:
    path = write()
    text = (model / "config.json").read_text()
    (model / "config.json").write_text(
        text.rstrip().removesuffix("}") + ', "vocab_size": 1, "vocab_size": 340}'
    )
    assert "config.json" in mismatches(path)[0]


def test_a_missing_lock_says_what_to_run(write: Write) -> None:
    path = write(pinned=False)
    with pytest.raises(BadInput, match="no such file") as caught:
        verify(path)
    assert f"checkweigh pin {path}" in str(caught.value)
    assert str(lock_path(path)) in str(caught.value)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"schema": "checkweigh/lock@2"}', b"\xff"])
def test_a_lock_that_is_none(write: Write, data: bytes) -> None:
    path = write()
    lock_path(path).write_bytes(data)
    with pytest.raises(BadDocument, match="checkweigh pin"):
        verify(path)


def test_a_stale_lock(write: Write) -> None:
    path = write()
    document = yaml.safe_load(path.read_text())
    document["sampling"]["temperature"] = 0.5
    path.write_text(yaml.safe_dump(document))
    (shown,) = mismatches(path)
    assert shown.startswith(f"{lock_path(path)}: pins.manifest: expected sha256:")
    assert f"checkweigh pin {path}" in shown


def test_name_and_comment_and_intent_make_no_lock_stale(write: Write) -> None:
    path = write()
    path.write_text(path.read_text() + "comment: another\nintends: [shorter]\n")
    verify(path)


def test_an_interrupted_pin_writes_nothing(write: Write, model: Path) -> None:
    path = write()
    before = lock_path(path).read_bytes()
    flip(model / "model.safetensors")

    def interrupt(label: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pin(path, interrupt)
    assert lock_path(path).read_bytes() == before
    assert [p.name for p in path.parent.iterdir() if p.name.startswith(".")] == []


def test_a_refused_pin_writes_nothing(write: Write, model: Path) -> None:
    path = write(pinned=False)
    (model / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(SourceError):
        pin(path)
    assert not lock_path(path).exists()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth", "weights.pkl", "last.ckpt"])
def test_pickles_are_refused_unless_allowed(write: Write, model: Path, name: str) -> None:
    path = write()
    (model / name).write_bytes(b"\x80\x04.")
    assert f"pins.weights.{name}: expected no such file" in mismatches(path)[0]
    with pytest.raises(SourceError, match=rf"found {name}: pickles are refused"):
        pin(path)
    (model / "model.safetensors").unlink()
    unsafe = write("unsafe", model={"unsafe_pickle": True})
    assert name in verify(unsafe).pins.weights
    flip(model / name, 0)
    assert name in mismatches(unsafe)[0]


def test_remote_code_is_refused_unless_allowed(write: Write, model: Path) -> None:
    path = write()
    (model / "modeling_tiny.py").write_text("print('hello')")
    assert "pins.weights.modeling_tiny.py: expected no such file" in mismatches(path)[0]
    with pytest.raises(SourceError, match=r"remote code \(modeling_tiny\.py\), which is refused"):
        pin(path)
    unsafe = write("unsafe", model={"unsafe_remote_code": True})
    assert "modeling_tiny.py" in verify(unsafe).pins.weights


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_auto_map_is_refused(write: Write, model: Path, name: str) -> None:
    path = write(pinned=False)
    value = json.loads((model / name).read_text())
    (model / name).write_text(json.dumps(value | {"auto_map": {"AutoModel": "modeling_tiny.Tiny"}}))
    with pytest.raises(SourceError, match=rf"{name}: auto_map: expected no auto_map, found remote code"):
        pin(path)


def test_auto_map_of_another_tokenizer_is_refused(write: Write, model: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(model, tmp_path / "other"))
    path = write(pinned=False, tokenizer={"source": "path:other"})
    pin(path)
    (other / "tokenizer_config.json").write_text('{"auto_map": {}}')
    with pytest.raises(SourceError, match=r"other/tokenizer_config\.json: auto_map: expected no auto_map"):
        pin(path)


def test_a_shard_index_is_pinned(write: Write, model: Path) -> None:
    index = shards(model)
    path = write()
    index.write_text(index.read_text().replace("model-00002", "model-00003", 1))
    assert index.name in mismatches(path)[0]


def test_a_pinned_tokenizer_of_its_own(write: Write, model: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(model, tmp_path / "other"))
    path = write(tokenizer={"source": "path:other"})
    resolved = verify(path)
    assert resolved.tokenizer_dir == other
    assert {"model/tokenizer.json", "tokenizer/config.json", "tokenizer/model.safetensors"} <= set(
        resolved.pins.files
    )
    flip(other / "tokenizer.json", 100)
    assert mismatches(path)[0].startswith(str(other / "tokenizer.json"))
    (other / "tokenizer.json").unlink()
    (model / "tokenizer.json").unlink()
    shown = mismatches(path)
    assert shown[0].startswith(f"{other}/tokenizer.json: pins.tokenizer.tokenizer.json: expected sha256:")
    assert shown[1].startswith(f"{model}/tokenizer.json: pins.files.model/tokenizer.json: expected sha256:")


def test_a_chat_template_of_its_own(write: Write, tmp_path: Path) -> None:
    (tmp_path / "mine.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    path = write(prompts={"chat_template": "path:mine.jinja"})
    assert verify(path).chat_template.startswith("{% for m in messages %}{{ m.content")
    (tmp_path / "mine.jinja").write_text("{% for m in messages %}>{{ m.content }}{% endfor %}")
    text = "\n".join(mismatches(path))
    assert "pins.chat_template" in text
    assert "pins.probes[0]: expected " in text


def test_a_template_in_the_configuration(write: Write, model: Path) -> None:
    text = (model / "chat_template.jinja").read_text()
    (model / "chat_template.jinja").unlink()
    config = json.loads((model / "tokenizer_config.json").read_text())
    for value in (text, [{"name": "tool_use", "template": "x"}, {"name": "default", "template": text}]):
        (model / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": value}))
        assert resolve_manifest(write(pinned=False)).chat_template == text
    (model / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(SourceError, match=r"expected a chat template, found none"):
        pin(write(pinned=False))


def test_another_engine_version(write: Write) -> None:
    path = write(pinned=False, engine={"version": "2"})
    with pytest.raises(PinMismatch, match=r"engine\.version: expected 2, found fake 1 installed"):
        pin(path)


def test_the_installed_transformers(write: Write) -> None:
    pytest.importorskip("transformers")
    version = metadata.version("transformers")
    verify(write(engine={"kind": "transformers", "version": version, "options": {}}))
    path = write("old", pinned=False, engine={"kind": "transformers", "version": "4.0.0", "options": {}})
    with pytest.raises(PinMismatch, match=rf"expected 4\.0\.0, found transformers {version} installed"):
        pin(path)


def break_source(model: Path) -> Iterator[tuple[str, str]]:
    """What can be wrong with a directory -> what is said of it."""
    for file in model.iterdir():
        file.unlink()
    yield "path:model", "expected"
    yield "path:nowhere", "expected a file or directory at"
    (model / "a.gguf").write_bytes(b"GGUF")
    yield "path:model/a.gguf", r"a \.gguf file with model\.derive"


def test_sources_that_are_not_there(write: Write, model: Path) -> None:
    for source, said in break_source(model):
        with pytest.raises(SourceError, match=said):
            pin(write(pinned=False, model={"source": source}))


def test_a_recipe_for_a_directory(write: Write) -> None:
    path = write(pinned=False, model={"derive": {"recipe": "gguf-to-safetensors", "version": 1}})
    with pytest.raises(SourceError, match="expected a GGUF file"):
        pin(path)


def test_adapters_are_not_ignored(write: Write) -> None:
    path = write(pinned=False, model={"adapters": [{"source": "path:model"}]})
    with pytest.raises(SourceError, match=r"model\.adapters"):
        pin(path)


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer_config.json", "tokenizer.json", "generation_config.json"]
)
@pytest.mark.parametrize("damage", [b"\xff", b"[", b"", b"[" * 100_000, b'{"a": 1}', b"null"])
def test_digests_are_compared_before_anything_is_read(
    write: Write, model: Path, name: str, damage: bytes
) -> None:
    path = write()
    pinned = verify(path).pins.tokenizer[name]
    (model / name).write_bytes(damage)
    file = f"{model}/{name}: pins.tokenizer.{name}: expected {pinned}, found sha256:"
    assert any(text.startswith(file) for text in mismatches(path))


def test_a_changed_template_is_named_by_its_file(write: Write, model: Path) -> None:
    path = write()
    pinned = verify(path).pins.chat_template
    for data in (b"\xff", b"{% for %}", b"{{ 1 / 0 }}", b""):
        (model / "chat_template.jinja").write_bytes(data)
        file = f"{model}/chat_template.jinja: pins.chat_template: expected {pinned}, found sha256:"
        assert any(text.startswith(file) for text in mismatches(path))
        with pytest.raises(SourceError) if data else contextlib.nullcontext():
            pin(write("again", pinned=False))


def test_a_change_that_restores_size_and_mtime(write: Write, model: Path) -> None:
    path = write()
    file = model / "model.safetensors"
    stat = file.stat()
    flip(file)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (stat.st_size, stat.st_mtime_ns)
    assert mismatches(path)[0].startswith(f"{file}: pins.weights.model.safetensors")


def shards(model: Path) -> Path:
    """The weights in two files and an index."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(model / "model.safetensors")
    (model / "model.safetensors").unlink()
    names = sorted(tensors)
    parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, members in parts.items():
        save_file({name: tensors[name] for name in members}, model / file)
    index = model / "model.safetensors.index.json"
    weight_map = {name: file for file, members in parts.items() for name in members}
    index.write_text(json.dumps({"weight_map": weight_map}))
    return index


def test_sharded_weights(write: Write, model: Path) -> None:
    index = shards(model)
    path = write()
    assert len(verify(path).pins.weights) == 3
    last = model / "model-00002-of-00002.safetensors"
    flip(last)
    assert mismatches(path)[0].startswith(f"{last}: pins.weights.{last.name}: expected sha256:")
    last.unlink()
    assert mismatches(path)[0].endswith("found no such file")
    with pytest.raises(
        SourceError, match=rf"index\.json: weight_map: expected {last.name} beside it, found no such file"
    ):
        pin(path)
    for broken in ('{"weight_map": []}', "{}", '{"weight_map": {"a": 1}}'):
        index.write_text(broken)
        with pytest.raises(
            SourceError, match=r"index\.json: weight_map: expected tensor names and their files"
        ):
            pin(path)


def test_paths_that_cannot_be(write: Write, model: Path, tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for source, said in (
        ("path:" + "x" * 300, "File name too long"),
        ("path:loop", "expected a file or directory"),
        ("path:model/config.json/x", "expected a file or directory"),
        ("path:~nobody-of-that-name/x", "expected a file or directory"),
    ):
        with pytest.raises(SourceError, match=said):
            pin(write(pinned=False, model={"source": source}))
    with pytest.raises(SourceError, match=r"model: cannot be read \(Is a directory\)"):
        pin(write(pinned=False, prompts={"chat_template": "path:model"}))
    with pytest.raises(SourceError, match=r"config\.json"):
        pin(write(pinned=False, tokenizer={"source": "path:model/config.json"}))


def test_the_command_exits_2_and_says_both_digests(
    write: Write, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write()
    assert main(["verify", str(path)]) == 0
    pinned = verify(path).pins.weights["model.safetensors"]
    flip(model / "model.safetensors")
    capsys.readouterr()
    assert main(["verify", str(path)]) == ExitCode.BAD_INPUT
    said = capsys.readouterr().err
    assert f"model.safetensors: expected {pinned}, found sha256:" in said.replace("\n", "")
    for broken in (path.parent, path.parent / "none.yaml"):
        assert main(["verify", str(broken)]) == ExitCode.BAD_INPUT
        assert "expected a manifest, found" in capsys.readouterr().err


@pytest.fixture
def draft(tmp_path: Path, tiny_model_dir: Path) -> Path:
    """A drafting model that a test may damage."""
    return Path(shutil.copytree(tiny_model_dir, tmp_path / "draft"))


def speculating(write: Write, **changes: object) -> Path:
    """A manifest of the installed transformers that drafts with ``draft``."""
    speculative = {"method": "draft", "model": {"source": "path:draft"}, "num_tokens": 4}
    engine = {
        "kind": "transformers", "version": metadata.version("transformers"), "dtype": "float32",
        "speculative": speculative,
    }  # fmt: skip
    return write(engine=engine, **changes)


def test_a_drafting_model_is_pinned_like_the_model(write: Write, model: Path, draft: Path) -> None:
    path = speculating(write)
    resolved = verify(path)
    assert resolved.draft_dir == draft
    assert resolved.pins.draft["model.safetensors"] == resolved.pins.weights["model.safetensors"]
    assert {"config.json", "tokenizer.json", "tokenizer_config.json"} <= set(resolved.pins.draft)
    without = resolved.pins.model_copy(update={"draft": {}})
    other = resolved.pins.model_copy(
        update={"draft": resolved.pins.draft | {"config.json": "sha256:" + "1" * 64}}
    )
    assert len({pins.record_digest() for pins in (without, resolved.pins, other)}) == 3
    flip(draft / "model.safetensors")
    config = json.loads((draft / "config.json").read_text())
    (draft / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.5}))
    first, second = mismatches(path)
    assert str(draft / "config.json") in first
    assert "pins.draft.config.json" in first
    assert str(draft / "model.safetensors") in second
    assert "pins.draft.model.safetensors" in second


def test_a_drafting_model_that_cannot_draft_is_not_pinned(write: Write, draft: Path) -> None:
    path = speculating(write, pinned=False)
    document = json.loads((draft / "tokenizer.json").read_text())
    vocabulary = document["model"]["vocab"]
    first, second = list(vocabulary)[-2:]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (draft / "tokenizer.json").write_text(json.dumps(document))
    with pytest.raises(SourceError, match="expected the model's own vocabulary"):
        pin(path)
    (draft / "tokenizer.json").unlink()
    (draft / "weights.bin").write_bytes(b"x")
    with pytest.raises(SourceError) as caught:
        pin(path)
    assert f"{draft}: expected safetensors only, found weights.bin: pickles are refused" in str(caught.value)
    assert f"{draft}: expected tokenizer.json, found none" in str(caught.value)
    assert not lock_path(path).exists()


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parents[3] / "manifests").glob("*.yaml")), ids=lambda p: p.stem
)
def test_the_lock_of_every_shipped_manifest_is_current(path: Path) -> None:
    """What a later version adds to manifests must not make the locks of earlier ones stale."""
    lock = parse_json(Lock, lock_path(path).read_bytes(), str(path))
    assert lock.pins.manifest == canonical.digest(read_manifest(path).settings())
