"""What a policy's load asks of the arms and of its trace, checked before anything starts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from checkweigh.errors import BadDocument, Problem
from checkweigh.records.load_spec import Trace
from checkweigh.records.policy import Policy
from checkweigh.sources.load_trace import TraceRequest, read_trace
from checkweigh.sources.pin import Resolved

EMBEDDED = ("transformers", "fake")  # engines that answer this process only
TEMPLATE_TOKENS = 64  # of a chat template around one message, at most


def loaded(path: Path, policy: Policy, arms: Sequence[Resolved | None]) -> tuple[TraceRequest, ...]:
    """The rows of the trace that the policy replays, if it does. Raises BadDocument with all that does not fit."""
    load = policy.timing.load
    if load is None:
        return ()
    rows: tuple[TraceRequest, ...] = ()
    if isinstance(load.arrivals, Trace):
        rows = read_trace(path.resolve().parent / load.arrivals.file)
    problems = [
        Problem(file=str(path), line=None, path=where, expected=expected, found=found)
        for where, expected, found in _misfits(policy, [arm for arm in arms if arm is not None], rows)
    ]
    if problems:
        raise BadDocument(problems)
    return rows


def _misfits(policy: Policy, arms: Sequence[Resolved], rows: Sequence[TraceRequest]) -> Iterator[tuple[str, str, str]]:
    """(path, expected, found)."""
    timing = policy.timing
    embedded = dict.fromkeys(str(arm.path) for arm in arms if arm.manifest.engine.kind in EMBEDDED)
    if embedded:
        served = "manifests of engines that serve over HTTP, such as vllm"
        yield "timing.load", served, f"embedded ones in {', '.join(embedded)}"
    arrivals = None if timing.load is None else timing.load.arrivals
    if not isinstance(arrivals, Trace):
        return
    needed = timing.looks[-1] * timing.requests
    if len(rows) < needed:
        yield (
            "timing.load.arrivals.file",
            f"a trace of {needed} requests, one for each of all blocks",
            f"{len(rows)}",
        )
    longest = arrivals.max_prompt_tokens + arrivals.max_output_tokens + TEMPLATE_TOKENS
    for arm in arms:
        if arm.manifest.limits.max_sequence < longest:
            yield (
                "timing.load.arrivals",
                f"max_prompt_tokens and max_output_tokens that fit into {arm.manifest.name}'s limits.max_sequence",
                f"{longest} tokens with the template's, {arm.manifest.limits.max_sequence} allowed",
            )
