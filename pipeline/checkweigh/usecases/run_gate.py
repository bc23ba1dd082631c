"""The whole job of ``checkweigh gate``: from what was asked on the command line to a verdict, signed and sent.

1. Read the addresses of MLflow and the webhook and the signing key: a wrong one ends the gate before it measures.
2. Find the baseline, where a registry names it; read and verify the inputs; warn of a gate that may not settle.
3. Measure, compare, decide, and write the reports (``gate.run``); show the verdict.
4. Sign it, announce it, send it. Nothing here changes the verdict any more, only a failed signature the exit code.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from checkweigh.errors import ExitCode
from checkweigh.measure.paired_blocks import ARMS
from checkweigh.progress import Progress, Say
from checkweigh.records.decision import Decision
from checkweigh.sinks.mlflow_content import ArmEvidence, FinishedGate
from checkweigh.sinks.mlflow_target import Target, resolve_target
from checkweigh.sinks.webhook_payload import webhook_target
from checkweigh.usecases.deliver.mlflow import publish
from checkweigh.usecases.deliver.webhook import announce
from checkweigh.usecases.gate.inputs import Inputs, read_inputs, with_sweep
from checkweigh.usecases.gate.run import GateResult, gate
from checkweigh.usecases.plan import unsettled
from checkweigh.usecases.release import registry
from checkweigh.usecases.release.attest import sign, signing_key


@dataclass(frozen=True, slots=True, kw_only=True)
class GateRequest:
    """What ``checkweigh gate`` was asked. ``baseline`` is a manifest or ``models:/NAME@ALIAS``.

    Reports are written below ``out``. ``mlflow``, ``notify`` and ``attest`` are the options of these names, None where
    they were not given. ``sweep``: also find the rate up to which each arm carries the load. ``again``: as for
    ``ledger.hold_attempt``.
    """

    baseline: Path
    candidate: Path
    policy: Path
    out: Path
    mlflow: str | None = None
    notify: str | None = None
    attest: str | None = None
    sweep: bool = False
    again: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class GateOutcome:
    """The decision, and whether it was signed where that was asked for: PASS, or why there is no signature."""

    decision: Decision
    signing: ExitCode

    @property
    def exit_code(self) -> ExitCode:
        """The decision's own; where a signature was asked for and there is none, 2 or 4 (``attest.sign``)."""
        return self.decision.exit_code if self.signing is ExitCode.PASS else self.signing


def run_gate(
    request: GateRequest, progress: Progress, say: Say, show: Callable[[Decision], None]
) -> GateOutcome:
    """Run a gate from its files to its delivered verdict.

    ``show`` is called once, when the reports are written and before anything is signed or sent: a server that hangs
    keeps nobody from the verdict. Raises BadInput for anything wrong that was asked or read, and RegistryError where
    the baseline's registry does not answer.
    """
    target, receiver = resolve_target(request.mlflow), webhook_target(request.notify)
    key = signing_key(request.attest)
    inputs = _inputs(request, target, progress, say)
    for line in unsettled(inputs):
        say(f"warning: this gate may not settle: {line}")
    result = gate(inputs, request.out, progress, again=request.again)
    show(result.decision)
    arms = [arm for arm in (inputs.candidate, inputs.baseline, inputs.anchor) if arm is not None]
    signing = sign(result.decision, arms, request.out, key, say, progress)
    if receiver is not None:
        announce(result.decision, receiver, say)
    if target is not None:
        publish(_finished(inputs, result), request.out, target, say)
    return GateOutcome(decision=result.decision, signing=signing)


def _inputs(request: GateRequest, target: Target | None, progress: Progress, say: Say) -> Inputs:
    """Everything that was asked for, read and verified."""
    baseline = request.baseline
    notes: tuple[str, ...] = ()
    if registry.is_registered(baseline):
        baseline, note = registry.registered_baseline(baseline, target)
        notes = (note,)
        say(note)
    inputs = read_inputs(baseline, request.candidate, request.policy, progress)
    for line in inputs.notes:
        say(line)
    inputs = replace(inputs, notes=(*notes, *inputs.notes))
    return with_sweep(inputs, request.policy) if request.sweep else inputs


def _finished(inputs: Inputs, result: GateResult) -> FinishedGate:
    """What MLflow keeps of a gate. A repeated verdict is kept as it was when it was reached."""
    resolved = {"baseline": inputs.baseline, "candidate": inputs.candidate}
    arms = {
        str(role): ArmEvidence(
            manifest=resolved[role].manifest, pins=resolved[role].pins, records=result.measured.records[role]
        )
        for role in ARMS
    }
    return FinishedGate(
        decision=result.first or result.decision, arms=arms, evalsets=inputs.evalsets, pairs=result.pairs
    )
