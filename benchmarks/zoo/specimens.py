"""The zoo's catalogue: real defects and harmless changes of the shipped model, and what the gate has to make of each.

``must`` was written down before the first run and is not changed by what a run finds: ``block`` (a verdict of block, or
the refusal of a broken candidate), ``refuse`` (exit 2 before anything is compared), ``pass``, ``not-block`` where an
inconclusive verdict is as right as a pass, or ``open`` for a dose at which nobody should stake a release on the answer;
an open one is reported, and counts nowhere. ``causes`` are the checks that name the right cause, ``words`` a part of a
refusal's message that does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

from benchmarks.zoo import recipes

Must = Literal["pass", "block", "refuse", "not-block", "open"]
Timed = Literal["", "single", "tail", "load"]
Recipe = Callable[[Path, Path], None]
Tamper = Callable[[Path], None]
BASELINE = "smollm2-135m"
TEXT = ("perplexity",)
SCORES = ("task-score", "choices-score", "answers-score")
LENGTHS = ("longer-replies", "shorter-replies", "longer-open-ended", "shorter-open-ended")
QUALITY = (*TEXT, *SCORES)
REPLIES = ("answers-score", "task-score", "bad-endings", *LENGTHS)


@dataclass(frozen=True, kw_only=True)
class Specimen:
    """One candidate. Exactly what differs from the baseline is in ``recipe``, ``changes`` or ``defect``."""

    kind: str  # specimens of one kind are one ladder
    family: Literal["weights", "tokenizer", "sampling", "engine", "harmless", "timing", "bytes"]
    what: str
    must: Must
    dose: str = ""
    size: float | None = None  # the dose as a number, for the dose-response plot
    causes: tuple[str, ...] = ()
    words: str = ""
    recipe: Recipe | None = None  # edits a copy of the model's files
    changes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # section -> keys of the manifest
    defect: str = ""  # of the engine's process: NAME DOSE
    baseline: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # where it is not the shipped one
    busy: bool = False  # another program computes on every core meanwhile
    timed: Timed = ""  # how, where time and memory are what is gated (``gating.TIMED``)
    manifest: str = BASELINE  # the shipped one that candidate and baseline are made from
    # What happens to the candidate's folder after it was pinned: once the gate's output holds a text; "": before it.
    tampers: tuple[tuple[str, Tamper], ...] = ()

    @property
    def name(self) -> str:
        """The specimen's own name: its kind and dose."""
        return f"{self.kind}-{self.dose}".removesuffix("-").replace("%", "pct")

    @property
    def held_out(self) -> bool:
        """Every third one in the alphabet, timed ones apart: not looked at when a margin is set.

        What is refused or told for its bytes has to do with no margin.
        """
        if self.family == "bytes":
            return False
        alike = sorted(s.name for s in SPECIMENS if bool(s.timed) == bool(self.timed) and s.family != "bytes")
        return alike.index(self.name) % 3 == 2


def _weights(
    kind: str, dose: str, must: Must, recipe: Recipe, what: str, size: float | None = None
) -> Specimen:
    causes = QUALITY if must != "pass" else ()
    return Specimen(
        kind=kind, dose=dose, family="weights", what=what, must=must, recipe=recipe, causes=causes, size=size
    )


def _template(kind: str, must: Must, what: str, old: str, new: str, causes: tuple[str, ...]) -> Specimen:
    recipe = partial(recipes.template, old=old, new=new)
    return Specimen(kind=kind, family="tokenizer", what=what, must=must, recipe=recipe, causes=causes)


def _engine(
    kind: str, dose: str, must: Must, defect: str, what: str, causes: tuple[str, ...], **more: Any
) -> Specimen:
    return Specimen(
        kind=kind, dose=dose, family="engine", what=what, must=must, defect=defect, causes=causes, **more
    )


def _bitsandbytes(kind: str, bits: int, must: Must, what: str) -> Specimen:
    return Specimen(
        kind=f"bnb-{kind}", family="weights", what=what, must=must, causes=QUALITY if must == "block" else (),
        changes={"quantization": {"method": "bitsandbytes", "bits": bits, "type": kind}},
    )  # fmt: skip


def _sampling(kind: str, dose: str, must: Must, what: str, causes: tuple[str, ...], **keys: Any) -> Specimen:
    return Specimen(
        kind=kind,
        dose=dose,
        family="sampling",
        what=what,
        must=must,
        causes=causes,
        changes={"sampling": keys},
    )


LOOKUP = {"engine": {"speculative": {"method": "prompt_lookup", "num_tokens": 10, "max_ngram": 2}}}
ONE_AT_A_TIME = {
    "enforce_eager": True, "max_num_seqs": 1, "max_num_batched_tokens": 2048, "prefix_caching": True,
    "chunked_prefill": True,
}  # fmt: skip
BEGIN, END, ASK = (
    "'<|im_start|>' + message['role']",
    "{% if add_generation_prompt %}",
    "<|im_start|>assistant\n",
)

WEIGHTS = (
    _weights(
        "rtn-int8-row",
        "",
        "pass",
        partial(recipes.round_to_nearest, bits=8),
        "round-to-nearest, 8 bits a row",
    ),
    _weights(
        "rtn",
        "int4-group64",
        "open",
        partial(recipes.round_to_nearest, bits=4, group=64),
        "round-to-nearest, 4 bits in groups of 64",
        1,
    ),
    _weights(
        "rtn",
        "int4-row",
        "block",
        partial(recipes.round_to_nearest, bits=4),
        "round-to-nearest, 4 bits a row",
        2,
    ),
    _weights(
        "rtn",
        "int3-group64",
        "block",
        partial(recipes.round_to_nearest, bits=3, group=64),
        "round-to-nearest, 3 bits in groups of 64",
        3,
    ),
    _bitsandbytes("int8", 8, "pass", "bitsandbytes int8, widely served"),
    _bitsandbytes("nf4", 4, "block", "bitsandbytes nf4, here on top of Q4_1"),
    _bitsandbytes("fp4", 4, "block", "bitsandbytes fp4, here on top of Q4_1"),
    *(
        _weights(
            "layer-scale",
            f"{round(100 * (size - 1))}%",
            must,
            partial(recipes.scale_layer, factor=size),
            "one layer's output scaled",
            round(100 * (size - 1)),
        )
        for size, must in ((1.02, "open"), (1.10, "open"), (2.0, "block"))
    ),
    _weights(
        "layers-swapped",
        "1-apart",
        "open",
        partial(recipes.swap_layers, first=14, second=15),
        "two layers in each other's place",
        1,
    ),
    _weights(
        "layers-swapped",
        "15-apart",
        "block",
        partial(recipes.swap_layers, first=5, second=20),
        "two layers in each other's place",
        15,
    ),
    *(
        _weights(
            "matrix-noise",
            f"{round(100 * size)}%",
            must,
            partial(recipes.noise, share=size),
            "noise in one matrix, in percent of its spread",
            round(100 * size),
        )
        for size, must in ((0.1, "open"), (0.5, "open"), (2.0, "block"))
    ),
    *(
        _weights(
            "rare-embeddings",
            f"from-{first}",
            must,
            partial(recipes.zero_embeddings, first=first),
            "embeddings of the rarer tokens zeroed",
            49152 - first,
        )
        for first, must in ((48000, "open"), (40000, "open"), (16000, "block"))
    ),
    *(
        _weights(
            "half-adapter",
            f"{round(100 * size)}%",
            must,
            partial(recipes.half_adapter, size=size),
            "an adapter merged into every second layer only",
            round(100 * size),
        )
        for size, must in ((0.1, "open"), (1.0, "block"))
    ),
    Specimen(
        kind="truncated-file",
        family="weights",
        what="a weights file that ends early",
        must="refuse",
        recipe=partial(recipes.truncate, share=0.7),
        words="safetensors",
    ),
    *(
        _weights(
            "old-head",
            f"int{bits}",
            must,
            partial(recipes.old_head, bits=bits),
            "the head of an older, coarser export",
            8 - bits,
        )
        for bits, must in ((4, "open"), (2, "block"))
    ),
    _weights(
        "rope-base",
        "10000",
        "block",
        partial(recipes.rope, theta=1e4),
        "another base of the rotary embedding",
    ),
)

TOKENIZER = (
    *(
        Specimen(
            kind="merges-reordered",
            dose=str(count),
            size=count,
            family="tokenizer",
            must=must,
            what="the first merges in reverse order",
            recipe=partial(recipes.reorder_merges, count=count),
            causes=QUALITY,
            words="the tokenizers split",
        )
        for count, must in ((20, "open"), (2000, "block"))
    ),
    Specimen(
        kind="special-split",
        family="tokenizer",
        must="block",
        what="<|im_start|> is no token any more",
        recipe=partial(recipes.split_special, token="<|im_start|>"),
        causes=(*SCORES, *REPLIES),
        words="token",
    ),
    _template(
        "double-bos",
        "open",
        "every prompt begins with two BOS",
        "{% for message in messages %}{% if loop.first and",
        "{{ '<|im_start|>' }}{% for message in messages %}{% if loop.first and",
        (*SCORES, *REPLIES),
    ),
    _template(
        "no-generation-prompt",
        "block",
        "prompts do not ask for the assistant's turn",
        END,
        "{% if false %}",
        (*SCORES, *REPLIES),
    ),
    _template(
        "roles-swapped",
        "block",
        "user and assistant in each other's role",
        BEGIN,
        "'<|im_start|>' + ('assistant' if message['role'] == 'user' else 'user')",
        (*SCORES, *REPLIES),
    ),
    _template(
        "system-dropped",
        "open",
        "the model's default system prompt is gone",
        "loop.first and",
        "false and",
        (*SCORES, *REPLIES),
    ),
    Specimen(
        kind="trailing-space",
        family="tokenizer",
        must="open",
        what="a space after every user message",
        changes={"prompts": {"template": "{prompt} "}},
        causes=(*SCORES, *REPLIES),
    ),
    *(
        _engine(
            "truncation",
            side,
            "refuse",
            f"truncated {dose}",
            f"prompts cut to their {side} 40 tokens, and it shows",
            (),
            words="prompt",
        )
        for side, dose in (("last", 40), ("first", -40))
    ),
    _engine(
        "truncation-unsaid",
        "first",
        "block",
        "lying_truncated -40",
        "prompts cut to their first 40 tokens; the ids reported are the whole prompt's",
        REPLIES,
    ),
)

SAMPLING = (
    _sampling("temperature", "0.3", "open", "replies drawn instead of greedy", REPLIES, temperature=0.3),
    _sampling("temperature", "1.0", "block", "replies drawn instead of greedy", REPLIES, temperature=1.0),
    _sampling(
        "top-p", "0.5", "open", "temperature 1, nucleus of a half", REPLIES, temperature=1.0, top_p=0.5
    ),
    _sampling(
        "max-tokens", "halved", "block", "24 tokens instead of 48", ("bad-endings", *REPLIES), max_tokens=24
    ),
    _engine("temperature-unsaid", "1.0", "block", "sampled 1.0", "a temperature that nobody pinned", REPLIES),
    _engine(
        "repetition-penalty",
        "1.1",
        "open",
        "penalty 1.1",
        "a repetition penalty that nobody pinned",
        REPLIES,
        size=1.1,
    ),
    _engine(
        "repetition-penalty",
        "2.0",
        "block",
        "penalty 2.0",
        "a repetition penalty that nobody pinned",
        REPLIES,
        size=2.0,
    ),
    _engine(
        "eos-wrong",
        "",
        "block",
        "endless 0",
        "another id ends a reply: they run on",
        ("bad-endings", *REPLIES),
    ),
    _engine(
        "stop-lost",
        "",
        "block",
        "deaf 0",
        "stop strings are not passed on",
        ("bad-endings", *REPLIES),
        baseline={"sampling": {"stop": [".", "\n"]}},
    ),
    _engine(
        "seed-ignored",
        "",
        "open",
        "unseeded 0",
        "draws that no seed decides; the distribution is the same",
        REPLIES,
        baseline={"sampling": {"temperature": 0.7}},
    ),
)

ENGINE = (
    Specimen(
        kind="context-cut",
        family="engine",
        must="block",
        what="96 tokens of context instead of 2,048",
        changes={"limits": {"max_sequence": 96}},
        causes=("failures",),
    ),
    *(
        _engine(
            "window",
            str(size),
            must,
            f"window {size}",
            "attention that sees the last tokens only",
            (*QUALITY, *REPLIES),
            size=-size,
        )
        for size, must in ((128, "open"), (16, "block"))
    ),
    *(
        _engine(
            "lossy-speculation",
            f"{size}-nats",
            must,
            f"lossy_speculation {size}",
            "drafts accepted that the model did not choose",
            REPLIES,
            size=size,
            changes=LOOKUP,
        )
        for size, must in ((1, "open"), (8, "block"))
    ),
    _engine(
        "padding-attended",
        "",
        "block",
        "padding 0",
        "numbers that depend on the batch: padding is attended to",
        REPLIES,
    ),
    *(
        _engine(
            "cache-bleeds",
            f"1-in-{rows}",
            must,
            f"bleed {rows}",
            "a reply continues from its neighbour's cache",
            REPLIES,
            size=100 / rows,
        )
        for rows, must in ((16, "open"), (4, "block"))
    ),
    _engine(
        "logprobs-late", "", "block", "shifted_logprobs 1", "log-probabilities off by one position", QUALITY
    ),
    _engine(
        "dtype-fallback",
        "",
        "block",
        "fallback 0",
        "float16 is served for bfloat16, and said so",
        (),
        words="dtype",
    ),
    _engine(
        "dtype-unsaid",
        "e4m3",
        "open",
        "fp8 3",
        "8-bit floats are served for bfloat16, and not said",
        QUALITY,
        size=1,
    ),
    _engine(
        "dtype-unsaid",
        "e5m2",
        "block",
        "fp8 2",
        "8-bit floats are served for bfloat16, and not said",
        QUALITY,
        size=2,
    ),
)

HARMLESS = (
    Specimen(kind="itself", family="harmless", must="pass", what="the baseline under another name"),
    Specimen(
        kind="copied",
        family="harmless",
        must="pass",
        what="the same files in another place",
        recipe=recipes.copied,
    ),
    Specimen(
        kind="resharded",
        family="harmless",
        must="pass",
        what="the same tensors in two files",
        recipe=recipes.reshard,
    ),
    Specimen(
        kind="float32",
        family="harmless",
        must="pass",
        what="float32 for bfloat16",
        changes={"engine": {"dtype": "float32"}},
    ),
    Specimen(
        kind="other-batches",
        family="harmless",
        must="pass",
        what="smaller batches",
        changes={"engine": {"max_batch": 5, "max_batch_tokens": 768}},
    ),
    Specimen(
        kind="one-thread",
        family="harmless",
        must="pass",
        what="one thread instead of two",
        changes={"engine": {"threads": 1}},
    ),
    Specimen(
        kind="prompt-lookup",
        family="harmless",
        must="pass",
        what="greedy speculation by prompt lookup",
        changes=LOOKUP,
    ),
    Specimen(
        kind="other-seed",
        family="harmless",
        must="pass",
        what="another seed, at temperature 0",
        changes={"sampling": {"seed": 7}},
    ),
    Specimen(
        kind="busy-host",
        family="harmless",
        must="pass",
        what="another program on every core meanwhile",
        changes={"sampling": {"seed": 8}},
        busy=True,
    ),
)


def _timed(
    kind: str, dose: str, must: Must, what: str, causes: tuple[str, ...] = (), **more: Any
) -> Specimen:
    keys = {"timed": "single"} | more
    return Specimen(kind=kind, dose=dose, family="timing", what=what, must=must, causes=causes, **keys)


TIMING = (
    _timed("timed-itself", "", "pass", "the baseline under another name, timed"),
    _timed("timed-busy-host", "", "not-block", "another program on every core meanwhile, timed", busy=True),
    *(
        _timed(
            "slower-token",
            f"{size}%",
            must,
            "every token after the first takes longer",
            causes,
            size=size,
            defect=f"slow {size / 100}",
        )
        for size, must, causes in (
            (5, "not-block", ()),
            (20, "block", ("tpot",)),
            (50, "block", ("tpot", "e2e")),
        )
    ),
    _timed(
        "slower-tail",
        "1-in-20",
        "block",
        "one reply in twenty takes three times as long",
        ("e2e-p99",),
        timed="tail",
        defect="slow_tail 3",
    ),
    _timed(
        "slower-under-load",
        "",
        "block",
        "vLLM serves one request at a time: alone each is as fast as before",
        ("e2e", "e2e-p90", "ttft", "ttft-p90", "goodput"),
        timed="load",
        manifest="smollm2-135m-vllm",
        changes={"engine": {"args": ONE_AT_A_TIME}},
    ),
    *(
        _timed(
            "leak",
            f"{size}mb",
            must,
            "memory that every request leaves behind and nothing frees",
            ("memory",),
            size=size,
            defect=f"leak {size}",
        )
        for size, must in ((1, "open"), (5, "block"))
    ),
)


def _bytes(kind: str, must: Must, what: str, words: str, **more: Any) -> Specimen:
    return Specimen(kind=kind, family="bytes", what=what, must=must, words=words, **more)


BYTES = (
    _bytes(
        "gptq-as-none",
        "refuse",
        "GPTQ weights under a manifest that states no quantization",
        "gptq",
        recipe=recipes.gptq,
    ),
    _bytes(
        "missing-tensor",
        "refuse",
        "a tensor that the checkpoint lacks",
        "model.layers.15.self_attn.k_proj.weight",
        recipe=recipes.without_tensor,
    ),
    _bytes(
        "two-sets-of-weights",
        "refuse",
        "another model.safetensors beside two shards and their index",
        "model.safetensors",
        recipe=recipes.two_sets,
    ),
    _bytes(
        "side-file",
        "refuse",
        "a file that engines read, added after the pin",
        "hf_quant_config.json",
        recipe=recipes.copied,
        tampers=(("", recipes.add_side_file),),
    ),
    _bytes(
        "swapped-during-the-run",
        "refuse",
        "other weights while the candidate's engine loads, put back afterwards",
        "model.safetensors",
        recipe=partial(recipes.noise, share=2.0),
        tampers=(
            ("baseline: starting the engine", recipes.swap_in),
            ("candidate: starting the engine", recipes.swap_back),
        ),
    ),
    _bytes(
        "quantization-unapplied",
        "refuse",
        "int8 is pinned and reported, bfloat16 is served",
        "NO EFFECT",
        changes={"quantization": {"method": "bitsandbytes", "bits": 8, "type": "int8"}},
        defect="unquantized 8",
    ),
    _bytes(
        "stop-without-effect",
        "pass",
        "a stop string that no reply reaches",
        "NO EFFECT",
        changes={"sampling": {"stop": ["<|never written|>"]}},
    ),
)

QUALITY_SPECIMENS = (*WEIGHTS, *TOKENIZER, *SAMPLING, *ENGINE, *HARMLESS, *BYTES)
SPECIMENS = (*QUALITY_SPECIMENS, *TIMING)
QUICK = ("bnb-nf4", "truncated-file", "dtype-fallback", "copied")
