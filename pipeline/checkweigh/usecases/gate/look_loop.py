"""The loop of a gate: measure a slice on every arm, look, stop when the verdict is settled, else grow.

1. The slices are fixed before the first look (``slices``). An arm measures its part of every set, then the next one.
2. A block stops the gate at once: nothing is timed any more, because nothing that timing says could change it.
3. Timing is measured once, whole: at the first look where everything else would pass, or at the last one. After it the
   gate stops, whatever it said: more items make no arm faster.
4. Time that runs out in the middle of a slice leaves what the looks before it saw.
5. Nothing is told of a look before the files of every arm were read in full again (``EngineSession.settle``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from checkweigh.decision.slices import Part
from checkweigh.decision.verdict import Judgement, hypothesis_count
from checkweigh.measure.paired_blocks import ARMS
from checkweigh.progress import Progress
from checkweigh.records.decision import LookMade, Verdict
from checkweigh.records.measurement import PairedRun, Stage
from checkweigh.records.metrics import METRICS
from checkweigh.sources.undeclared import LoadedArm, effective_differences
from checkweigh.usecases.gate.arms.arm_measurement import ArmMeasurement
from checkweigh.usecases.gate.arms.engine_session import settle_all
from checkweigh.usecases.gate.arms.measure_divergence import Divergences, measure_divergences
from checkweigh.usecases.gate.arms.time_arms import TimingPrompts, answered_by_both, needs_timing, time_arms
from checkweigh.usecases.gate.inputs import Inputs
from checkweigh.usecases.gate.judge import Judge
from checkweigh.usecases.gate.measured import ROLES, Measured, Records, parts_of_looks
from checkweigh.usecases.gate.no_effect import refuse_without_effect

BLOCKED_FIRST = "not timed: the verdict was settled without it"


def _nobody(look: LookMade) -> None:
    """Nobody keeps a ledger."""


@dataclass
class LookLoop:
    """The looks of one gate: ``measured`` so far, the looks ``made``, and the ``judge``, None before the first look.

    ``tell`` hears of each look before anything follows from it. ``timing``: of this very attempt, when it is judged
    again.
    """

    inputs: Inputs
    arms: Mapping[str, ArmMeasurement]
    progress: Progress
    tell: Callable[[LookMade], None] = _nobody
    timing: PairedRun | None = None
    made: list[LookMade] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.measured = Measured.empty(self.inputs)
        self.parts = parts_of_looks(self.inputs)
        self.judge: Judge | None = None
        self._timing_late = False

    @property
    def of(self) -> int:
        """Looks that the policy declares."""
        return len(self.inputs.policy.looks)

    @property
    def late(self) -> bool:
        """Whether time ran out before everything that was asked was measured."""
        return self._timing_late or any(arm.late for arm in self.arms.values())

    def run(self) -> Judgement:
        """Look until the verdict is settled, time has run out, or the plan is at its end."""
        for number in range(1, self.of + 1):
            before = sum(stage.seconds for stage in self._computed())
            if not self._grow(number):
                return self._out_of_time(number)
            refuse_without_effect(self.inputs, self.measured)
            judgement = self._judged(number)
            blocked = judgement.verdict is Verdict.BLOCK
            if self.late and not blocked:
                return judgement
            stops = not blocked and self._ready_to_time(number, judgement)
            if stops and needs_timing(self.inputs.policy):
                self._time()
                judgement = self._judged(number)
            self.settle()
            self._note(number, judgement, before)
            if blocked:
                return self._untimed(judgement)
            if stops:
                return judgement
            self.progress(f"look {number} of {self.of}: not settled; the sample grows", 0, 0)
        raise AssertionError("the last look stops")

    def settle(self) -> None:
        """Let count what was measured so far. Raises PinMismatch with every file of any arm that changed meanwhile."""
        settle_all([arm.session for arm in self.arms.values()])

    def _grow(self, number: int) -> bool:
        """Measure the parts of a look; False when time ran out in a later look, whose parts are then left out."""
        parts = tuple(of_set[number - 1] for of_set in self.parts.values())
        records: dict[str, Records] = {role: {} for role in ROLES}
        divergences = Divergences()
        try:
            self._measure(parts, records)
            if number > 1 and self.late:
                return False
            divergences = self._compare_states(parts, records)
        except BaseException:  # a decision on a failure names what was measured before it
            self.measured = self.measured.with_look(parts, records, divergences)
            raise
        self.measured = self.measured.with_look(parts, records, divergences)
        if self.judge is None:
            identities = frozenset(record.key.identity for record in records["baseline"].values())
            self.judge = Judge(self.inputs, self.arms, identities)
        return True

    def _measure(self, parts: tuple[Part, ...], records: dict[str, Records]) -> None:
        """Every arm on its parts, one arm after the other; ``records`` is filled as far as it goes."""
        for role, arm in self.arms.items():
            if role == "candidate":
                self._compare_loaded()
            for part in parts:
                if part.evalset.items and self._is_used(role, part):
                    record = arm.measure(part)
                    if record is not None:
                        records[role][part.evalset.card.name] = record
            if self._diverging(parts) and role in ARMS:
                arm.session.close()  # its next start, for the divergence, settles it
            else:
                arm.session.settle()

    def _compare_loaded(self) -> None:
        """Refuse a candidate that loaded what nothing declared explains, before its minutes are spent.

        Raises UndeclaredDrift.
        """
        loaded = {
            role: LoadedArm(
                manifest=arm.session.resolved.manifest,
                pins=arm.session.resolved.pins,
                identity=arm.session.identify(),
            )
            for role, arm in self.arms.items()
        }
        candidate = loaded.pop("candidate")
        for other in loaded.values():
            effective_differences(other, candidate)

    def _is_used(self, role: str, part: Part) -> bool:
        """Whether a check uses the part on this arm: of the anchor only the sets of checks against it."""
        names = {n for c in self.inputs.policy.checks if c.against == "anchor" for n in c.evalset}
        return role != "anchor" or part.evalset.card.name in names

    def _diverging(self, parts: tuple[Part, ...]) -> list[Part]:
        """The parts whose divergence a check asks for, and can have."""
        names = {
            name
            for check in self.inputs.policy.checks
            if METRICS[check.metric].estimator == "divergence" and check.id not in self.inputs.inestimable
            for name in check.evalset
        }
        return [part for part in parts if part.evalset.card.name in names and part.evalset.items]

    def _compare_states(self, parts: tuple[Part, ...], records: Mapping[str, Records]) -> Divergences:
        """The divergences that checks ask for, where the two arms can be compared so."""
        compared = self._diverging(parts)
        if not compared:
            return Divergences()
        return measure_divergences(compared, {str(role): self.arms[role] for role in ARMS}, records)

    def _judged(self, number: int) -> Judgement:
        assert self.judge is not None
        return self.judge.at(number, self.measured)

    def _ready_to_time(self, number: int, judgement: Judgement) -> bool:
        """Whether nothing but timing prevents a pass, or this is the last look: the loop ends after it."""
        others = [r for r in judgement.results if METRICS[r.check.metric].estimator != "blocks"]
        passing = any(r.gating and r.check.tier == "critical" for r in others) and not any(
            r.prevents_pass for r in others
        )
        return passing or number == self.of

    def _time(self) -> None:
        """Interleaved timing of both arms, each on an engine that starts anew.

        What an arm measured before, or did not because it was stored, shows in the memory of its process.
        """
        conversations = answered_by_both(self.measured)
        timing = self.timing
        if timing is None and conversations and not self.late:
            prompts = TimingPrompts(
                conversations=conversations, rows=self.inputs.trace, sweep=self.inputs.sweep
            )
            sessions = {str(role): self.arms[role].session for role in ARMS}
            deadline = min(self.arms[role].deadline for role in ARMS)
            timed = time_arms(self.inputs.policy, sessions, prompts, self.progress, deadline=deadline)
            timing, self._timing_late = timed.run, timed.late
        self.measured = replace(self.measured, timing=timing)

    def _untimed(self, judgement: Judgement) -> Judgement:
        """A block before anything was timed, saying so in the checks on timing."""
        if not needs_timing(self.inputs.policy):
            return judgement
        self.measured = replace(self.measured, untimed=BLOCKED_FIRST)
        return self._judged(self.made[-1].number)

    def _out_of_time(self, number: int) -> Judgement:
        """What the looks before say; growing further was not possible."""
        self.measured = replace(
            self.measured, untimed="max_minutes had passed before both arms could be timed"
        )
        judgement = self._judged(number - 1)
        limit = (
            f"max_minutes ({self.inputs.policy.max_minutes:g}) had passed before look {number} of {self.of}"
        )
        return replace(judgement, reasons=(f"{limit} was complete", *judgement.reasons))

    def _note(self, number: int, judgement: Judgement, before: float) -> None:
        look = LookMade(
            number=number, share=self.inputs.policy.looks[number - 1], items=self.measured.items,
            verdict=judgement.verdict, seconds=max(0.0, sum(stage.seconds for stage in self._computed()) - before),
        )  # fmt: skip
        self.made.append(look)
        self.tell(look)

    def _computed(self) -> list[Stage]:
        return [stage for arm in self.arms.values() for stage in arm.stages if not stage.stored]

    @property
    def hypotheses(self) -> int:
        """K of the block test; before a judge knows the noise floors, all gating checks of the policy as declared."""
        if self.judge is not None:
            return self.judge.hypotheses
        return max(1, hypothesis_count(self.inputs.policy, self.inputs.candidate.manifest.intends))

    def saved_seconds(self) -> float | None:
        """What the looks that were not made would have cost, at the speed of those that were; None when all were.

        Parts that are stored already would have cost nothing. Timing and the starts of engines are left out.
        """
        left = [
            part for parts in self.parts.values() for part in parts[len(self.made) :] if part.evalset.items
        ]
        if not self.made or len(self.made) == self.of:
            return None
        saved = 0.0
        for role, arm in self.arms.items():
            for part in left:
                record = self.measured.records[role].get(part.evalset.card.name)
                if record is not None and not arm.store.exists(arm.key(part, record.key.identity)):
                    saved += record.stage.seconds / max(1, record.stage.items) * len(part.evalset.items)
        for part in left:
            record = self.measured.divergences.records.get(part.evalset.card.name)
            if record is not None:
                saved += record.stage.seconds / max(1, record.stage.items) * len(part.evalset.items)
        return saved
