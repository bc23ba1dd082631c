"""What is part of a manifest's digest: everything but its name, comment and intents."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from checkweigh import canonical
from checkweigh.records.evalset import Message
from checkweigh.records.manifest import Manifest, PromptsSection
from checkweigh.sources.undeclared import declared_changes

Path = tuple[str | int, ...]
COMMIT = "0123456789abcdef0123456789abcdef01234567"
FULL: dict[str, Any] = {
    "schema": "checkweigh/manifest@1",
    "name": "full",
    "comment": "words",
    "intends": ["shorter"],
    "model": {
        "source": "path:model",
        "parts": ["path:rest"],
        "digest": "sha256:" + "1" * 64,
        "derive": {"recipe": "gguf-to-safetensors", "version": 1},
        "adapters": [{"source": "path:adapter", "scale": 0.5}],
        "unsafe_pickle": False,
        "unsafe_remote_code": False,
    },
    "tokenizer": {"source": "path:tokenizer"},
    "prompts": {"system": "Be brief.", "template": "Q: {prompt}", "chat_template": "path:chat.jinja"},
    "quantization": {"method": "bitsandbytes", "bits": 4, "type": "nf4", "double": False, "kv_dtype": "auto"},
    "engine": {
        "kind": "fake", "version": "1", "dtype": "float32", "device": "cpu", "threads": 2, "max_batch": 4,
        "max_batch_tokens": 64, "options": {"bias": 1.5, "word": "x", "count": 3, "on": True},
        "speculative": None, "stride": None, "continuous": False, "environment": None, "env": {}, "args": None,
        "endpoint": None,
    },
    "sampling": {"temperature": 0.5, "top_p": 0.9, "max_tokens": 24, "seed": 3, "stop": ["a", "b"]},
    "limits": {"max_sequence": 512, "memory_headroom": 0.25},
}  # fmt: skip
VLLM: dict[Path, Any] = {
    ("engine", "kind"): "vllm", ("engine", "options"): {}, ("engine", "environment"): {"lock": "a.txt"},
    ("engine", "env"): {"VLLM_CPU_OMP_THREADS_BIND": "0-1", "VLLM_CPU_KVCACHE_SPACE": "1"},
}  # fmt: skip
# Leaves that only one value fits, and what else must change for another one to fit.
TOGETHER: dict[Path, dict[Path, Any]] = {
    ("quantization", "bits"): {("quantization", "bits"): 8, ("quantization", "type"): "int8"},
    ("quantization", "type"): {("quantization", "type"): "fp4"},
    ("quantization", "method"): {
        ("quantization", "method"): "none", ("quantization", "bits"): None, ("quantization", "type"): None,
    },
    ("engine", "kind"): {("engine", "kind"): "transformers", ("engine", "options"): {}},
    ("engine", "speculative"): {
        ("engine", "speculative"): {"method": "prompt_lookup", "num_tokens": 4, "max_ngram": 2},
        ("engine", "kind"): "transformers", ("engine", "options"): {}, ("sampling", "temperature"): 0.0,
    },
    ("engine", "environment"): VLLM,
    ("engine", "args"): VLLM | {("engine", "args"): {"max_num_seqs": 3}},
    ("engine", "endpoint"): {
        ("engine", "endpoint"): {"url": "http://h/v1", "model": "m"}, ("engine", "kind"): "openai",
        ("engine", "options"): {},
    },
    ("engine", "dtype"): {("engine", "dtype"): "float16"},
    ("engine", "device"): {("engine", "device"): "cuda"},
    ("prompts", "template"): {("prompts", "template"): "{prompt}"},
    ("limits", "memory_headroom"): {("limits", "memory_headroom"): 0.5},
    ("engine", "stride"): {
        ("engine", "stride"): 64, ("engine", "kind"): "transformers", ("engine", "options"): {},
    },
    ("engine", "continuous"): {
        ("engine", "continuous"): True, ("engine", "kind"): "transformers", ("engine", "options"): {},
        ("sampling", "temperature"): 0.0,
    },
    ("model", "digest"): {("model", "digest"): "sha256:" + "2" * 64},
}  # fmt: skip
FIXED = {("model", "derive", "recipe"), ("model", "derive", "version"), ("quantization", "kv_dtype")}


def leaves(value: Any, path: Path = ()) -> Iterator[Path]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from leaves(inner, (*path, key))
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            yield from leaves(inner, (*path, i))
    else:
        yield path


def read(document: dict[str, Any]) -> Manifest:
    return Manifest.model_validate_json(json.dumps(document))


def digest(document: dict[str, Any]) -> str:
    return canonical.digest(read(document).declared())


def with_values(values: dict[Path, Any]) -> dict[str, Any]:
    document = copy.deepcopy(FULL)
    for path, value in values.items():
        at: Any = document
        for part in path[:-1]:
            at = at[part]
        at[path[-1]] = value
    return document


def other(value: Any) -> Any:
    if value is None or isinstance(value, bool):
        return not value
    return value / 2 if isinstance(value, float) else value * 2 if isinstance(value, int) else value + "x"


NOT_DECLARED = ("schema", "name", "comment", "intends")
DECLARED = list(leaves({key: value for key, value in FULL.items() if key not in NOT_DECLARED}))


def test_the_full_manifest_names_every_field() -> None:
    """So that a new field cannot be forgotten here."""
    dumped = json.loads(read(FULL).model_dump_json(by_alias=True))
    assert set(leaves(dumped)) == set(leaves(FULL))


@pytest.mark.parametrize("path", [path for path in DECLARED if path not in FIXED], ids=canonical.dumps)
def test_every_declared_leaf_is_part_of_the_digest(path: Path) -> None:
    at: Any = FULL
    for part in path:
        at = at[part]
    changed = with_values(TOGETHER.get(path, {path: other(at)}))
    assert digest(changed) != digest(FULL)
    assert declared_changes(read(FULL), read(changed))


def speculating(**changes: Any) -> dict[str, Any]:
    setting = {
        "method": "draft", "num_tokens": 4,
        "model": {"source": "path:draft", "derive": {"recipe": "gguf-to-safetensors", "version": 1}},
    } | changes  # fmt: skip
    values = dict(TOGETHER["engine", "speculative"]) | {("engine", "speculative"): setting}
    return with_values(values)


def test_every_part_of_speculation_is_part_of_the_digest() -> None:
    lookup = {"method": "prompt_lookup", "max_ngram": 3}
    documents = [speculating(), speculating(num_tokens=5), speculating(model={"source": "path:other"})]
    for document in (speculating(**lookup), speculating(**lookup | {"max_ngram": 4})):
        del document["engine"]["speculative"]["model"]
        documents.append(document)
    assert len({digest(document) for document in documents}) == len(documents)
    shown = {change.path for change in declared_changes(read(documents[3]), read(documents[4]))}
    assert shown == {"engine.speculative.max_ngram"}
    later = {"speculative", "environment", "env", "args", "endpoint"}
    assert not later & set(read(FULL).declared()["engine"]), "locks from before them stay current"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({("engine", "kind"): "fake"}, "engine fake takes no speculative"),
        ({("sampling", "temperature"): 0.5}, "engine.speculative takes sampling.temperature 0.0"),
        ({("engine", "speculative", "num_tokens"): 0}, "greater than or equal to 1"),
        ({("engine", "speculative", "method"): "medusa"}, "'prompt_lookup', 'draft', 'ngram', 'eagle3'"),
        ({("engine", "speculative", "max_ngram"): 2}, "Extra inputs"),
        ({("engine", "speculative", "model", "unsafe_pickle"): True}, "Extra inputs"),
    ],
)
def test_speculation_that_cannot_be(values: dict[Path, Any], message: str) -> None:
    document = speculating()
    for path, value in values.items():
        at: Any = document
        for part in path[:-1]:
            at = at[part]
        at[path[-1]] = value
    with pytest.raises(ValidationError, match=message):
        read(document)


def vllm(changes: dict[Path, Any]) -> dict[str, Any]:
    return with_values(VLLM | {("engine", "args"): {"max_num_seqs": 3}} | changes)


def test_every_setting_of_a_server_is_part_of_the_digest() -> None:
    args = ("engine", "args")
    documents = [vllm({})]
    for name, value in {
        "enforce_eager": True, "max_num_seqs": 1, "max_num_batched_tokens": 64, "prefix_caching": False,
        "chunked_prefill": False, "block_size": 16, "gpu_memory_utilization": 0.5, "kv_cache_memory_bytes": 9,
        "tensor_parallel": 2, "pipeline_parallel": 2, "scheduling": "priority", "extra": {"--watermark": 0.1},
    }.items():  # fmt: skip
        documents.append(vllm({args: {"max_num_seqs": 3, name: value}}))
    environments = {"interpreter": "bin/python"}, {"lock": "b.txt"}, {"image": f"i@sha256:{'0' * 64}"}
    documents += [vllm({("engine", "environment"): one}) for one in environments]
    env = {"VLLM_CPU_OMP_THREADS_BIND": "2-3", "VLLM_CPU_KVCACHE_SPACE": "1"}
    documents += [vllm({("engine", "env"): env}), vllm({("quantization",): {"kv_dtype": "fp8"}})]
    documents += [
        vllm({("quantization",): {"method": m}}) for m in ("awq", "gptq", "fp8", "compressed-tensors")
    ]
    for one in (
        {"method": "ngram", "num_tokens": 4}, {"method": "ngram", "num_tokens": 4, "min_ngram": 3},
        {"method": "draft", "num_tokens": 4, "model": {"source": "path:d"}},
        {"method": "eagle3", "num_tokens": 4, "model": {"source": "path:d"}},
    ):  # fmt: skip
        documents.append(vllm({("engine", "speculative"): one}))
    assert len({digest(document) for document in documents}) == len(documents)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({("engine", "environment"): None}, "engine vllm takes environment"),
        ({("engine", "environment"): {}}, "exactly one of interpreter, lock and image"),
        ({("engine", "environment"): {"lock": "a", "interpreter": "b"}}, "exactly one"),
        ({("engine", "environment"): {"image": "vllm/vllm-openai:latest"}}, "sha256"),
        ({("engine", "env"): {}}, "VLLM_CPU_OMP_THREADS_BIND"),
        ({("engine", "env"): {"VLLM_CPU_OMP_THREADS_BIND": "0"}}, "VLLM_CPU_KVCACHE_SPACE"),
        ({("engine", "env"): {"HF_TOKEN": "x"}}, "VLLM_CPU_OMP_THREADS_BIND"),
        ({("engine", "args"): {"extra": {"--api-key": "x"}}}, "--long-prefill"),
        ({("engine", "args"): {"max_num_sequences": 1}}, "Extra inputs"),
        ({("engine", "speculative"): {"method": "prompt_lookup", "num_tokens": 4}}, "but ngram, draft, eagle3"),
        ({("engine", "speculative"): {"method": "ngram", "num_tokens": 4, "min_ngram": 5}}, "min_ngram"),
        ({("engine", "endpoint"): {"url": "http://h/v1", "model": "m"}}, "engine openai, and no other"),
        ({("engine", "kind"): "transformers"}, "takes neither environment nor env nor args"),
        ({("quantization",): {"method": "fp8", "bits": 8}}, "neither bits nor type"),
    ],
)  # fmt: skip
def test_servers_that_cannot_be(changes: dict[Path, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        read(vllm(changes))


@pytest.mark.parametrize(
    ("endpoint", "message"),
    [
        (None, "engine openai"), ({"url": "h/v1", "model": "m"}, "pattern"),
        ({"url": "http://user:key@h/v1", "model": "m"}, "pattern"),
        ({"url": "http://h/v1", "model": "m", "key_env": "sk-123"}, "pattern"),
    ],
)  # fmt: skip
def test_a_key_is_never_in_a_manifest(endpoint: Any, message: str) -> None:
    document = with_values(
        {("engine", "kind"): "openai", ("engine", "options"): {}, ("engine", "endpoint"): endpoint}
    )
    with pytest.raises(ValidationError, match=message):
        read(document)


def test_every_section_can_be_left_out_but_counts() -> None:
    for section in ("tokenizer", "prompts", "quantization", "sampling", "limits"):
        assert digest({key: value for key, value in FULL.items() if key != section}) != digest(FULL)
    for names in (("derive", "parts", "digest"), ("parts", "digest"), ("adapters",)):
        document = copy.deepcopy(FULL)
        for name in names:
            del document["model"][name]
        assert digest(document) != digest(FULL)


@given(
    st.from_regex(r"\A[a-z0-9][a-z0-9._-]{0,20}\Z"),
    st.text(alphabet=st.characters(exclude_categories=("Cs",))),
    st.lists(st.sampled_from(["shorter", "longer"]), max_size=2),
)
def test_name_comment_and_intents_are_not(name: str, comment: str, intends: list[str]) -> None:
    document = FULL | {"name": name, "comment": comment, "intends": intends}
    assert digest(document) == digest(FULL)
    assert declared_changes(read(FULL), read(document)) == ()


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
)


@given(VALUES, st.sampled_from(list(leaves(FULL))))
def test_no_value_breaks_the_parser(value: Any, path: Path) -> None:
    try:
        manifest = read(with_values({path: value}))
    except ValidationError:
        return
    assert read(json.loads(manifest.model_dump_json(by_alias=True))) == manifest
    assert digest(json.loads(manifest.model_dump_json(by_alias=True))) == canonical.digest(
        manifest.declared()
    )


def test_written_out_defaults_are_the_defaults() -> None:
    short = {key: FULL[key] for key in ("schema", "name")}
    short |= {"model": {"source": "path:m"}, "engine": {"kind": "fake", "version": "1"}}
    whole = json.loads(read(short).model_dump_json(by_alias=True))
    assert digest(whole) == digest(short)


def test_messages_are_composed_once() -> None:
    prompts = PromptsSection(system="Be {prompt}.", template="Q: {prompt}!")
    turns = [Message(role="user", content="{prompt}"), Message(role="assistant", content="a")]
    assert [(m.role, m.content) for m in prompts.compose(turns)] == [
        ("system", "Be {prompt}."), ("user", "Q: {prompt}!"), ("assistant", "a"),
    ]  # fmt: skip
