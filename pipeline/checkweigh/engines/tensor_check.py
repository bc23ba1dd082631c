"""Whether a folder has the tensors that its architecture expects, asked of the engine's transformers before a start.

vLLM refuses a parameter that got no tensor at all, but it fuses tensors: one of three that make a parameter may be
missing unseen. The embedded engine accounts for every tensor once it has loaded; here that is known before the
baseline's minutes are spent. ``engines/expected_tensors.py`` looks for every tensor by name; its answer is remembered.

1. The key: what is read of the folder, the environment, the script. It is computed anew each time.
2. Only a sound answer is remembered, sealed, with its key. What cannot be read, or has another key, is asked again.
3. An answer about other content than the key's is refused: the folder was changed meanwhile.
"""

from __future__ import annotations

import json
import secrets
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from checkweigh import canonical
from checkweigh.engines import expected_tensors
from checkweigh.engines.processes import container
from checkweigh.engines.spec import EngineSpec
from checkweigh.errors import BadDocument, BadInput, EngineError, Problem, SourceError, StoreError
from checkweigh.files import read_sealed, write_sealed
from checkweigh.records.manifest import Eagle3
from checkweigh.sources.cache import cache_root
from checkweigh.sources.engine_lock import read_engine_lock

SCRIPT = Path(expected_tensors.__file__)
CHECKING_S = 600.0
SHOWN = 20  # problems of one folder that are listed by name


def require_tensors(spec: EngineSpec, python: Path) -> None:
    """BadDocument, naming every tensor: the model or the drafting model lacks one, or has one that is none of its own.

    SourceError: a folder cannot be read. BadInput: its architecture cannot be built. EngineError: it was not answered.
    """
    manifest = spec.manifest
    folders = [("model", spec.model_dir, "model", manifest.model.unsafe_remote_code)]
    if spec.draft_dir is not None:  # transformers has no architecture of a drafting head
        kind = "head" if isinstance(manifest.engine.speculative, Eagle3) else "model"
        folders.append(("engine.speculative.model", spec.draft_dir, kind, False))
    problems = []
    for path, folder, kind, trusted in folders:
        found = _problems(spec, python, folder, [kind, *(["trusted"] if trusted else [])])
        if more := len(found[SHOWN:]):
            left = {"name": "all others", "expected": "its tensors", "found": f"{more} more problems"}
            found = [*found[:SHOWN], left]
        problems += [
            Problem(file=manifest.name, line=None, path=f"{path}: {one['name']}", expected=one["expected"],
                    found=one["found"])
            for one in found
        ]  # fmt: skip
    if problems:
        raise BadDocument(problems)


def _problems(spec: EngineSpec, python: Path, folder: Path, words: Sequence[str]) -> list[dict[str, str]]:
    """What is wrong with the tensors of one folder."""
    try:
        content = expected_tensors.content(folder)
        script = canonical.digest_bytes(SCRIPT.read_bytes())
    except (OSError, ValueError) as error:
        raise SourceError(f"{folder}: its tensors cannot be read ({error})") from error
    key = {"content": content, "words": list(words), "environment": _environment(spec), "script": script}
    remembered = cache_root() / "tensors" / canonical.digest(key).removeprefix("sha256:")
    with suppress(OSError, ValueError):
        if read_sealed(remembered) == key:
            return []
    answer = _ask(spec, python, folder, words)
    problems: list[dict[str, str]] = answer["problems"]
    if answer["content"] != content:
        raise SourceError(f"{folder}: was changed while its tensors were checked")
    if not problems:
        with suppress(StoreError):  # a memory that cannot be written costs time
            write_sealed(remembered, key)
    return problems


def _environment(spec: EngineSpec) -> object:
    """What says which transformers answers."""
    if spec.lock is not None:
        return read_engine_lock(spec.lock).digest
    if spec.manifest.engine.kind == "transformers":
        return {name: metadata.version(name) for name in ("transformers", "torch", "safetensors")}
    return [spec.image, str(spec.python), dict(spec.packages)]


def _ask(spec: EngineSpec, python: Path, folder: Path, words: Sequence[str]) -> dict[str, Any]:
    """The script's answer, from the engine's interpreter or inside its image."""
    what, name = f"{spec.manifest.name}: the tensors of {folder}", f"checkweigh-{secrets.token_hex(8)}"
    if spec.image is None:
        command = [str(python), "-I", str(SCRIPT), str(folder), *words]
    else:
        command = container.once(
            spec.image, ["-I", str(SCRIPT), str(folder), *words], [SCRIPT.parent, folder], name
        )
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=CHECKING_S, check=False, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        if spec.image is not None:
            subprocess.run(container.ending(name), capture_output=True, check=False)
        raise EngineError(f"{what} could not be checked", cause=str(error)) from error
    if done.returncode:
        tail = "\n".join(done.stderr.strip().splitlines()[-4:])
        if done.returncode < 0 or "No module named" in tail:
            raise EngineError(
                f"{what} could not be checked", cause="the engine's Python failed", log_tail=tail
            )
        raise BadInput(f"{what} cannot be checked: its transformers cannot build the architecture:\n{tail}")
    try:
        answer = json.loads(done.stdout.strip().splitlines()[-1])
        if not isinstance(answer["content"], str) or not isinstance(answer["problems"], list):
            raise TypeError(str(answer)[:200])
    except (ValueError, LookupError, TypeError) as error:
        raise EngineError(f"{what} could not be checked", cause=f"no answer ({error})") from error
    return answer  # type: ignore[no-any-return]
