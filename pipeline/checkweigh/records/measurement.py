"""Observations of one arm on one set, and what exists only between two arms."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from checkweigh.records.base import Digest, GrownRecord, Record
from checkweigh.records.evalset import AnyScorer

KNEE = 0.9  # share of requests that keep the slo below which a rate is more than an arm can carry
PROTOCOL = 1  # the measurement protocol's version; raise it when the same pins may yield other numbers

FailureKind = Literal["too_long", "out_of_memory", "timeout", "engine", "non_finite", "scorer"]


class Scored(Record):
    """An item with a result. Text: value nll with weights tokens and bytes. Others: weight item = 1."""

    kind: Literal["scored"] = "scored"
    values: dict[str, float] = Field(min_length=1)
    weights: dict[str, float] = Field(default_factory=dict)


class Failed(Record):
    """An item without a result, and why; it counts, it is never dropped."""

    kind: Literal["failed"] = "failed"
    reason: FailureKind
    detail: str


ItemOutcome = Annotated[Scored | Failed, Field(discriminator="kind")]


class WorstToken(Record):
    """A token after which the two arms disagree most about what comes next."""

    position: int = Field(ge=0, description="index of the token in its document")
    kl: float = Field(ge=0, description="nats")
    before: str = Field(description="the end of the text before it")
    token: str = Field(description="the token that stands there")
    baseline: str = Field(description="the baseline's likeliest token")
    baseline_p: float
    candidate: str
    candidate_p: float


class Speculated(Record):
    """How one reply's drafts did. Every forward gives the tokens it accepts and one of its own."""

    forwards: int = Field(ge=1, description="forwards of the model, the first one over the prompt included")
    drafted: int = Field(ge=0, description="tokens drafted")
    accepted: int = Field(ge=0, description="drafted tokens that the model accepted")

    @model_validator(mode="after")
    def _possible(self) -> Speculated:
        if self.accepted > self.drafted:
            raise ValueError("more tokens accepted than drafted")
        return self


class Observation(Record):
    """What one execution of one item gave."""

    item: str
    replicate: int = Field(ge=0)
    batch: int = Field(ge=0, description="index in the batch plan; a failure strikes a whole batch")
    outcome: ItemOutcome
    raw: Digest | None = Field(
        description="digest of the raw output (token ids or log-probabilities); None if failed"
    )
    text: str | None = None
    output_tokens: int | None = None
    finish: Literal["stop", "length"] | None = None
    speculated: Speculated | None = Field(default=None, description="replies with speculation only")
    kl: tuple[float, ...] = Field(default=(), description="divergence only: nats, one value a token")
    worst: tuple[WorstToken, ...] = ()


class EngineIdentity(Record):
    """What the engine says it is; part of the key of every measurement."""

    kind: str
    version: str
    dtype: str
    device: str
    quantization: str = Field(
        description="'none', or method and type with the share of quantized linear weights"
    )
    threads: int
    max_sequence: int
    vocabulary_size: int
    eos: tuple[int, ...]
    packages: dict[str, str] = Field(description="versions of the packages that compute the numbers")
    settings: dict[str, str] = Field(
        default_factory=dict, description="what a server reports of its settings, as it says them"
    )
    effective: dict[str, str] = Field(
        default_factory=dict,
        description="the configuration found in the loaded model: rotary, window, tied_head, eos, attention, "
        "generation_defaults",
    )


class Provenance(GrownRecord):
    """Where and when; recorded, never part of a key. A measurement names no repository: its pins say what it is."""

    YOUNGER: ClassVar[frozenset[str]] = frozenset({"build", "repository", "documents", "uncommitted"})

    tool: str
    build: Digest | None = Field(default=None, description="of the tool's own files, by name")
    commit: str | None = Field(description="of the repository that the candidate's manifest lies in")
    dirty: bool | None = Field(
        description="whether a document of it was read that the commit does not hold so"
    )
    packages: dict[str, str]
    hardware: str
    started: str
    ended: str
    repository: str | None = Field(
        default=None, description="that repository, without credentials: HOST/PATH of its remote, or a name"
    )
    documents: dict[str, str] = Field(
        default_factory=dict, description="role -> the document's path in the repository, as of the start"
    )
    uncommitted: tuple[str, ...] = Field(
        default=(), description="the documents that make it dirty: changed, untracked or ignored ones"
    )


class MeasurementKey(Record):
    """What decides a quality measurement; its digest is the address in the store."""

    pins: Digest
    identity: Digest
    evalset: Digest
    scorer: AnyScorer
    protocol: int = PROTOCOL
    hardware: str
    replicate: int = Field(ge=0)
    batches: int = Field(
        default=0,
        ge=0,
        description="0: the whole set under the plan of a gate; else which other part or plan",
    )
    against: Digest | None = Field(
        default=None, description="divergence only: key of the baseline's measurement of the same set"
    )


class Stage(Record):
    """Cost of one stage: what was computed and how long it took."""

    name: str
    arm: str
    items: int
    tokens: int
    seconds: float = Field(ge=0)
    stored: bool = Field(
        default=False, description="read from the store; seconds are those of the first time"
    )


class Verification(Record):
    """The pinned files of an arm, read again after its engine had loaded and when its measuring ended."""

    files: Digest = Field(description="of name -> digest of every pinned file, equal at both times")
    bytes: int = Field(ge=0, description="read each time")
    seconds: float = Field(ge=0, description="of reading, both times together")


class MeasurementSet(Record):
    """All observations of one arm on one set."""

    schema_: Literal["checkweigh/measurement@2"] = Field(default="checkweigh/measurement@2", alias="schema")
    key: MeasurementKey
    set_name: str
    planned: int = Field(ge=1)
    identity: EngineIdentity
    stage: Stage
    provenance: Provenance
    verified: Verification
    observations: tuple[Observation, ...]


class Block(Record):
    """One pair of blocks: both arms on the same requests, in a random order."""

    pair: int = Field(ge=0)
    order: tuple[Literal["baseline", "candidate"], Literal["baseline", "candidate"]]
    baseline: dict[str, float] = Field(
        description="'metric.statistic' -> value, such as 'ttft.p50' in seconds"
    )
    candidate: dict[str, float]
    requests: int = Field(ge=1)
    plan: Digest | None = Field(default=None, description="under load: of what was to be sent, and when")
    unlike: dict[str, tuple[int, int]] = Field(
        default_factory=dict,
        description="under load: 'goodput', 'error_rate' -> requests for which it holds in one arm only "
        "(baseline, candidate)",
    )


class SweepPoint(Record):
    """One arm at one offered rate."""

    arm: Literal["baseline", "candidate"]
    offered: float = Field(gt=0, description="requests a second")
    goodput: float = Field(ge=0, description="requests a second that kept the load's slo")
    share: float = Field(ge=0, le=1)
    requests: int = Field(ge=1)
    saturated: bool
    late: bool = Field(description="the sender was too late for this point to be trusted")
    ttft: float | None = Field(default=None, description="median, seconds")
    e2e: float | None = Field(default=None, description="median, seconds")

    @property
    def fell(self) -> bool:
        """Whether the arm could not carry this rate."""
        return self.saturated or self.share < KNEE


class PairedRun(Record):
    """Timing and memory of two arms in one run, in interleaved blocks. Never reused."""

    schema_: Literal["checkweigh/paired-run@1"] = Field(default="checkweigh/paired-run@1", alias="schema")
    protocol: int = PROTOCOL
    seed: int
    blocks: tuple[Block, ...]
    seconds: float
    looks: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field(
        default=(1.0,),
        description="information fractions at which the checks were looked at, this one included",
    )
    planned_looks: int = Field(default=1, ge=1)
    load: str = Field(default="", description="the load in words; empty for one request after the other")
    sweep: tuple[SweepPoint, ...] = ()
    peak_memory: dict[str, int] = Field(default_factory=dict, description="arm -> bytes")
    swapped: dict[str, int] = Field(default_factory=dict, description="arm -> bytes of the process in swap")
    notes: tuple[str, ...] = ()
