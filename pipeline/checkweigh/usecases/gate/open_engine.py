"""Engines as measurement starts them: those with a KV cache behind the guard's admission."""

from __future__ import annotations

from pathlib import Path

from checkweigh.engines.launch import open_engine
from checkweigh.engines.protocol import Engine
from checkweigh.engines.spec import EngineSpec, Timeouts
from checkweigh.guard.admission.guarded_engine import GuardedEngine

SCORING = 8  # scored together: prompt_logprobs of long prompts are what kills a server


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
