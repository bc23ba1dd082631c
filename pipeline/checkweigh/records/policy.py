"""Policy: the checks a candidate must pass, their margins, and why each margin is what it is."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema, field_validator, model_validator

from checkweigh import canonical
from checkweigh.records.base import GrownRecord, Name, Record
from checkweigh.records.load_spec import Load, Trace
from checkweigh.records.metrics import METRICS, Scale, Statistic

Tier = Literal["critical", "supporting", "advisory"]
CHECK_TIERS: tuple[Tier, ...] = ("critical", "supporting", "advisory")  # the stricter first
CheckKind = Literal["non_inferiority", "superiority", "equivalence", "absolute"]
GATING_PAIRS = 20
P99_REQUESTS = 100
LOAD_REQUESTS = 10
FAILURES = "failures"  # id of the implicit check every policy has
ADAPTIVE = (0.125, 0.25, 0.5, 1.0)  # what ``looks: adaptive`` stands for
MOST_LOOKS = 10
Share = Annotated[float, Field(gt=0, le=1)]


def _looks(value: object) -> object:
    if value == "adaptive":
        return ADAPTIVE
    return tuple(value) if isinstance(value, list) else value


LookShares = Annotated[
    tuple[Share, ...],
    BeforeValidator(_looks),
    WithJsonSchema(
        {
            "anyOf": [
                {"const": "adaptive"},
                {
                    "type": "array",
                    "items": {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
                    "minItems": 1,
                },
            ]
        }
    ),
]


class Check(Record):
    """One comparison and what it must show."""

    id: Name
    metric: str
    evalset: tuple[Name, ...] = Field(
        default=(), description="sets pooled with equal weight for each stratum"
    )
    statistic: Statistic = "mean"
    kind: CheckKind = "non_inferiority"
    direction: Literal["higher", "lower"]
    margin: float = Field(ge=0, description="in the metric's unit; a share for relative, a log ratio for log")
    scale: Scale = "absolute"
    because: str = Field(min_length=10)
    min_items: int = Field(default=100, ge=1)
    min_clusters: int = Field(default=40, ge=2)
    tier: Tier
    against: Literal["baseline", "anchor"] = Field(
        default="baseline",
        description="anchor: the policy's anchor release, with a margin for all changes since",
    )
    where: dict[str, str] = Field(
        default_factory=dict, description="only items with these tags; {stratum: name}"
    )

    @field_validator("metric")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in METRICS:
            raise ValueError(f"one of {', '.join(METRICS)}")
        return value

    @model_validator(mode="after")
    def _fits(self) -> Check:
        metric = METRICS.get(self.metric)
        if metric is None:
            return self
        if self.margin == 0 and self.kind in ("non_inferiority", "equivalence"):
            raise ValueError("a margin above zero: nothing can be shown to be no worse by less than nothing")
        if self.kind != "absolute" and self.margin >= 1:
            raise ValueError("a margin below 1: shares and scores lie in [0, 1], so three points are 0.03")
        if self.kind == "absolute" and metric.estimator == "binary" and not 0 < self.margin < 1:
            raise ValueError(f"a limit between 0 and 1 for {self.metric}")
        if self.kind == "equivalence" and metric.estimator == "log_length":
            raise ValueError(
                "non_inferiority for log_length, one check for each direction, so that intends can name one"
            )
        if self.kind != "absolute" and self.scale not in metric.scales:
            raise ValueError(f"scale {' or '.join(metric.scales)} for {self.metric}")
        if self.kind == "absolute" and (
            self.scale != "absolute" or metric.estimator in ("blocks", "log_length")
        ):
            raise ValueError(
                f"an absolute check takes scale absolute, and no timing, memory or length ({self.metric})"
            )
        if metric.estimator == "divergence" and self.kind != "non_inferiority":
            raise ValueError(f"kind non_inferiority for {self.metric}")
        if self.against == "anchor" and metric.estimator in ("blocks", "divergence"):
            raise ValueError(f"against baseline for {self.metric}, which only two running arms have")
        if self.against == "anchor" and self.kind == "absolute":
            raise ValueError("against baseline for an absolute check, which compares with no other arm")
        if self.statistic not in metric.statistics:
            raise ValueError(f"statistic {' or '.join(metric.statistics)} for {self.metric}")
        if bool(self.evalset) != bool(metric.kinds):
            raise ValueError(f"{'an' if metric.kinds else 'no'} evalset for {self.metric}")
        if set(self.where) - {"stratum"}:
            raise ValueError("where may name: stratum")
        if self.where and metric.estimator in ("blocks", "divergence"):
            raise ValueError(f"no where for {self.metric}, which is not told apart by stratum")
        if metric.estimator != "log_length" and self.direction != metric.better:
            raise ValueError(f"direction {metric.better} for {self.metric}")
        return self


class ErrorBudget(Record):
    """Error rates of the whole policy ("What 5% and 1% promise" in docs/statistics.md)."""

    false_pass: float = Field(default=0.05, gt=0, le=0.2, description="one-sided, for each critical check")
    false_block: float = Field(
        default=0.01, gt=0, le=0.2, description="for the whole policy, Holm over all checks"
    )


class Timing(Record):
    """How latency and memory are measured: alternating blocks of requests, one after the other or under a load."""

    pairs: int = Field(default=20, ge=6, le=2000)
    grow_to: int | None = Field(
        default=None,
        le=2000,
        description="most pairs, in looks of ``pairs`` each, as long as the timing checks are not settled",
    )
    requests: int = Field(default=1, ge=1, le=10_000, description="requests a block")
    output_tokens: int = Field(default=16, ge=2, le=4096)
    max_seconds: float = Field(default=60, gt=0)
    load: Load | None = Field(
        default=None, description="an open loop of requests; without it they are sent one after the other"
    )

    @model_validator(mode="after")
    def _grows(self) -> Timing:
        if self.grow_to is not None and (self.grow_to <= self.pairs or self.grow_to % self.pairs):
            raise ValueError("grow_to a multiple of pairs, above it: a look comes after every so many pairs")
        if self.load is not None and self.requests < LOAD_REQUESTS:
            raise ValueError(
                f"requests of at least {LOAD_REQUESTS}: a block under load needs some to load it"
            )
        return self

    @property
    def looks(self) -> tuple[int, ...]:
        """Pairs after which the timing checks are looked at; the last number is the most that are measured."""
        return tuple(range(self.pairs, (self.grow_to or self.pairs) + 1, self.pairs))


class Policy(GrownRecord):
    """All checks of one gate."""

    YOUNGER: ClassVar[frozenset[str]] = frozenset({"no_effect"})

    schema_: Literal["checkweigh/policy@1"] = Field(alias="schema")
    name: Name
    because: str = ""
    error_budget: ErrorBudget = ErrorBudget()
    looks: LookShares = Field(
        default=(1.0,),
        description="shares of each set after which the gate looks, and stops when the verdict is settled; "
        "increasing up to 1; 'adaptive' is .125, .25, .5, 1. Up to .125 a look only blocks",
    )
    attempts: int = Field(
        default=1,
        ge=1,
        le=5,
        description="tries a candidate has against one baseline; they share the error budget",
    )
    on_inconclusive: Literal["hold", "block"] = "hold"
    max_minutes: float = Field(default=60, gt=0)
    seed: int = Field(default=0, ge=0)
    timing: Timing = Timing()
    failure_margin: float = Field(
        default=0.01, gt=0, le=0.2, description="implicit critical check on failed items"
    )
    anchor: str | None = Field(
        default=None, min_length=1, description="manifest of the anchor release, relative to the policy"
    )
    no_effect: Literal["refuse", "warn"] | None = Field(
        default=None,
        description="what a declared change is that alters no output: by default refused where the adapter or the "
        "quantization differs, which then was not applied, and a warning otherwise",
    )
    checks: tuple[Check, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _sound(self) -> Policy:
        ids = [check.id for check in self.checks]
        if len(set(ids)) != len(ids):
            raise ValueError("check ids that are all different")
        if FAILURES in ids:
            raise ValueError(f"no check named '{FAILURES}': it is implicit in every policy")
        if not any(check.tier == "critical" for check in self.checks):
            raise ValueError("at least one critical check: a policy of advisory checks gates nothing")
        if (self.anchor is None) == any(check.against == "anchor" for check in self.checks):
            raise ValueError("an anchor where checks are against it, and only there")
        for check in self.checks:
            self._timed(check)
        rises = all(a < b for a, b in zip(self.looks, self.looks[1:], strict=False))
        if not rises or self.looks[-1:] != (1.0,) or len(self.looks) > MOST_LOOKS:
            raise ValueError(f"looks that increase up to 1.0, at most {MOST_LOOKS}")
        return self

    def _timed(self, check: Check) -> None:
        """Refuse a timing check for which the plan has too few pairs of blocks, or too few requests for a p99."""
        metric = METRICS[check.metric]
        if metric.estimator != "blocks":
            return
        if metric.loaded and self.timing.load is None:
            raise ValueError(f"timing.load for {check.id}: {check.metric} only exists under a load")
        if self.timing.pairs < check.min_clusters:
            raise ValueError(f"timing.pairs of at least {check.id}'s min_clusters, {check.min_clusters}")
        if check.tier != "advisory" and min(self.timing.pairs, check.min_clusters) < GATING_PAIRS:
            raise ValueError(
                f"timing.pairs and min_clusters of at least {GATING_PAIRS} for {check.id}, which gates"
            )
        if check.tier != "advisory" and check.statistic == "p99" and self.timing.requests < P99_REQUESTS:
            raise ValueError(f"timing.requests of at least {P99_REQUESTS} for {check.id}, a p99 that gates")

    @property
    def trace(self) -> Trace | None:
        """The recorded traffic that is replayed, if any is."""
        arrivals = None if self.timing.load is None else self.timing.load.arrivals
        return arrivals if isinstance(arrivals, Trace) else None

    def settings(self) -> dict[str, Any]:
        """As ``model_dump``, without the places of the anchor and the trace: what they hold is bound beside it."""
        data = self.model_dump(mode="json")
        data["anchor"] = None  # checks ``against`` it say that there is one
        if self.trace is not None:
            del data["timing"]["load"]["arrivals"]["file"]
        return data

    def record_digest(self) -> str:
        """Of the ``settings``: the same policy in another folder has the same digest."""
        return canonical.digest(self.settings())

    def evalsets(self) -> tuple[str, ...]:
        """Names of all sets the checks use, in order of first use."""
        return tuple(dict.fromkeys(name for check in self.checks for name in check.evalset))
