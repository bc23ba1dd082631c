"""Manifest: one deployable model with everything that decides what it answers. Lock: its digests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from checkweigh import canonical
from checkweigh.records.base import Digest, Name, Record
from checkweigh.records.evalset import REMOTE, Message

SOURCE = rf"^(path:[^\x00-\x1f\x7f]+|{REMOTE})$"
Source = Annotated[
    str,
    Field(
        pattern=SOURCE,
        description="path:DIR-or-FILE, hf:OWNER/REPO@40-hex-commit, or package:DIST==VERSION/FILE-IN-WHEEL",
    ),
]
Length = Literal["shorter", "longer"]
# Keys of a manifest that say where something lies; ``digest`` is that of a source in parts, ``image`` names a registry.
PLACE_KEYS = ("source", "parts", "digest", "chat_template", "interpreter", "lock", "image")
SERVER_KINDS = ("vllm", "openai")  # engines that serve over HTTP and say only their likeliest tokens


class Derive(Record):
    """How the served weights are made from the source, by a versioned recipe."""

    recipe: Literal["gguf-to-safetensors"]
    version: Literal[1] = 1


class Adapter(Record):
    """A LoRA adapter merged or served on top of the weights."""

    source: Source
    scale: float = Field(default=1.0, gt=0)


class Model(Record):
    """The weights and where they come from."""

    source: Source
    parts: tuple[Source, ...] = Field(
        default=(), description="further pieces of the file, in order, where a file is shipped in several"
    )
    digest: Digest | None = Field(default=None, description="of the file that source and parts are joined to")
    derive: Derive | None = None
    adapters: tuple[Adapter, ...] = ()
    unsafe_pickle: bool = False
    unsafe_remote_code: bool = False

    @model_validator(mode="after")
    def _parts_make_a_file(self) -> Model:
        if self.parts and self.derive is None:
            raise ValueError("parts are pieces of one GGUF file, which needs derive")
        if bool(self.parts) != (self.digest is not None):
            raise ValueError(
                "parts go with the digest of the whole file, which says that none is out of place"
            )
        return self


class Tokenizer(Record):
    """Where the tokenizer comes from; the model's own when no source is given."""

    source: Source | None = None


class PromptsSection(Record):
    """Everything that turns an item's messages into a prompt."""

    system: str | None = Field(default=None, description="system message put before every conversation")
    template: str = Field(default="{prompt}", description="wraps the text of each user message")
    chat_template: Source | None = Field(
        default=None, description="a Jinja file; the tokenizer's own if absent"
    )

    @model_validator(mode="after")
    def _has_prompt(self) -> PromptsSection:
        if self.template.count("{prompt}") != 1:
            raise ValueError("the template must contain {prompt} exactly once")
        return self

    def compose(self, messages: Sequence[Message]) -> tuple[Message, ...]:
        """An item's messages as they are served: the system message in front, user texts in the template."""
        system = () if self.system is None else (Message(role="system", content=self.system),)
        return system + tuple(
            Message(role=m.role, content=self.template.replace("{prompt}", m.content))
            if m.role == "user"
            else m
            for m in messages
        )


class Quantization(Record):
    """How weights are quantized when they are loaded.

    ``awq``, ``gptq`` and ``compressed-tensors`` are checkpoints that were quantized before, ``fp8`` is one too or made
    while loading: all of engine vllm, as are key-value caches of another dtype.
    """

    method: Literal["none", "bitsandbytes", "awq", "gptq", "compressed-tensors", "fp8"] = "none"
    bits: Literal[4, 8] | None = None
    type: Literal["int8", "nf4", "fp4"] | None = None
    double: bool = Field(default=False, description="quantize the quantization constants as well")
    kv_dtype: Literal["auto", "bfloat16", "float16", "fp8", "fp8_e4m3", "fp8_e5m2"] = "auto"

    @model_validator(mode="after")
    def _consistent(self) -> Quantization:
        wanted = {"int8": 8, "nf4": 4, "fp4": 4}.get(self.type or "")
        if self.method != "bitsandbytes" and (self.bits or self.type or self.double):
            raise ValueError(f"method {self.method} takes neither bits nor type nor double")
        if self.method == "bitsandbytes" and (self.type is None or self.bits != wanted):
            raise ValueError("bitsandbytes takes bits: 8 with type: int8, or bits: 4 with type: nf4 or fp4")
        return self


class PromptLookup(Record):
    """Speculation without a second model: what followed the last tokens earlier in the text is tried."""

    method: Literal["prompt_lookup"]
    num_tokens: int = Field(ge=1, le=64, description="most tokens drafted for one forward of the model")
    max_ngram: int = Field(
        default=2, ge=1, le=16, description="longest run of last tokens that is looked for in the text so far"
    )


class DraftModel(Record):
    """The weights that draft; its tokens must be the model's. Pickles and code are always refused."""

    source: Source
    derive: Derive | None = None

    def as_model(self) -> Model:
        """The same, as a model to be resolved."""
        return Model(source=self.source, derive=self.derive)


class Draft(Record):
    """Speculation with a smaller model, in the engine's dtype and never quantized."""

    method: Literal["draft"]
    model: DraftModel
    num_tokens: int = Field(ge=1, le=64, description="tokens drafted for one forward of the model")


class Ngram(Record):
    """vLLM's prompt lookup: what followed the last ``max_ngram`` to ``min_ngram`` tokens earlier in the text."""

    method: Literal["ngram"]
    num_tokens: int = Field(ge=1, le=64, description="tokens drafted for one forward of the model")
    max_ngram: int = Field(default=4, ge=1, le=16)
    min_ngram: int = Field(default=2, ge=1, le=16)

    @model_validator(mode="after")
    def _ordered(self) -> Ngram:
        if self.min_ngram > self.max_ngram:
            raise ValueError("min_ngram is at most max_ngram")
        return self


class Eagle3(Record):
    """vLLM's EAGLE-3: a trained head of its own drafts from the model's hidden states."""

    method: Literal["eagle3"]
    model: DraftModel
    num_tokens: int = Field(ge=1, le=64, description="tokens drafted for one forward of the model")


Speculative = Annotated[PromptLookup | Draft | Ngram | Eagle3, Field(discriminator="method")]
METHODS = {"transformers": ("prompt_lookup", "draft"), "vllm": ("ngram", "draft", "eagle3")}


class EnvironmentSection(Record):
    """Where the engine's packages are: an interpreter that has them, a lock that ``engine install`` installed, or an
    image that docker or podman runs."""

    interpreter: str | None = Field(default=None, min_length=1, description="a Python, absolute or from here")
    lock: str | None = Field(default=None, min_length=1, description="an engine lock, absolute or from here")
    image: str | None = Field(
        default=None, pattern=r"^[a-z0-9][a-z0-9._/:-]*@sha256:[0-9a-f]{64}$",
        description="a container image by digest, NAME@sha256:..., which is there already",
    )  # fmt: skip

    @model_validator(mode="after")
    def _one(self) -> EnvironmentSection:
        if sum(place is not None for place in (self.interpreter, self.lock, self.image)) != 1:
            raise ValueError("exactly one of interpreter, lock and image")
        return self


Variable = Literal[
    "VLLM_CPU_OMP_THREADS_BIND", "VLLM_CPU_KVCACHE_SPACE", "VLLM_CPU_NUM_OF_RESERVED_CPU", "VLLM_CPU_INT4_W4A8",
    "VLLM_CPU_ATTN_SPLIT_KV", "VLLM_ATTENTION_BACKEND", "VLLM_USE_FLASHINFER_SAMPLER", "VLLM_USE_DEEP_GEMM",
    "VLLM_USE_V2_MODEL_RUNNER", "VLLM_USE_AOT_COMPILE", "VLLM_ALLREDUCE_USE_SYMM_MEM", "CUDA_VISIBLE_DEVICES",
    "NCCL_P2P_DISABLE",
]  # fmt: skip
Extra = Literal[
    "--long-prefill-token-threshold", "--max-num-partial-prefills", "--max-long-partial-prefills",
    "--max-num-queued-reqs", "--max-num-queued-tokens", "--watermark", "--cpu-offload-gb", "--kv-offloading-size",
    "--attention-backend", "--compilation-config", "--cudagraph-capture-sizes", "--enable-expert-parallel",
    "--async-scheduling", "--no-async-scheduling", "--disable-cascade-attn", "--prefix-caching-hash-algo",
    "--stream-interval",
]  # fmt: skip


class VllmArgs(Record):
    """Settings of a vLLM server. What is None is the engine's own default, which its version decides."""

    enforce_eager: bool = Field(default=False, description="no compilation and no CUDA graphs")
    max_num_seqs: int | None = Field(default=None, ge=1, description="most sequences computed together")
    max_num_batched_tokens: int | None = Field(default=None, ge=1, description="most tokens of one step")
    prefix_caching: bool | None = None
    chunked_prefill: bool | None = None
    block_size: int | None = Field(default=None, ge=1, description="tokens of one block of the cache")
    gpu_memory_utilization: float | None = Field(default=None, gt=0, le=1)
    kv_cache_memory_bytes: int | None = Field(default=None, ge=1)
    tensor_parallel: int = Field(default=1, ge=1)
    pipeline_parallel: int = Field(default=1, ge=1)
    scheduling: Literal["fcfs", "priority"] = "fcfs"
    extra: dict[Extra, bool | int | float | str] = Field(
        default_factory=dict, description="other options of vLLM, of those that are known to be harmless"
    )


class Attached(Record):
    """A running server that somebody else started, spoken to as OpenAI's is."""

    url: str = Field(pattern=r"^https?://[^\s@]+$", description="ends where /chat/completions would follow")
    model: str = Field(min_length=1, description="the model's name there")
    key_env: str | None = Field(
        default=None, pattern=r"^[A-Z_][A-Z0-9_]*$", description="the environment variable that holds the key"
    )


class EngineSection(Record):
    """What serves the model. ``environment``, ``env`` and ``args`` are of kind vllm, ``endpoint`` of kind openai."""

    kind: Literal["transformers", "vllm", "openai", "fake"]
    version: str = Field(min_length=1, description="the engine's version, exactly")
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    device: Literal["cpu", "cuda", "mps"] = "cpu"
    threads: int = Field(default=2, ge=1, le=1024)
    max_batch: int = Field(default=16, ge=1, le=1024, description="most sequences generated together")
    max_batch_tokens: int = Field(
        default=4096, ge=16, le=100_000_000, description="most padded tokens scored together"
    )
    options: dict[str, bool | int | float | str] = Field(
        default_factory=dict, description="knobs of the fake engine; empty for transformers"
    )
    speculative: Speculative | None = Field(
        default=None,
        description="tokens are drafted and then verified; transformers then generates replies one by one",
    )
    stride: int | None = Field(
        default=None,
        ge=1,
        description="raw text longer than limits.max_sequence is scored in windows that begin this many tokens apart; "
        "without it such a text fails as too long",
    )
    continuous: bool = Field(
        default=False, description="replies by continuous batching with paged attention, for a GPU"
    )
    environment: EnvironmentSection | None = None
    env: dict[Variable, str] = Field(default_factory=dict, description="environment variables of the server")
    args: VllmArgs | None = None
    endpoint: Attached | None = None

    @model_validator(mode="after")
    def _options(self) -> EngineSection:
        if self.kind != "fake" and self.options:
            raise ValueError(f"engine {self.kind} takes no options")
        method = None if self.speculative is None else self.speculative.method
        if method is not None and method not in METHODS.get(self.kind, ()):
            known = ", ".join(METHODS.get(self.kind, ()))
            raise ValueError(f"engine {self.kind} takes no speculative" + (f" but {known}" if known else ""))
        if self.kind != "vllm" and (self.env or self.args is not None or self.environment is not None):
            raise ValueError(f"engine {self.kind} takes neither environment nor env nor args")
        if self.kind == "vllm" and self.environment is None:
            raise ValueError("engine vllm takes environment: an interpreter, a lock or an image")
        if self.kind == "vllm" and self.device == "cpu":
            size = self.args is not None and self.args.kv_cache_memory_bytes
            if "VLLM_CPU_OMP_THREADS_BIND" not in self.env:
                raise ValueError("engine vllm on a CPU takes env VLLM_CPU_OMP_THREADS_BIND, such as '0-1': two servers "
                                 "bind to the same core by default")  # fmt: skip
            if not size and "VLLM_CPU_KVCACHE_SPACE" not in self.env:
                raise ValueError("engine vllm on a CPU takes env VLLM_CPU_KVCACHE_SPACE, in GiB")
        if self.kind != "transformers" and (self.stride is not None or self.continuous):
            raise ValueError(f"engine {self.kind} takes neither stride nor continuous")
        if self.continuous and self.speculative is not None:
            raise ValueError(
                "continuous or speculative, not both: replies with drafts are generated one by one"
            )
        if (self.kind == "openai") != (self.endpoint is not None):
            raise ValueError("engine openai, and no other, takes endpoint")
        return self


class Sampling(Record):
    """How tokens are drawn."""

    temperature: float = Field(default=0.0, ge=0, le=10)
    top_p: float = Field(default=1.0, gt=0, le=1)
    max_tokens: int = Field(default=48, ge=1, le=1_000_000)
    seed: int = Field(default=0, ge=0, le=2**63 - 1)
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = ()


class Limits(Record):
    """Hard limits, checked before the model is loaded and on every request."""

    max_sequence: int = Field(default=2048, ge=16, le=100_000_000)
    memory_headroom: float = Field(
        default=0.25, ge=0, lt=1, description="share of the host's memory left free"
    )


class Manifest(Record):
    """One deployable model. The name, comment and ``intends`` are not part of what is measured."""

    schema_: Literal["checkweigh/manifest@1"] = Field(alias="schema")
    name: Name
    comment: str = ""
    intends: tuple[Length, ...] = Field(
        default=(), description="declared changes of reply length, shown everywhere"
    )
    model: Model
    tokenizer: Tokenizer = Tokenizer()
    prompts: PromptsSection = PromptsSection()
    quantization: Quantization = Quantization()
    engine: EngineSection
    sampling: Sampling = Sampling()
    limits: Limits = Limits()

    @model_validator(mode="after")
    def _served_together(self) -> Manifest:
        kind, quantization = self.engine.kind, self.quantization
        if kind == "transformers" and self.engine.speculative is not None and self.sampling.temperature > 0:
            raise ValueError(
                "engine.speculative takes sampling.temperature 0.0: only greedy replies are verified"
            )
        if self.engine.continuous and self.sampling.temperature > 0:
            raise ValueError(
                "engine.continuous takes sampling.temperature 0.0: draws would depend on the requests around one"
            )
        if self.engine.stride is not None and self.engine.stride >= self.limits.max_sequence:
            raise ValueError("engine.stride below limits.max_sequence: windows must not leave tokens out")
        if kind == "transformers" and quantization.method not in ("none", "bitsandbytes"):
            raise ValueError(f"engine transformers takes no quantization.method {quantization.method}")
        if kind == "transformers" and quantization.kv_dtype != "auto":
            raise ValueError("engine transformers takes quantization.kv_dtype auto")
        return self

    def declared(self) -> dict[str, object]:
        """Section -> value, of every section that decides what is measured.

        What is younger than the first locks is left out where there is none, so that those stay current.
        """
        later = ("speculative", "stride", "continuous", "environment", "env", "args", "endpoint")
        absent: dict[str, Any] = dict.fromkeys(("schema_", "name", "comment", "intends"), True)
        absent["engine"] = {name: True for name in later if not getattr(self.engine, name)}
        if self.engine.environment is not None and self.engine.environment.image is None:
            absent["engine"]["environment"] = {"image"}
        if not self.model.parts:
            absent["model"] = {"parts", "digest"}
        return self.model_dump(mode="json", exclude=absent)

    def settings(self) -> dict[str, object]:
        """As ``declared``, without the places where files lie: what they hold is pinned by its digest."""
        return {name: _without_places(section) for name, section in self.declared().items()}

    @property
    def draft(self) -> DraftModel | None:
        """The model that drafts, if one does."""
        speculative = self.engine.speculative
        return speculative.model if isinstance(speculative, Draft | Eagle3) else None

    @property
    def unsafe(self) -> tuple[str, ...]:
        """What this manifest allows that is refused by default; every output says so."""
        allowed = [k for k in ("unsafe_pickle", "unsafe_remote_code") if getattr(self.model, k)]
        return (*allowed, *(["fake_engine"] if self.engine.kind == "fake" else []))


PLACES = ("wheel", "parts")  # pins that say where the weights were taken from


class Pins(Record):
    """Digests of everything a manifest names, by section, as found at one moment."""

    manifest: Digest = Field(description="digest of the settings: the declared sections without places")
    source: Digest = Field(description="the weights' source: a file, or all files by name")
    wheel: Digest | None = Field(default=None, description="the wheel a package: source is unpacked from")
    parts: tuple[Digest | None, ...] = Field(
        default=(), description="likewise of each further piece of the source"
    )
    weights: dict[str, Digest] = Field(
        description="file -> sha256; for derived weights file -> tensor digest"
    )
    tensors: bool = Field(
        description="true when weights holds tensor digests (sorted name, dtype, shape, bytes)"
    )
    tokenizer: dict[str, Digest]
    files: dict[str, Digest] = Field(
        default_factory=dict,
        description="every other file in and below the model's folder (model/NAME) and the tokenizer's "
        "(tokenizer/NAME)",
    )
    chat_template: Digest
    prompts: Digest
    probes: tuple[tuple[int, ...], ...] = Field(description="token ids of the probe conversations")
    vocabulary: Digest = Field(description="token -> id mapping; equal digests make tokens comparable")
    adapters: tuple[Digest, ...] = ()
    draft: dict[str, Digest] = Field(
        default_factory=dict,
        description="the drafting model's weights, as in weights, config.json and tokenizer files",
    )
    environment: Digest | None = Field(
        default=None, description="of an engine's own environment: its lock, or an interpreter's packages"
    )
    quantization: Digest
    sampling: Digest

    def record_digest(self) -> str:
        """As of any record, without the wheels that the weights were unpacked from: those are places, not content."""
        return canonical.digest(self.model_dump(mode="json", exclude=set(PLACES)))


class Lock(Record):
    """``NAME.lock.json`` beside ``NAME.yaml``."""

    schema_: Literal["checkweigh/lock@2"] = Field(default="checkweigh/lock@2", alias="schema")
    name: Name
    pins: Pins


def _without_places(value: Any) -> Any:
    """``value`` without every ``PLACE_KEYS`` in it, and without what holds nothing else."""
    if not isinstance(value, dict):
        return [_without_places(inner) for inner in value] if isinstance(value, list) else value
    return {key: _without_places(inner) for key, inner in value.items() if key not in PLACE_KEYS}
