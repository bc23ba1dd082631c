"""What the mock engine can be told to be and to suffer."""

from __future__ import annotations

from pydantic import Field

from checkweigh.records.base import Record


class MockKnobs(Record):
    """All of them, with the defaults of a fast and healthy engine. Shares are of requests, drawn by ``seed``."""

    model: str = Field(default="mock", min_length=1)
    seed: int = Field(default=0, ge=0)
    start_ms: float = Field(
        default=0.0, ge=0, description="loading: /health and all else answer 503 until then"
    )
    first_ms: float = Field(default=0.0, ge=0, description="from having a slot to the first token")
    prefill_ms: float = Field(default=0.0, ge=0, description="added to that for each token of the prompt")
    token_ms: float = Field(default=0.0, ge=0, description="one forward: between two updates of a stream")
    batch_slope: float = Field(
        default=0.0, ge=0, description="each further running request lengthens a forward by"
    )
    tail_share: float = Field(
        default=0.0, ge=0, le=1, description="requests whose first token is later by tail_ms"
    )
    tail_ms: float = Field(default=0.0, ge=0)
    reply_tokens: int = Field(default=16, ge=1, description="length of a reply that max_tokens does not cut")
    acceptance: float = Field(
        default=1.0, ge=1, le=16, description="tokens a forward; above 1 is speculation"
    )
    drafted: int = Field(default=0, ge=0, le=64, description="tokens drafted a forward; 0: no speculation")
    slots: int = Field(
        default=256, ge=1, description="requests running together; the rest wait, without bound"
    )
    max_len: int = Field(default=4096, ge=1, description="prompt and reply together; beyond it is 400")
    kv_tokens: int = Field(
        default=1_000_000, ge=1, description="tokens the KV cache holds; beyond it requests wait"
    )
    kv_floor: float = Field(default=0.0, ge=0, le=1, description="least KV usage reported: feigned pressure")
    oom_tokens: int = Field(
        default=0, ge=0, description="tokens running and waiting that kill the process; 0: never"
    )
    hang: bool = Field(default=False, description="no token any more, while /health stays green")
    deaf: bool = Field(default=False, description="/health hangs too")
    dead: bool = Field(
        default=False, description="its core is gone: /health says 503, requests and streams fail"
    )
    crash_after: int = Field(default=0, ge=0, description="ends at this request; 0: never")
    crash_code: int = Field(default=1, ge=0, le=255)
    error_share: float = Field(default=0.0, ge=0, le=1, description="answered with error_code")
    error_code: int = Field(default=500, ge=400, le=599, description="the status of it")
    truncate_share: float = Field(
        default=0.0, ge=0, le=1, description="streams that end half-way, without a reason"
    )
    reset_share: float = Field(default=0.0, ge=0, le=1, description="connections reset half-way")
    frozen_metrics: bool = Field(default=False, description="/metrics repeats itself")
