"""Guarded serving of one manifest or two: verified, planned, held against the host, said, and run until stopped."""

from __future__ import annotations

import asyncio
import signal
import statistics
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from checkweigh.engines.mock.mock_knobs import MockKnobs
from checkweigh.engines.mock.serve import listen
from checkweigh.errors import BadDocument, BadInput, ExitCode, Problem
from checkweigh.guard.banner import banner
from checkweigh.guard.guard import ArmSource, Guard, GuardSetup
from checkweigh.guard.guard_policy import GuardPolicy
from checkweigh.guard.host_gauges import host_warnings
from checkweigh.guard.http.request_schema import Bounds, Count
from checkweigh.guard.routing import ArmName
from checkweigh.guard.supervision.launch_plan import mock_plan, vllm_plan
from checkweigh.progress import Progress, Say
from checkweigh.records.decision import Decision
from checkweigh.records.yaml.document import parse
from checkweigh.sources.documents import read_bytes
from checkweigh.sources.model.render import Renderer
from checkweigh.sources.pin import Resolved, verify
from checkweigh.usecases.gate.open_engine import engine_spec
from checkweigh.usecases.read_decision import read_decision

if TYPE_CHECKING:
    from checkweigh.usecases.release.admit import (
        Proof,
    )  # needs the extra `attest`, which serving alone does not

LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """What the command line says. ``split``: shares of baseline and candidate, in percent. ``proofs``: one each."""

    manifests: tuple[Path, ...]
    limits: Path | None
    split: str | None
    shadow: bool
    host: str
    port: int
    logs: Path
    proofs: tuple[Proof, ...] = ()


def read_limits(path: Path | None) -> GuardPolicy:
    """The policy of a file, or the defaults. Raises BadDocument."""
    return (
        GuardPolicy() if path is None else parse(GuardPolicy, read_bytes(path, "a guard policy"), str(path))
    )


def serve(asked: Serving, progress: Progress, say: Say, tell: Say) -> ExitCode:
    """Serve until SIGTERM or SIGINT, then drain. ``tell`` hears the address once it is listened on.

    1. Read the policy; where proofs are required, admit by them: BLOCK, with every reason said, before anything starts.
    2. Verify the manifests. 3. Hold them against the host; refuse what is unsafe.
    4. Say what is in force. 5. Serve. PASS after a stop that was asked for; BROKEN when an engine had given up.
    """
    share = _share(asked)
    policy = read_limits(asked.limits)
    admitted = _admitted(asked, progress, say)
    if admitted is None:
        return ExitCode.BLOCK
    resolved = [verify(path, progress) for path in asked.manifests]
    for one, pins in zip(resolved, admitted, strict=False):
        if one.pins.record_digest() != pins:
            raise BadInput(
                f"{one.path}: expected the pins that were admitted, found others: it changed meanwhile"
            )
    setup = _setup(asked, policy, resolved, share)
    keyless = not policy.surface.keys
    if asked.host not in LOOPBACK and keyless:
        raise BadInput(
            f"--host {asked.host}: expected surface.keys in the guard policy, found none: it would be open"
        )
    for line in banner(
        setup, [(r.manifest.name, r.manifest.engine.kind, r.manifest.unsafe) for r in resolved]
    ):
        say(line)
    for line in _warnings(setup, resolved[0], keyless=keyless):
        say(f"warning: {line}")
    guard = Guard(setup, say)
    asyncio.run(_run(guard, asked, setup.bounds.model, tell))
    gave_up = [
        name for name, arm in guard.arms.items()
        if arm.supervisor is not None and arm.supervisor.gave_up
    ]  # fmt: skip
    return ExitCode.BROKEN if gave_up else ExitCode.PASS


def _admitted(asked: Serving, progress: Progress, say: Say) -> list[str] | None:
    """The digests of the pins admitted, none where no proof is required. None: something was refused."""
    if not asked.proofs:
        return []
    from checkweigh.usecases.release.admit import admit

    found = [admit(path, proof, progress) for path, proof in zip(asked.manifests, asked.proofs, strict=True)]
    for path, one in zip(asked.manifests, found, strict=True):
        for line in one.lines(path):
            say(line)
    return [one.pins.record_digest() for one in found] if all(one.admitted for one in found) else None


async def _run(guard: Guard, asked: Serving, model: str, tell: Say) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, guard.drain)
    with listen(asked.port, asked.host) as bound:
        tell(f"http://{asked.host}:{bound.getsockname()[1]}/v1")
        await guard.run(bound)


def _share(asked: Serving) -> float:
    """The candidate's share of sessions. Raises BadInput for options that do not fit."""
    if len(asked.manifests) == 1:
        if asked.split is not None or asked.shadow:
            raise BadInput("--split and --shadow: expected two manifests, found one")
        return 0.0
    if (asked.split is None) == (not asked.shadow):
        raise BadInput("expected either --split or --shadow with two manifests")
    if asked.split is None:
        return 0.0
    parts = asked.split.split("/")
    with suppress(ValueError):
        shares = [int(part) for part in parts]
        if len(shares) == 2 and min(shares) >= 0 and sum(shares) == 100:
            return shares[1] / 100
    raise BadInput(f"--split: expected two percentages that sum to 100, such as 90/10, found '{asked.split}'")


def _setup(asked: Serving, policy: GuardPolicy, resolved: list[Resolved], share: float) -> GuardSetup:
    first = resolved[0].manifest
    limit = min(r.manifest.limits.max_sequence for r in resolved)
    longest = min(policy.admission.max_sequence or limit, limit)
    policy = policy.model_copy(
        update={"warmup": policy.warmup.model_copy(
            update={"lengths": tuple(sorted({max(1, min(n, longest // 4)) for n in policy.warmup.lengths}))}
        )}
    )  # fmt: skip
    sources = [_source(r, asked.logs / f"{r.manifest.name}.log") for r in resolved]
    return GuardSetup(
        policy=policy,
        bounds=Bounds(
            model=first.name, max_sequence=longest, max_tokens=min(policy.admission.max_tokens, longest - 1),
            default_tokens=policy.admission.default_tokens, count=_count(resolved[0]),
        ),
        slots=min(_slots(r) for r in resolved),
        baseline=sources[0],
        candidate=sources[1] if len(sources) > 1 else None,
        share=share,
        shadow=asked.shadow,
        norm_p99_s=_norm(asked.limits, policy, resolved[0]),
    )  # fmt: skip


def _source(resolved: Resolved, log: Path) -> ArmSource:
    """How the manifest's engine is started. Raises BadInput where it cannot be."""
    manifest = resolved.manifest
    if manifest.engine.kind == "vllm":
        plan = vllm_plan(engine_spec(resolved), log)
        plan()  # says now, not in a restart loop, what is missing
        return plan
    if manifest.engine.kind == "fake":
        options = manifest.engine.options
        knobs = MockKnobs(
            model=manifest.name, max_len=manifest.limits.max_sequence, slots=manifest.engine.max_batch,
            first_ms=1e3 * float(options.get("latency_s", 0.0)),
            token_ms=1e3 * float(options.get("token_latency_s", 0.0)),
        )  # fmt: skip
        return mock_plan(knobs, log)
    raise BadInput(
        f"{resolved.path}: engine.kind: expected vllm (or fake: the mock), found {manifest.engine.kind}"
    )


def _slots(resolved: Resolved) -> int:
    """Requests that the engine computes together; beyond them it queues, without bound."""
    engine = resolved.manifest.engine
    return (engine.args.max_num_seqs if engine.args is not None else None) or engine.max_batch


def _count(resolved: Resolved) -> Count:
    """Tokens of a text, by the manifest's own tokenizer."""
    renderer = Renderer(resolved.tokenizer_dir, resolved.chat_template)
    return lambda text: len(renderer.encode(text))


def _norm(limits: Path | None, policy: GuardPolicy, resolved: Resolved) -> float | None:
    """The p99 of the time to first token that the gate measured: the median over its blocks, of this manifest's arm.

    Raises BadInput when the gate did not pass this very manifest, or timed nothing.
    """
    if policy.monitor.gate is None:
        return None
    folder = (Path() if limits is None else limits.parent) / policy.monitor.gate
    decision = read_decision(folder)
    arm = _arm_of(decision, resolved.pins.record_digest())
    blocks = () if decision.timing is None else decision.timing.blocks
    measured = [block.candidate if arm == "candidate" else block.baseline for block in blocks]
    values = [] if arm is None else [values["ttft.p99"] for values in measured if "ttft.p99" in values]
    if not values:
        found = "none of this manifest's pins" if arm is None else "no ttft.p99"
        raise BadDocument(
            [
                Problem(
                    file=str(folder),
                    line=None,
                    path="timing",
                    expected="a passed gate that timed it",
                    found=found,
                )
            ]
        )
    return statistics.median(values)


def _arm_of(decision: Decision, pins: str) -> ArmName | None:
    if decision.baseline.pins == pins:
        return "baseline"
    passed = decision.verdict.exit_code is ExitCode.PASS
    return "candidate" if passed and decision.candidate.pins == pins else None


def _warnings(setup: GuardSetup, resolved: Resolved, *, keyless: bool) -> list[str]:
    found = host_warnings(setup.policy.admission.headroom)
    slots = setup.policy.admission.slots
    if slots is not None and slots > _slots(resolved):
        found.append(
            f"admission.slots {slots} is above the engine's {_slots(resolved)}: the rest queues inside it, unseen"
        )
    if keyless:
        found.append("no API keys: whoever reaches the port is served")
    return found
