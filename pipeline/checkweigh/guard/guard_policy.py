"""The guard policy: every limit that is in force, with its default. A document of its own (``--limits``)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from checkweigh.records.base import Record

PriorityTier = Literal["interactive", "standard", "bulk"]
PRIORITY_TIERS: tuple[PriorityTier, ...] = ("interactive", "standard", "bulk")  # the more urgent first
Seconds = Annotated[float, Field(gt=0, le=86_400)]
Fraction = Annotated[float, Field(ge=0, le=1)]
EnvironmentVariable = Annotated[str, Field(pattern=r"^[A-Z_][A-Z0-9_]*$")]


class TierLimits(Record):
    """What one tier may take."""

    reserve: Fraction = Field(
        default=0.0, description="share of tokens and slots that no other tier may take"
    )
    queue: int = Field(default=64, ge=0, description="most requests waiting; beyond it 429")
    deadline_s: Seconds = Field(default=10.0, description="longest wait in the queue; beyond it 503")
    age_s: Seconds = Field(default=5.0, description="after this wait a request goes before every tier")


class Tiers(Record):
    """Limits of each priority tier."""

    interactive: TierLimits = TierLimits(reserve=0.3, queue=64, deadline_s=5.0, age_s=2.0)
    standard: TierLimits = TierLimits(reserve=0.1, queue=128, deadline_s=20.0, age_s=10.0)
    bulk: TierLimits = TierLimits(reserve=0.05, queue=256, deadline_s=60.0, age_s=30.0)

    @model_validator(mode="after")
    def _shares(self) -> Tiers:
        if sum(self.of(t).reserve for t in PRIORITY_TIERS) > 1:
            raise ValueError("reserves that sum to at most 1")
        return self

    def of(self, tier: PriorityTier) -> TierLimits:
        """The limits of one tier."""
        limits: TierLimits = getattr(self, tier)
        return limits


class AdmissionLimits(Record):
    """How much is let through to the engine. What is None comes from the engine or the manifest."""

    tiers: Tiers = Tiers()
    queue: int = Field(
        default=256, ge=0, description="most requests waiting in all; then bulk is pushed out, else 429"
    )
    headroom: Annotated[float, Field(ge=0.05, lt=1)] = Field(
        default=0.25, description="share of the KV cache left free"
    )
    kv_tokens: int | None = Field(
        default=None, ge=1, description="tokens the KV cache holds; else the engine says"
    )
    slots: int | None = Field(default=None, ge=1, description="requests in the engine; else its max_num_seqs")
    max_sequence: int | None = Field(default=None, ge=16, description="prompt and reply; else the manifest's")
    max_tokens: int = Field(default=1024, ge=1, description="longest reply that may be asked for; else 400")
    default_tokens: int = Field(default=256, ge=1, description="max_tokens of a request that names none")
    scoring: int = Field(default=2, ge=1, description="requests with prompt_logprobs in the engine at once")


class SaturationLimits(Record):
    """When the engine counts as full whatever the guard's own books say."""

    scrape_s: Seconds = Field(default=0.5, description="between two looks at the engine's /metrics")
    stale_s: Seconds = Field(
        default=2.0, description="metrics older than this, or frozen, count as saturated"
    )
    kv_high: Fraction = Field(default=0.92, description="KV usage at which admission stops")
    kv_low: Fraction = Field(default=0.80, description="usage below which it goes on")
    waiting_high: int = Field(default=32, ge=1, description="requests in the engine's own queue, likewise")
    hold_s: Seconds = Field(default=1.0, description="how long it must look free before admission goes on")

    @model_validator(mode="after")
    def _ordered(self) -> SaturationLimits:
        if not self.kv_low < self.kv_high:
            raise ValueError("kv_low below kv_high")
        if not self.scrape_s < self.stale_s:
            raise ValueError("scrape_s below stale_s")
        return self


class BreakerLimits(Record):
    """When an arm is left alone. Failures are 5xx, broken answers and timeouts; never the guard's own sheds."""

    failures: int = Field(
        default=5, ge=1, description="within window_s, and at least `share` of the requests"
    )
    share: Annotated[float, Field(gt=0, le=1)] = 0.5
    window_s: Seconds = 10.0
    open_s: Seconds = Field(default=2.0, description="before the first probe; doubles with every failed one")
    open_max_s: Seconds = 60.0


class MemoryLimits(Record):
    """When memory is critical: the breaker is held open until there is room again."""

    free_low: Fraction = Field(
        default=0.05, description="share of the host's memory free below which it is critical"
    )
    free_high: Fraction = Field(default=0.10, description="share above which it no longer is")
    ceiling_gib: float | None = Field(
        default=None, gt=0, description="of the engine's processes; above it: restart"
    )
    gpu_free_low: Fraction = Field(default=0.02, description="share of the GPU's memory free, likewise")

    @model_validator(mode="after")
    def _ordered(self) -> MemoryLimits:
        if not self.free_low < self.free_high:
            raise ValueError("free_low below free_high")
        return self


class Supervision(Record):
    """How the engine's process is kept alive."""

    start_s: Seconds = Field(default=600.0, description="from start to healthy; else it is killed")
    backoff_s: Seconds = Field(default=0.5, description="before a restart; doubles, with jitter")
    backoff_max_s: Seconds = 30.0
    crashes: int = Field(default=5, ge=1, description="within crash_window_s; then it stays down")
    crash_window_s: Seconds = Field(
        default=300.0, description="of readiness: while it starts, no crash is forgotten"
    )
    heartbeat_s: Seconds = Field(
        default=10.0, description="without a step while requests run: a probe is sent"
    )
    probe_s: Seconds = Field(default=10.0, description="the one-token probe's time; then it counts as hung")
    prefill_grace_s: Seconds = Field(
        default=60.0, description="instead of heartbeat_s while a long prompt runs"
    )
    long_prompt: int = Field(default=2048, ge=1, description="tokens from which a prompt is long")
    drain_s: Seconds = Field(default=30.0, description="for running requests when stopping")
    kill_s: Seconds = Field(default=5.0, description="from SIGTERM to SIGKILL")


class Warmup(Record):
    """Requests before the arm is ready: distinct ones, one of each length."""

    lengths: tuple[Annotated[int, Field(ge=1)], ...] = Field(default=(16, 128, 512), min_length=1)
    tokens: int = Field(default=4, ge=1)
    timeout_s: Seconds = 120.0


class UpstreamTimeouts(Record):
    """Longest waits for the engine, in seconds."""

    connect_s: Seconds = 2.0
    first_s: Seconds = Field(
        default=30.0, description="to the first byte; a client's deadline may be shorter"
    )
    idle_s: Seconds = Field(default=30.0, description="between two pieces of an answer")
    total_s: Seconds = 600.0


class Surface(Record):
    """What clients may send."""

    max_body: int = Field(default=1_000_000, ge=256, description="bytes; beyond it 413")
    max_header: int = Field(default=16_384, ge=1024, description="bytes of all headers; beyond it 431")
    header_s: Seconds = Field(default=10.0, description="to send the headers")
    body_s: Seconds = Field(default=20.0, description="to send the body; beyond it 408")
    connections: int = Field(default=4096, ge=1, description="open at once; beyond it they are closed")
    keys: dict[EnvironmentVariable, PriorityTier] = Field(
        default_factory=dict, description="environment variable that holds an API key -> its tier"
    )
    tier_header: bool = Field(default=True, description="x-checkweigh-tier may lower a request's own tier")


class Routing(Record):
    """With two arms: who gets what. The split itself is a command-line option."""

    session_header: str = Field(
        default="x-session-id", pattern=r"^[a-z0-9-]+$", description="key of the sticky hash"
    )
    salt: str = Field(default="checkweigh", description="another salt, another assignment")
    margin: Annotated[float, Field(gt=0, le=10)] = Field(
        default=0.2,
        description="of log time to first token, per token, failed sessions; beyond it the candidate is switched off",
    )
    alpha: Annotated[float, Field(gt=0, lt=0.5)] = Field(
        default=0.05,
        description="chance that an equal candidate is, once for its times and once for its failures",
    )
    min_requests: int = Field(default=30, ge=10, description="an arm, before the alarm may speak")


class Degradation(Record):
    """What is given up while the engine is saturated, before anything is shed. Marked in header and log."""

    max_tokens: int | None = Field(default=None, ge=1, description="replies are cut to this")
    tiers: tuple[PriorityTier, ...] = ("standard", "bulk")
    enter: Fraction = Field(
        default=0.8, description="share of the budget in use at which it begins, or a queue"
    )
    leave: Fraction = Field(default=0.6, description="share below which it ends")

    @model_validator(mode="after")
    def _ordered(self) -> Degradation:
        if not self.leave < self.enter:
            raise ValueError("leave below enter")
        return self


class Traffic(Record):
    """The log of requests, one JSON object a line, for a later A/B report."""

    path: str | None = Field(default=None, min_length=1, description="a file; none: no log")
    prompts: Literal["hash", "text"] = Field(
        default="hash", description="text keeps what people wrote: mind the law"
    )
    max_bytes: int = Field(default=50_000_000, ge=10_000, description="then the file is rotated")
    keep: int = Field(default=5, ge=1, description="rotated files kept")


class Monitor(Record):
    """Continuous p99 against the baseline that the gate stored."""

    gate: str | None = Field(
        default=None, min_length=1, description="directory of the gate that passed it, whose p99 is the norm"
    )
    ttft_p99_s: float | None = Field(default=None, gt=0, description="the norm itself, instead")
    ratio: Annotated[float, Field(gt=1, le=100)] = Field(default=1.3, description="beyond it is a deviation")
    alpha: Annotated[float, Field(gt=0, lt=0.5)] = 0.01
    webhook_env: EnvironmentVariable | None = Field(
        default=None, description="environment variable with the URL to POST to"
    )


class GuardPolicy(Record):
    """All limits of guarded serving."""

    schema_: Literal["checkweigh/guard@1"] = Field(default="checkweigh/guard@1", alias="schema")
    admission: AdmissionLimits = AdmissionLimits()
    saturation: SaturationLimits = SaturationLimits()
    breaker: BreakerLimits = BreakerLimits()
    memory: MemoryLimits = MemoryLimits()
    supervision: Supervision = Supervision()
    warmup: Warmup = Warmup()
    timeouts: UpstreamTimeouts = UpstreamTimeouts()
    surface: Surface = Surface()
    routing: Routing = Routing()
    degradation: Degradation = Degradation()
    traffic: Traffic = Traffic()
    monitor: Monitor = Monitor()
