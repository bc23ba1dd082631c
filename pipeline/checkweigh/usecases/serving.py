"""Serve one manifest or two behind the guard: verify them, check the host, say what is in force, run until stopped."""

from __future__ import annotations

import asyncio
import signal
import statistics
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from checkweigh.engines.http.client import Endpoint
from checkweigh.engines.mock.mock_knobs import MockKnobs
from checkweigh.engines.mock.serve import listen
from checkweigh.engines.vllm.server_launch import LaunchPlan
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
from checkweigh.sources.pinned_files import PinnedFiles
from checkweigh.sources.private_copy import private_copy
from checkweigh.usecases.gate.arms.open_engine import engine_spec
from checkweigh.usecases.read_decision import read_decision

if TYPE_CHECKING:  # it needs the extra `attest`, which serving alone does not
    from checkweigh.usecases.release.admit import Proof

LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeRequest:
    """What is to be served, and where.

    ``manifests``: one, or the baseline's and the candidate's. ``split``: their shares of the sessions, such as 90/10.
    ``limits``: a guard policy, or None for the defaults. ``proofs``: one for each manifest, or none.
    """

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


def serve(request: ServeRequest, progress: Progress, say: Say, tell: Say) -> ExitCode:
    """Serve until SIGTERM or SIGINT, then drain. ``tell`` is called with the address once the guard listens there.

    1. Read the guard policy. Where proofs are required, admit by them, before anything starts.
    2. Verify the manifests.
    3. Compare them with the host and refuse what is unsafe.
    4. Say what is in force.
    5. Serve.

    Returns PASS after a stop, BLOCK when a proof was refused (``say`` has every reason) and BROKEN when an engine had
    given up. Raises BadInput for what the user can mend, before anything starts.
    """
    share = _share(request)
    policy = read_limits(request.limits)
    admitted = _admitted(request, progress, say)
    if admitted is None:
        return ExitCode.BLOCK
    resolved = [verify(path, progress) for path in request.manifests]
    for manifest, pins in zip(resolved, admitted, strict=False):
        if manifest.pins.record_digest() != pins:
            raise BadInput(
                f"{manifest.path}: expected the pins that were admitted, found others: it changed meanwhile"
            )
    with ExitStack() as held:
        setup = _setup(request, policy, resolved, share, held)
        keyless = not policy.surface.keys
        if request.host not in LOOPBACK and keyless:
            raise BadInput(
                f"--host {request.host}: expected surface.keys in the guard policy, found none: it would be open"
            )
        for line in banner(
            setup, [(r.manifest.name, r.manifest.engine.kind, r.manifest.unsafe) for r in resolved]
        ):
            say(line)
        for line in _warnings(setup, resolved[0], keyless=keyless):
            say(f"warning: {line}")
        guard = Guard(setup, say)
        asyncio.run(_run(guard, request, tell))
    gave_up = [
        name for name, arm in guard.arms.items()
        if arm.supervisor is not None and arm.supervisor.gave_up
    ]  # fmt: skip
    return ExitCode.BROKEN if gave_up else ExitCode.PASS


def _admitted(request: ServeRequest, progress: Progress, say: Say) -> list[str] | None:
    """Digests of the admitted pins; empty where no proof is required, None where one was refused."""
    if not request.proofs:
        return []
    from checkweigh.usecases.release.admit import admit

    admissions = [
        admit(path, proof, progress) for path, proof in zip(request.manifests, request.proofs, strict=True)
    ]
    for path, admission in zip(request.manifests, admissions, strict=True):
        for line in admission.lines(path):
            say(line)
    if not all(admission.admitted for admission in admissions):
        return None
    return [admission.pins.record_digest() for admission in admissions]


async def _run(guard: Guard, request: ServeRequest, tell: Say) -> None:
    """Listen and serve until a signal drains the guard."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, guard.drain)
    with listen(request.port, request.host) as bound:
        tell(f"http://{request.host}:{bound.getsockname()[1]}/v1")
        await guard.run(bound)


def _share(request: ServeRequest) -> float:
    """The candidate's share of sessions. Raises BadInput for options that do not fit."""
    if len(request.manifests) == 1:
        if request.split is not None or request.shadow:
            raise BadInput("--split and --shadow: expected two manifests, found one")
        return 0.0
    if (request.split is None) == (not request.shadow):
        raise BadInput("expected either --split or --shadow with two manifests")
    if request.split is None:
        return 0.0
    parts = request.split.split("/")
    with suppress(ValueError):
        shares = [int(part) for part in parts]
        if len(shares) == 2 and min(shares) >= 0 and sum(shares) == 100:
            return shares[1] / 100
    raise BadInput(
        f"--split: expected two percentages that sum to 100, such as 90/10, found '{request.split}'"
    )


def _setup(
    request: ServeRequest, policy: GuardPolicy, resolved: list[Resolved], share: float, held: ExitStack
) -> GuardSetup:
    first = resolved[0].manifest
    limit = min(r.manifest.limits.max_sequence for r in resolved)
    longest = min(policy.admission.max_sequence or limit, limit)
    policy = policy.model_copy(
        update={"warmup": policy.warmup.model_copy(
            update={"lengths": tuple(sorted({max(1, min(n, longest // 4)) for n in policy.warmup.lengths}))}
        )}
    )  # fmt: skip
    sources = [_source(r, request.logs / f"{r.manifest.name}.log", held) for r in resolved]
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
        shadow=request.shadow,
        norm_p99_s=_norm(request.limits, policy, resolved[0]),
    )  # fmt: skip


def _source(resolved: Resolved, log: Path, held: ExitStack) -> ArmSource:
    """How the manifest's engine is started, on a private copy while ``held`` is. Raises BadInput where it cannot be."""
    manifest = resolved.manifest
    if manifest.engine.kind == "vllm":
        files = PinnedFiles.of(resolved)
        files.check_digests()
        plan = unchanged(
            files, vllm_plan(engine_spec(resolved, held.enter_context(private_copy(files))), log)
        )
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


def unchanged(files: PinnedFiles, plan: Callable[[], LaunchPlan]) -> Callable[[], LaunchPlan]:
    """The same plans; PinMismatch before a start, and once its engine has loaded, when a file has changed meanwhile."""

    def make() -> LaunchPlan:
        files.check_stats()
        launch = plan()

        async def check(endpoint: Endpoint, log: str) -> None:
            files.check_stats()
            await launch.check(endpoint, log)

        return replace(launch, check=check)

    return make


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
    lines = host_warnings(setup.policy.admission.headroom)
    slots = setup.policy.admission.slots
    if slots is not None and slots > _slots(resolved):
        lines.append(
            f"admission.slots {slots} is above the engine's {_slots(resolved)}: the rest queues inside it, unseen"
        )
    if keyless:
        lines.append("no API keys: whoever reaches the port is served")
    return lines
