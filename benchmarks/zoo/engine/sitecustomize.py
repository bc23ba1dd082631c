"""Defects of an engine, where real ones are: inside the engine's own process.

The zoo puts this folder first on the path of the candidate's worker, and names the defect and its dose in
``CHECKWEIGH_ZOO`` (``NAME DOSE``). Python imports this module before the worker begins. Nothing of the manifest, of the
files or of what the engine reports of itself changes: what is served is wrong, and only measurement can see it.
"""

from __future__ import annotations

import os
import time
from dataclasses import replace
from typing import Any

import numpy as np
import torch

# These names are part of each defect's code, whose digest says whether its result is still valid.
from checkweigh.engines.hf import backend as hf_backend
from checkweigh.engines.hf import generate as hf_generate
from checkweigh.engines.hf import load_model as hf_load
from checkweigh.engines.hf import score as hf_score

Call = Any
LOAD, PREFILL, STEP, CHOOSE, LAY_OUT = (
    hf_load.load, hf_generate._prefill, hf_generate._step, hf_generate.choose, hf_score._lay_out,
)  # fmt: skip


def loading(change: Call) -> None:
    """``change`` to what was loaded, after the engine has said what it is."""
    hf_load.load = lambda spec: change(LOAD(spec))


def rounded(loaded: Any, dtype: Any) -> Any:
    """Weights squeezed through a coarser dtype; they are still stored, and reported, as pinned."""
    for parameter in loaded.model.parameters():
        parameter.data = parameter.data.to(dtype).to(parameter.dtype)
    return loaded


def fp8(dose: float) -> None:
    """A silent fallback to 8-bit floats: 3 or 2 bits of mantissa."""
    dtype = torch.float8_e4m3fn if dose == 3 else torch.float8_e5m2
    loading(lambda loaded: rounded(loaded, dtype))


def window(dose: float) -> None:
    """Attention that sees the last ``dose`` tokens only."""
    size = int(dose)

    def narrowed(loaded: Any) -> Any:
        def base(**inputs: Any) -> Any:
            queries = inputs["input_ids"].shape[1]
            cache = inputs.get("past_key_values")
            known = (cache.get_seq_length() if cache is not None else 0) + queries
            rows = len(inputs["input_ids"])
            near = torch.arange(known)[None, :] > torch.arange(known - queries, known)[:, None] - size
            causal = torch.arange(known)[None, :] <= torch.arange(known - queries, known)[:, None]
            allowed = (near & causal).expand(rows, 1, queries, known)
            mask = inputs.get("attention_mask")
            if mask is not None and mask.dim() == 2:
                allowed = allowed & mask[:, None, None, :].bool()
            elif mask is not None:
                allowed = allowed & (mask == 0)
            allowed = (
                allowed | torch.eye(known, dtype=torch.bool)[known - queries :]
            )  # a row of padding sees itself
            lowest = torch.finfo(loaded.model.dtype).min
            inputs["attention_mask"] = torch.zeros(allowed.shape, dtype=loaded.model.dtype).masked_fill(
                ~allowed, lowest
            )
            return loaded.base(**inputs)

        return replace(loaded, base=base)

    loading(narrowed)


def padding(dose: float) -> None:
    """Numbers that depend on the batch: the padding on the left of a shorter prompt is attended to."""
    del dose

    hf_generate._prefill = lambda loaded, live: PREFILL(_seeing(loaded), live)
    hf_generate._step = lambda loaded, chosen, cache, mask: STEP(_seeing(loaded), chosen, cache, mask)


def _seeing(loaded: Any) -> Any:
    def base(**inputs: Any) -> Any:
        if "attention_mask" in inputs:  # a prefix by itself has none: nothing is padded there
            inputs["attention_mask"] = torch.ones_like(inputs["attention_mask"])
        return loaded.base(**inputs)

    return replace(loaded, base=base)


def bleed(dose: float) -> None:
    """One row in ``dose`` of a batch continues from its neighbour's cache, as after a wrong block table."""

    def prefill(loaded: Any, live: Any) -> Any:
        hidden, cache, mask = PREFILL(loaded, live)
        struck = torch.arange(len(live)) % int(dose) == int(dose) - 1
        rows = torch.where(struck, torch.arange(len(live)) - 1, torch.arange(len(live)))
        if bool(struck.any()):
            for layer in cache.layers:
                layer.keys, layer.values = layer.keys[rows], layer.values[rows]
        return hidden, cache, mask

    hf_generate._prefill = prefill


def shifted_logprobs(dose: float) -> None:
    """A token's log-probability read ``dose`` positions late, from a distribution that has seen it."""

    def late(rows: Any, shared: int, pad: int) -> Any:
        layout = LAY_OUT(rows, shared, pad)
        return replace(layout, predictor=np.minimum(layout.predictor + int(dose), layout.ids.size - 1))

    hf_score._lay_out = late


def penalty(dose: float) -> None:
    """A repetition penalty that nobody pinned (Keskar et al. 2019, as transformers applies it)."""

    def choose(logits: Any, sampling: Any, live: Any) -> Any:
        for row, reply in enumerate(live):
            seen = torch.tensor(sorted({*reply.prompt, *reply.tokens}))
            values = logits[row, seen]
            logits[row, seen] = torch.where(values > 0, values / dose, values * dose)
        return CHOOSE(logits, sampling, live)

    hf_generate.choose = choose


def sampled(dose: float) -> None:
    """A temperature that nobody pinned, as from the model's own generation defaults."""
    hf_generate.choose = lambda logits, sampling, live: CHOOSE(
        logits, sampling.model_copy(update={"temperature": dose}), live
    )


def deaf(dose: float) -> None:
    """Stop strings that are not passed on."""
    del dose
    hf_generate._stopped = lambda loaded, reply, stops: False
    text_of = hf_generate.text_of
    hf_generate.text_of = lambda loaded, reply, stops: text_of(loaded, reply, ())


def endless(dose: float) -> None:
    """Another id that ends a reply than the model's: replies run on to their limit."""
    loading(lambda loaded: replace(loaded, eos=(int(dose),)))


def unseeded(dose: float) -> None:
    """A seed that is ignored: every execution draws anew."""
    del dose
    hf_generate._draws = lambda seed, reply: np.random.default_rng()


def truncated(dose: float) -> None:
    """Prompts silently cut to their last (``dose`` > 0) or first tokens."""
    size = int(dose)
    render = hf_backend.TransformersBackend._render
    hf_backend.TransformersBackend._render = lambda self, messages: (
        render(self, messages)[-size:] if size > 0 else render(self, messages)[:-size]
    )


def lying_truncated(dose: float) -> None:
    """The same, while the ids reported are those of the whole prompt."""
    size = int(dose)

    def prefill(loaded: Any, live: Any) -> Any:
        whole = [reply.prompt for reply in live]
        for reply in live:
            reply.prompt = reply.prompt[-size:] if size > 0 else reply.prompt[:-size]
        try:
            return PREFILL(loaded, live)
        finally:
            for reply, prompt in zip(live, whole, strict=True):
                reply.prompt = prompt

    hf_generate._prefill = prefill


def lossy_speculation(dose: float) -> None:
    """Drafts accepted when they are within ``dose`` nats of the best token, not only when they are it."""

    def lax(loaded: Any) -> Any:
        def forwarded(module: Any, args: Any, inputs: Any, out: Any) -> None:
            ids = inputs["input_ids"][0]
            logits = out.logits[0]
            drafts = min(len(ids), len(logits)) - 1
            for at in range(drafts):
                place, token = len(logits) - 1 - drafts + at, int(ids[len(ids) - drafts + at])
                if float(logits[place].max() - logits[place, token]) <= dose:
                    logits[place, token] = logits[place].max() + 1

        loaded.model.register_forward_hook(forwarded, with_kwargs=True)
        return loaded

    loading(lax)


def fallback(dose: float) -> None:
    """Another dtype than asked for, honestly reported."""
    del dose
    hf_load.DTYPES["bfloat16"] = torch.float16


def slow(dose: float) -> None:
    """Every token after the first takes ``dose`` longer, as a share of all that it takes: head, choice and step."""
    since = 0.0

    def prefill(loaded: Any, live: Any) -> Any:
        nonlocal since
        found = PREFILL(loaded, live)
        since = time.perf_counter()
        return found

    def step(loaded: Any, chosen: Any, cache: Any, mask: Any) -> Any:
        nonlocal since
        found = STEP(loaded, chosen, cache, mask)
        time.sleep(dose * (time.perf_counter() - since))
        since = time.perf_counter()
        return found

    hf_generate._prefill, hf_generate._step = prefill, step


def slow_tail(dose: float) -> None:
    """One batch of replies in twenty takes ``dose`` times as long, from its first token to its last."""
    count, since = 0, 0.0

    def wait() -> None:
        nonlocal since
        if count % 20 == 0:
            time.sleep((dose - 1) * (time.perf_counter() - since))
        since = time.perf_counter()

    def prefill(loaded: Any, live: Any) -> Any:
        nonlocal count, since
        count, since = count + 1, time.perf_counter()
        found = PREFILL(loaded, live)
        wait()
        return found

    def step(loaded: Any, chosen: Any, cache: Any, mask: Any) -> Any:
        found = STEP(loaded, chosen, cache, mask)
        wait()
        return found

    hf_generate._prefill, hf_generate._step = prefill, step


def unquantized(dose: float) -> None:
    """The weights as they are, and what a quantized engine would say of itself."""

    def load(spec: Any) -> Any:
        wanted = spec.manifest.quantization
        plain = spec.manifest.model_copy(update={"quantization": type(wanted)()})
        loaded = LOAD(replace(spec, manifest=plain))
        said = f"{wanted.method} {wanted.type}: 210/211 linear layers"
        return replace(loaded, identity=loaded.identity.model_copy(update={"quantization": said}))

    hf_load.load = load


def leak(dose: float) -> None:
    """``dose`` MB more memory with every batch of replies."""
    kept: list[Any] = []

    def prefill(loaded: Any, live: Any) -> Any:
        kept.append(np.ones(int(dose * 1e6), np.uint8))
        return PREFILL(loaded, live)

    hf_generate._prefill = prefill


DEFECTS = {
    function.__name__: function
    for function in (
        fp8, window, padding, bleed, shifted_logprobs, penalty, sampled, deaf, endless, unseeded, truncated,
        lying_truncated, lossy_speculation, fallback, slow, slow_tail, leak, unquantized,
    )
}  # fmt: skip

if os.environ.get("CHECKWEIGH_ZOO"):
    name, amount = os.environ["CHECKWEIGH_ZOO"].split()
    DEFECTS[name](float(amount))
