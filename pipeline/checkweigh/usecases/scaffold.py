"""A first gate of a model of one's own: manifests, policy, a small set and a workflow, written and pinned.

1. Find the model; refuse what a gate would refuse, before a line is written.
2. Compose all documents and read them as a gate will; nothing that exists is overwritten.
3. Write them, each whole; pin both manifests.

The same command again completes what an interrupted one began.
"""

from __future__ import annotations

import json
import os
import re
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from checkweigh import canonical
from checkweigh.errors import BadInput, RefusedFiles, SourceError
from checkweigh.files import write_atomic
from checkweigh.progress import Progress
from checkweigh.records.manifest import Manifest, Model, Quantization
from checkweigh.records.policy import Policy
from checkweigh.records.yaml.document import parse
from checkweigh.sources.model.inventory import list_files
from checkweigh.sources.model.model_directory import (
    read_json_object,
    template_file,
    template_text,
)
from checkweigh.sources.model.refusals import model_problems
from checkweigh.sources.pin import lock_path, pin
from checkweigh.sources.resolve import hub_commit, resolve

SETS = ("prose", "choices", "answers", "open-ended")
WORKFLOWS = {
    "workflows/github/gate.yml": ".github/workflows/checkweigh.yml",
    "workflows/github/action.yml": ".github/actions/checkweigh/action.yml",
}
DTYPES = ("bfloat16", "float16", "float32")
MAX_SEQUENCE = 2048  # tokens; more costs memory that most prompts never use
THREADS = 16
OWN_SET = "questions"
QUESTIONS = (
    ("What is the capital of France?", "Paris"), ("What is the capital of Japan?", "Tokyo"),
    ("How many days has a week?", "seven or 7"), ("What colour is the sky on a clear day?", "blue"),
    ("What is 7 plus 5?", "12 or twelve"), ("Which planet do we live on?", "Earth"),
    ("What is the opposite of hot?", "cold"), ("How many legs has a spider?", "eight or 8"),
    ("What is frozen water called?", "ice"), ("Which month comes after March?", "April"),
)  # fmt: skip
CARD = """\
schema: checkweigh/evalset@1
name: {name}
version: 1.0.0
kind: generation
licence: CC0-1.0
description: ten questions to replace by yours, and the words that a right answer has
source: items.jsonl
digest: {digest}
columns: {{prompt: question, references: answers}}
scorer: {{name: reply_check, version: 1}}
"""
CHECK = """\
  # Your own set. It informs only while it is small: with 60 clusters or more, raise both least numbers, give it a
  # margin of three of its standard errors, and make it critical.
  - id: {name}
    metric: score
    evalset: [{name}]
    direction: higher
    margin: 0.10
    because: ten questions as an example; replace them by what your users ask
    min_items: 10
    min_clusters: 10
    tier: advisory
"""
TEMPLATE = """\
{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}

{% elif m.role == 'user' %}Question: {{ m.content }}
{% else %}Answer: {{ m.content }}

{% endif %}{% endfor %}{% if add_generation_prompt %}Answer:{% endif %}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scaffold:
    """What was written, what was there already, and the commands that go on from it."""

    root: Path
    written: tuple[str, ...]
    kept: tuple[str, ...]
    notes: tuple[str, ...]
    gate: str

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        lists = {name: list(getattr(self, name)) for name in ("written", "kept", "notes")}
        return {"root": str(self.root), **lists, "gate": self.gate}

    def lines(self) -> list[str]:
        """For people."""
        lines = [f"wrote {self.root / path}" for path in self.written]
        lines += [f"was there already: {self.root / path}" for path in self.kept]
        return [*lines, *self.notes, "", "look at both manifests, then:", f"  {self.gate}"]


@dataclass(frozen=True, slots=True, kw_only=True)
class _ModelFacts:
    """What the manifests need to know of the model."""

    source: str
    folder: Path
    dtype: str
    longest: int
    templated: bool


def scaffold(model: str, into: Path, name: str | None, progress: Progress) -> Scaffold:
    """Write and pin. BadInput: the model is refused, a file of another content is there, or a name is none."""
    root = into.expanduser().absolute()
    facts = _find_model(model, root, progress)
    base_name = name or _name_of(facts.source)
    shipped = shipped_root()
    texts = _documents(base_name, facts, root, shipped)
    _refuse_conflicts(root, texts)
    written = [path for path, data in texts.items() if not _has_content(root / path, data)]
    for path in written:
        write_atomic(root / path, texts[path])
    kept = [path for path in texts if path not in written]
    for manifest in (f"manifests/{base_name}.yaml", f"manifests/{base_name}-int8.yaml"):
        lock = lock_path(root / manifest)
        if lock.exists():  # a lock that stands is a promise; only ``pin`` changes it
            kept.append(str(lock.relative_to(root)))
        else:
            pin(root / manifest, progress)
            written.append(str(lock.relative_to(root)))
    policy = next(path for path in texts if path.startswith("gates/"))
    return Scaffold(
        root=root, written=tuple(written), kept=tuple(kept),
        notes=_notes(base_name, facts, texts),
        gate=f"checkweigh gate manifests/{base_name}.yaml manifests/{base_name}-int8.yaml "
        f"--policy {policy} --out runs/{base_name}-int8",
    )  # fmt: skip


def shipped_root() -> Path:
    """Where policies, sets and workflows are that come with the tool: a checkout's top, or an installation's share."""
    checkout, share = Path(__file__).resolve().parents[3], Path(sys.prefix) / "share" / "checkweigh"
    for folder in (checkout, share):
        if (folder / "gates" / "default.yaml").is_file():
            return folder
    raise BadInput(
        f"the policies and sets that come with checkweigh are neither in {checkout} nor in {share}"
    )


def _find_model(model: str, root: Path, progress: Progress) -> _ModelFacts:
    """Step 1. A source relative to where the manifests will lie, or a hub's at one commit."""
    source = _source_of(model, root)
    # manifests/ may not be there yet, and nothing can be looked up from a folder that is not there
    local = source.startswith("path:")
    folder = _local_path(model).resolve() if local else resolve(source, root, progress).path
    if not folder.is_dir():
        raise SourceError(f"{model}: expected a model directory, found the file {folder.name}")
    files = list_files(folder)
    if problems := model_problems(folder, files, Model(source=source), Quantization(), "transformers"):
        raise RefusedFiles(problems)
    config = read_json_object(folder / "config.json")
    text = config.get("text_config") or config
    dtype = str(text.get("dtype") or text.get("torch_dtype") or config.get("dtype") or DTYPES[0])
    longest = text.get("max_position_embeddings")
    try:
        templated = bool(template_text(template_file(folder)))
    except SourceError:
        templated = False
    return _ModelFacts(
        source=source, folder=folder, dtype=dtype if dtype in DTYPES else DTYPES[0], templated=templated,
        longest=min(MAX_SEQUENCE, longest) if isinstance(longest, int) and longest >= 16 else MAX_SEQUENCE,
    )  # fmt: skip


def _local_path(model: str) -> Path:
    return Path(model.removeprefix("path:")).expanduser()


def _source_of(model: str, root: Path) -> str:
    path = _local_path(model)
    if path.exists() or model.startswith(("path:", "/", ".", "~")):
        if not path.exists():
            raise SourceError(
                f"{model}: expected a model directory or OWNER/NAME of a hub, found nothing there"
            )
        return f"path:{os.path.relpath(path.resolve(), (root / 'manifests').resolve())}"
    repo, _, commit = model.removeprefix("hf:").partition("@")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo):
        raise SourceError(f"{model}: expected a model directory or OWNER/NAME of a hub, found nothing there")
    if commit and not re.fullmatch(r"[0-9a-f]{40}", commit):
        raise SourceError(
            f"{model}: expected a commit of 40 hex digits, because a branch or tag moves, found {commit}"
        )
    return f"hf:{repo}@{commit or hub_commit(repo)}"


def _name_of(source: str) -> str:
    last = source.partition("@")[0].rstrip("/").rpartition("/")[2].removeprefix("path:").lower()
    return re.sub(r"[^a-z0-9._-]+", "-", last).strip("-._") or "model"


def _documents(name: str, facts: _ModelFacts, root: Path, shipped: Path) -> dict[str, bytes]:
    """Step 2: path -> bytes. Every document is read as a gate will read it."""
    texts: dict[str, bytes] = {}
    for suffix, quantization in (
        ("", {"method": "none"}),
        ("-int8", {"method": "bitsandbytes", "bits": 8, "type": "int8"}),
    ):
        path = f"manifests/{name}{suffix}.yaml"
        texts[path] = _manifest(f"{name}{suffix}", name, facts, quantization)
        parse(Manifest, texts[path], path)
    if not facts.templated:
        texts[f"manifests/{name}.jinja"] = TEMPLATE.encode()
    items = "".join(
        json.dumps({"question": question, "answers": answer.split(" or ")}) + "\n"
        for question, answer in QUESTIONS
    ).encode()
    texts[f"evalsets/{OWN_SET}/items.jsonl"] = items
    card = CARD.format(name=OWN_SET, digest=canonical.digest_bytes(items))
    texts[f"evalsets/{OWN_SET}/card.yaml"] = card.encode()
    policy = (shipped / "gates/default.yaml").read_text(encoding="utf-8") + CHECK.format(name=OWN_SET)
    gates = "gates/default.yaml"
    if (root / gates).exists() and not _has_content(root / gates, policy.encode()):
        gates, policy = f"gates/{name}.yaml", policy.replace("name: default\n", f"name: {name}\n", 1)
    texts[gates] = policy.encode()
    parse(Policy, texts[gates], gates)
    if root.resolve() != shipped:
        texts |= _copies(shipped)
    return texts


def _manifest(name: str, baseline: str, facts: _ModelFacts, quantization: dict[str, Any]) -> bytes:
    prompts = {} if facts.templated else {"prompts": {"chat_template": f"path:{baseline}.jinja"}}
    document = {
        "schema": "checkweigh/manifest@1",
        "name": name,
        "model": {"source": facts.source},
        **prompts,
        "quantization": quantization,
        "engine": {
            "kind": "transformers", "version": _installed("transformers"), "dtype": facts.dtype, "device": "cpu",
            "threads": min(THREADS, len(_cores())), "max_batch": 16, "max_batch_tokens": 2048,
        },
        "sampling": {"temperature": 0.0, "max_tokens": 48, "seed": 0},
        "limits": {"max_sequence": facts.longest, "memory_headroom": 0.25},
    }  # fmt: skip
    return yaml.safe_dump(document, sort_keys=False, width=1000, allow_unicode=True).encode()


def _copies(shipped: Path) -> dict[str, bytes]:
    """The default policy's sets and the workflow, where they come with this installation."""
    copies = {}
    for name in SETS:
        for file in ("card.yaml", "items.jsonl"):
            path = f"evalsets/{name}/{file}"
            copies[path] = (shipped / path).read_bytes()
    for source, target in WORKFLOWS.items():
        if (shipped / source).is_file():
            copies[target] = (shipped / source).read_bytes()
    return copies


def _refuse_conflicts(root: Path, texts: dict[str, bytes]) -> None:
    there = [
        path for path, data in texts.items() if (root / path).exists() and not _has_content(root / path, data)
    ]
    if there:
        listed = "\n".join(f"{root / path}: expected no such file, or this command's own" for path in there)
        raise BadInput(f"{listed}\nnothing was written; --into or --name names another place")


def _has_content(path: Path, data: bytes) -> bool:
    try:
        return path.is_file() and path.read_bytes() == data
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror})") from error


def _notes(name: str, facts: _ModelFacts, texts: dict[str, bytes]) -> tuple[str, ...]:
    notes = [
        f"manifests/{name}-int8.yaml is an example of a change: edit it into what you would ship, and pin it again"
    ]
    if not facts.templated:
        notes.append(f"the tokenizer has no chat template: manifests/{name}.jinja asks plain questions")
    if not any(path.startswith(".github/") for path in texts):
        notes.append("no workflow was written: this is the place that workflows are copied from")
    elif facts.source.startswith("path:"):
        notes.append(
            "the workflow needs the model where the manifests say: a hub id goes everywhere, a path does not"
        )
    return tuple(notes)


def _installed(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        raise BadInput(f"{package} is not installed: pip install 'checkweigh[engine]'") from None


def _cores() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return set(os.sched_getaffinity(0))
    return set(range(os.cpu_count() or 1))
