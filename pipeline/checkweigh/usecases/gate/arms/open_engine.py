"""Engines as measurement starts them: those with a KV cache behind the guard's admission."""

from __future__ import annotations

from pathlib import Path

from checkweigh.engines.launch import open_engine
from checkweigh.engines.protocol import Engine
from checkweigh.engines.spec import EngineSpec, Timeouts
from checkweigh.guard.admission.guarded_engine import GuardedEngine
from checkweigh.sources.pin import Resolved
from checkweigh.sources.private_copy import PrivateCopy

SCORING = 8  # scored together: prompt_logprobs of long prompts are what kills a server


def engine_spec(resolved: Resolved, copy: PrivateCopy | None = None) -> EngineSpec:
    """What the engine of a verified manifest is started with, on a private ``copy`` of its files where there is one.

    A container does not see where the links of a copy lead: it gets the user's own folders.
    """
    packages = resolved.packages
    if copy is None or (packages is not None and packages.image is not None):
        copy = PrivateCopy({})
    return EngineSpec(
        manifest=resolved.manifest, model_dir=copy.of(resolved.model_dir),
        tokenizer_dir=copy.of(resolved.tokenizer_dir), chat_template=resolved.chat_template,
        draft_dir=None if resolved.draft_dir is None else copy.of(resolved.draft_dir),
        lock=None if packages is None else packages.lock, python=None if packages is None else packages.python,
        image=None if packages is None else packages.image,
        packages={} if packages is None else packages.computing,
    )  # fmt: skip


def open_protected(spec: EngineSpec, *, log: Path, timeouts: Timeouts | None = None) -> Engine:
    """As ``open_engine``; an evaluation cannot fill a server's cache beyond its headroom."""
    inner = open_engine(spec, log=log, timeouts=timeouts)
    manifest = spec.manifest
    if manifest.engine.kind != "vllm":
        return inner
    slots = (
        manifest.engine.args.max_num_seqs if manifest.engine.args is not None else None
    ) or manifest.engine.max_batch
    return GuardedEngine(
        inner, headroom=manifest.limits.memory_headroom, slots=max(slots, manifest.engine.max_batch), scoring=SCORING,
        max_tokens=manifest.sampling.max_tokens,
    )  # fmt: skip
