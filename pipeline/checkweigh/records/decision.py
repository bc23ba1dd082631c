"""Decision: the verdict, every check's result in a sentence, all digests behind it, and its entry in the ledger."""

from __future__ import annotations

from enum import StrEnum
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from checkweigh.errors import ExitCode
from checkweigh.records.base import Digest, GrownRecord, Record
from checkweigh.records.comparison import Comparison, Estimate, Identical, Inestimable
from checkweigh.records.measurement import PairedRun, Provenance, Stage, WorstToken
from checkweigh.records.policy import Check


class Verdict(StrEnum):
    """PASS < INCONCLUSIVE < BLOCK; ERROR replaces all of them."""

    PASS = "pass"
    INCONCLUSIVE = "inconclusive"
    BLOCK = "block"
    ERROR = "error"

    @classmethod
    def worst(cls, *verdicts: Verdict) -> Verdict:
        """The verdict of several: ERROR replaces all, then BLOCK, INCONCLUSIVE, PASS. Raises ValueError without any."""
        return max(verdicts, key=list(cls).index)

    @property
    def exit_code(self) -> ExitCode:
        """The process's exit code for this verdict."""
        return {
            Verdict.PASS: ExitCode.PASS,
            Verdict.INCONCLUSIVE: ExitCode.INCONCLUSIVE,
            Verdict.BLOCK: ExitCode.BLOCK,
            Verdict.ERROR: ExitCode.BROKEN,
        }[self]


CheckOutcome = Literal["passed", "warning", "blocked", "inconclusive", "anomalous"]
MOST_DIFFERING = 0.05  # share of clusters that may differ between arms that pass as identical


def prevents_pass(check: Check, declared: bool, outcome: CheckOutcome, comparison: Comparison) -> bool:
    """Whether a check with this outcome keeps the gate from passing.

    1. An advisory check, or a change that the manifest declares, never does.
    2. A blocked check and an implausible gain always do.
    3. A critical check does unless it passed.
    4. A supporting check need not pass, but there must be evidence on which it could. It prevents a pass without an
       estimate, without a lower bound, and where equal outputs on so few clusters leave too many that could differ.
    """
    if check.tier == "advisory" or declared:
        return False
    if outcome in ("blocked", "anomalous"):
        return True
    if check.tier == "critical":
        return outcome not in ("passed", "warning")
    match comparison:
        case Inestimable():
            return True
        case Estimate():
            return comparison.low is None
        case Identical():
            return comparison.differing_share_upper > MOST_DIFFERING


class CheckResult(GrownRecord):
    """What one check came to."""

    YOUNGER: ClassVar[frozenset[str]] = frozenset({"prevents_pass"})

    check: Check
    implicit: bool = False
    declared: bool = Field(
        default=False, description="the manifest declares this change (intends); not gating"
    )
    outcome: CheckOutcome
    margin: float = Field(description="the margin on the scale of the comparison")
    comparison: Comparison
    p_adjusted: float | None = Field(description="Holm over all gating checks; None for advisory ones")
    information: float = Field(description="information fraction of this look, by design")
    level: float | None = Field(
        default=None, description="one-sided level of the pass test at this look; 0 where it cannot pass"
    )
    planned: int | None = Field(default=None, description="items that the last look would have")
    items_to_settle: int | None = None
    sentence: str
    prevents_pass: bool = Field(
        default=True,
        description="the gate cannot pass because of this check; absent in decisions of earlier versions",
    )

    @model_validator(mode="after")
    def _derived(self) -> CheckResult:
        """Where the field is absent it is derived, by the rule that writes it."""
        if "prevents_pass" not in self.model_fields_set:
            derived = prevents_pass(self.check, self.declared, self.outcome, self.comparison)
            object.__setattr__(
                self, "prevents_pass", derived
            )  # the record is frozen, and the field stays unset
        return self

    @property
    def gating(self) -> bool:
        """Whether it can change the verdict."""
        return self.check.tier != "advisory" and not self.declared


class ArmRecord(GrownRecord):
    """One arm of a decision."""

    YOUNGER: ClassVar[frozenset[str]] = frozenset({"unverified", "effective"})

    name: str
    manifest: Digest
    pins: Digest
    measurements: dict[str, Digest] = Field(description="set -> key of the measurement in the store")
    identity: Digest | None = None
    replicate: int = 0
    unsafe: tuple[str, ...] = ()
    unverified: tuple[str, ...] = Field(
        default=(), description="what of the arm nobody could check, such as the weights behind an endpoint"
    )
    effective: dict[str, str] = Field(
        default_factory=dict, description="the configuration that the loaded engine has, as in its identity"
    )


class EffectiveDifference(Record):
    """A field of the effective configuration in which the loaded engines of two arms differ."""

    field: str
    baseline: str
    candidate: str
    explained: tuple[str, ...] = Field(min_length=1, description="declared differences that can explain it")


class DivergingToken(Record):
    """A token with a large divergence, and the document it stands in."""

    item: str
    token: WorstToken


class DivergenceSummary(Record):
    """KL(baseline || candidate) of the next-token distributions on one set, nats a token. For people; checks rest on
    ``typical`` alone."""

    set_name: str
    documents: int
    failed: int
    tokens: int
    typical: float = Field(description="geometric mean over documents")
    mean: float = Field(description="mean over tokens")
    p50: float
    p90: float
    p99: float
    largest: float
    agreement: float = Field(description="share of tokens where both arms find the same token likeliest")
    worst: tuple[DivergingToken, ...] = ()


class LookMade(Record):
    """One look: what it saw, and what it came to."""

    number: int = Field(ge=1)
    share: float = Field(description="declared share of each set")
    items: dict[str, int] = Field(description="set -> items an arm, all looks so far")
    verdict: Verdict = Field(description="'inconclusive' at a look that is not the last one grows the sample")
    seconds: float = Field(
        ge=0, description="computed for this look, all arms; what was stored costs nothing"
    )


class LookHistory(Record):
    """The plan of looks, frozen before the first one, and how far the gate went."""

    plan: Digest = Field(
        description="digest of what would be measured, in which order, and when it is looked at"
    )
    shares: tuple[float, ...]
    made: tuple[LookMade, ...] = ()
    items: int = Field(ge=0, description="items an arm that were looked at, over all sets")
    planned: int = Field(ge=0, description="items an arm that the last look would have had")
    saved_seconds: float | None = Field(
        default=None, description="what the items left out would have cost, at the speed of the others"
    )

    @property
    def early(self) -> bool:
        """Whether the gate stopped before its last look."""
        return bool(self.made) and self.made[-1].number < len(self.shares)


class Budget(Record):
    """The error budget of the whole policy, and how it is divided."""

    false_pass: float
    false_block: float
    hypotheses: int = Field(ge=0, description="K: gating checks, an equivalence check counting twice")
    looks: int = Field(ge=1)
    attempts: int = Field(ge=1)


class Names(Record):
    """What a gate's arms and policy are called, and where their documents lie: nothing that decides."""

    baseline: str
    candidate: str
    anchor: str | None = None
    policy: str
    provenance: Provenance


class AttemptRecord(GrownRecord):
    """Which try of this candidate it is, against this baseline under this policy ("Attempts" in docs/statistics.md)."""

    YOUNGER: ClassVar[frozenset[str]] = frozenset({"now"})

    number: int = Field(ge=1)
    of: int = Field(ge=1, description="attempts that the policy declares")
    stored: bool = Field(
        default=False,
        description="the same digests had been gated before: this is that verdict, nothing was measured",
    )
    decided: str = Field(description="when the verdict was reached")
    first: Digest | None = Field(
        default=None, description="stored: the decision as it was when it was reached"
    )
    earlier: tuple[str, ...] = Field(default=(), description="earlier tries, in words")
    now: Names | None = Field(
        default=None,
        description="stored: the names under which it was asked for again; the others are of then",
    )


class ManifestChange(Record):
    """One thing that differs between the manifests."""

    path: str
    baseline: str
    candidate: str


class Decision(GrownRecord):
    """The answer of one gate. ``decision.json``."""

    YOUNGER: ClassVar[frozenset[str]] = frozenset({"effective_differences", "no_effect", "trace"})

    schema_: Literal["checkweigh/decision@1", "checkweigh/decision@2"] = Field(
        default="checkweigh/decision@2", alias="schema"
    )
    verdict: Verdict
    reasons: tuple[str, ...] = Field(min_length=1)
    checks: tuple[CheckResult, ...]
    baseline: ArmRecord
    candidate: ArmRecord
    anchor: ArmRecord | None = Field(
        default=None, description="the release that cumulative margins count from"
    )
    changes: tuple[ManifestChange, ...]
    effective_differences: tuple[EffectiveDifference, ...] = ()
    no_effect: str = Field(
        default="",
        description="which declared change altered no output at all; empty when some output differs",
    )
    intends: tuple[str, ...] = ()
    policy: Digest
    policy_name: str
    on_inconclusive: Literal["hold", "block"] = "hold"
    evalsets: dict[str, Digest] = Field(
        description="set -> digest of its items and scorer (of its data in @1)"
    )
    trace: Digest | None = Field(default=None, description="of the recorded traffic that was replayed")
    guarantees: tuple[str, ...]
    looks: LookHistory | None = None
    budget: Budget | None = None
    attempt: AttemptRecord | None = None
    timing: PairedRun | None = None
    divergence: tuple[DivergenceSummary, ...] = ()
    notes: tuple[str, ...] = Field(default=(), description="what every output must say beside the verdict")
    stages: tuple[Stage, ...] = ()
    provenance: Provenance

    @property
    def outdated(self) -> str:
        """Why nothing may rest on the decision that an earlier version made; empty for one of this version."""
        if self.schema_ == "checkweigh/decision@2":
            return ""
        return "decided by an older version, which did not verify what its engines had loaded: gate again"

    @property
    def names(self) -> Names:
        """What everything was called when the verdict was reached."""
        return Names(
            baseline=self.baseline.name, candidate=self.candidate.name,
            anchor=None if self.anchor is None else self.anchor.name, policy=self.policy_name,
            provenance=self.provenance,
        )  # fmt: skip

    @property
    def reached(self) -> str:
        """Digest of the decision when its verdict was reached: what MLflow knows the gate by."""
        first = self.attempt.first if self.attempt else None
        return first or self.record_digest()

    @property
    def exit_code(self) -> ExitCode:
        """Exit code; an inconclusive gate under ``on_inconclusive: block`` exits as a block."""
        if self.verdict is Verdict.INCONCLUSIVE and self.on_inconclusive == "block":
            return ExitCode.BLOCK
        return self.verdict.exit_code


class LedgerEntry(Record):
    """One attempt of a candidate against a baseline under a policy, as the ledger of attempts keeps it."""

    schema_: Literal["checkweigh/attempt@1", "checkweigh/attempt@2"] = Field(
        default="checkweigh/attempt@2", alias="schema"
    )
    number: int = Field(ge=1)
    of: int = Field(
        ge=1, description="attempts that the policy declared then; 1/of of the error budget was spent"
    )
    plan: Digest = Field(description="frozen before the first look")
    data: Digest = Field(description="of everything that decides what is measured")
    judged: Digest = Field(description="of that, and of the noise floors and rules it was judged by")
    items: dict[str, tuple[str, ...]] = Field(description="set -> a digest of each item's content")
    replicate: int = Field(ge=0)
    begun: str
    looks: tuple[LookMade, ...] = Field(default=(), description="made so far; none without spending")
    decision: Decision | None = Field(default=None, description="None until a verdict was reached")

    @property
    def spent(self) -> bool:
        """Whether somebody may have seen what it came to: an error before the first look spends nothing."""
        return bool(self.looks) or self.decision is not None

    @property
    def words(self) -> str:
        """For people."""
        older = " (of an older version)" if self.schema_ == "checkweigh/attempt@1" else ""
        if self.decision is None:
            return (
                f"attempt {self.number}{older}, {self.begun}: not finished after look {self.looks[-1].number}"
            )
        return (
            f"attempt {self.number}{older}, {self.decision.provenance.ended}: {self.decision.verdict.value}"
        )
