"""The transformers engine inside its worker."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import jinja2
import numpy as np
import torch

from checkweigh.engines.backend import too_long
from checkweigh.engines.hf import (
    continuous_batching,
    draft_model,
    exact_kl,
    library_warnings,
    load_model,
    speculative,
)
from checkweigh.engines.hf import (
    generate as hf_generate,
)
from checkweigh.engines.hf import (
    score as hf_score,
)
from checkweigh.engines.hf import (
    windows as hf_window,
)
from checkweigh.engines.host_memory import kv_budget, process_memory, require_room
from checkweigh.engines.protocol import (
    Divergence,
    GenerateRequest,
    GenerateResult,
    ItemFailure,
    Messages,
    Resources,
    ScoreRequest,
    ScoreResult,
    States,
)
from checkweigh.engines.spec import EngineSpec
from checkweigh.errors import BadInput
from checkweigh.records.manifest import Sampling
from checkweigh.records.measurement import EngineIdentity

WARM_LENGTHS = (8, 24, 64)  # tokens of context in the warm-up


class TransformersBackend:
    """Loaded and warm when the constructor returns. On a CPU the worker has checked the memory before."""

    def __init__(self, spec: EngineSpec) -> None:
        self.spec = spec
        self.manifest = spec.manifest
        self.limit = spec.manifest.limits.max_sequence
        if self.manifest.engine.device == "cuda" and torch.cuda.is_available():
            require_room(self.manifest, spec.model_dir, int(torch.cuda.mem_get_info()[0]), spec.draft_dir)
        with library_warnings.judged(spec.manifest.name):
            self.loaded = load_model.load(spec)
            self.speculator = draft_model.load_draft(spec, self.loaded)
            self._warm_up()

    @property
    def identity(self) -> EngineIdentity:
        """What was found in the loaded model, and in the one that drafts."""
        found, drafts = self.loaded.identity, self.speculator
        if drafts is None or drafts.model is None:
            return found
        return found.model_copy(update={"effective": found.effective | {"draft": drafts.effective}})

    def _warm_up(self) -> None:
        """Score and generate at several lengths, so that the first timed call pays for nothing but itself."""
        rng = np.random.default_rng(0)
        sampling = self.manifest.sampling.model_copy(update={"stop": ()})
        for length in WARM_LENGTHS:
            prompts = [
                tuple(int(t) for t in rng.integers(0, self.identity.vocabulary_size, length)) for _ in "ab"
            ]
            tasks = [hf_score.ScoreTask(p, (p[:4], p[4:8])) for p in prompts] + [
                hf_score.ScoreTask(p[:1], (p,)) for p in prompts
            ]
            replies = [
                hf_generate.GrowingReply(id=str(i), prompt=p, room=3, exact=True)
                for i, p in enumerate(prompts)
            ]
            with torch.inference_mode():
                hf_score.score(self.loaded, tasks, self.manifest.engine.max_batch_tokens)
                self._complete(replies, sampling, time.monotonic())

    def render(self, conversations: Sequence[Messages]) -> list[tuple[int, ...]]:
        """Prompt ids through the tokenizer's own ``apply_chat_template`` with the pinned template."""
        return [self._render(messages) for messages in conversations]

    def _render(self, messages: Messages) -> tuple[int, ...]:
        turns = [{"role": m.role, "content": m.content} for m in messages]
        try:
            ids = self.loaded.tokenizer.apply_chat_template(
                turns,
                chat_template=self.spec.chat_template,
                add_generation_prompt=True,
                tokenize=True,
                return_dict=False,
            )
        except jinja2.exceptions.TemplateError as error:
            raise BadInput(f"the chat template refuses a conversation: {error}") from error
        return tuple(ids)

    def _encode(self, text: str) -> tuple[int, ...]:
        return tuple(self.loaded.tokenizer(text, add_special_tokens=False)["input_ids"])

    def score(self, batch: Sequence[ScoreRequest]) -> list[ScoreResult | ItemFailure]:
        """One batch, split where ``engine.max_batch_tokens`` demands it."""
        prepared = [self._task(request) for request in batch]
        tasks = [task for task in prepared if isinstance(task, hf_score.ScoreTask)]
        windows = [hf_window.cut_windows(task, self.limit, self.manifest.engine.stride) for task in tasks]
        with torch.inference_mode():
            parts = [window.task for cut in windows for window in cut]
            scores = iter(hf_score.score(self.loaded, parts, self.manifest.engine.max_batch_tokens))
        scored = iter(
            hf_window.join_windows(task, [(window, next(scores)) for window in cut])
            for task, cut in zip(tasks, windows, strict=True)
        )
        return [
            task
            if isinstance(task, ItemFailure)
            else ScoreResult(id=request.id, prompt_ids=task.prompt, continuations=tuple(next(scored)))
            for request, task in zip(batch, prepared, strict=True)
        ]

    def states(self, batch: Sequence[ScoreRequest], folder: Path) -> list[States | ItemFailure]:
        """Hidden states of one batch of raw texts, and the head, on disk."""
        prepared = [self._task(request) for request in batch]
        tasks = {r.id: t for r, t in zip(batch, prepared, strict=True) if isinstance(t, hf_score.ScoreTask)}
        with torch.inference_mode():
            hidden = self._hidden(list(tasks.values()))
            exact_kl.write_states(self.loaded, dict(zip(tasks, hidden, strict=True)), folder)
        return [
            task if isinstance(task, ItemFailure) else States(id=r.id, token_ids=task.continuations[0])
            for r, task in zip(batch, prepared, strict=True)
        ]

    def _hidden(self, tasks: Sequence[hf_score.ScoreTask]) -> list[load_model.Tensor]:
        """(T, hidden) of each raw text, from its windows where it is long."""
        windows = [hf_window.cut_windows(task, self.limit, self.manifest.engine.stride) for task in tasks]
        parts = [window.task for cut in windows for window in cut]
        states = iter(exact_kl.hidden_of(self.loaded, parts, self.manifest.engine.max_batch_tokens))
        return [torch.cat([next(states)[window.seen :] for window in cut]) for cut in windows]

    def divergence(
        self, batch: Sequence[ScoreRequest], their_states: Path, own_states: Path
    ) -> list[Divergence | ItemFailure]:
        """Each raw text's states, as another engine and as this one wrote them, through either's head."""
        prepared = [self._task(request) for request in batch]
        other = exact_kl.read_head(their_states, self.loaded.device)
        with torch.inference_mode():
            return [
                task
                if isinstance(task, ItemFailure)
                else exact_kl.compare(
                    self.loaded, other, their_states, own_states, r.id, task.continuations[0]
                )
                for r, task in zip(batch, prepared, strict=True)
            ]

    def _task(self, request: ScoreRequest) -> hf_score.ScoreTask | ItemFailure:
        prompt = (self.loaded.prefix_id,) if request.messages is None else self._render(request.messages)
        tokens = tuple(self._encode(c) for c in request.continuations)
        if not tokens or not all(tokens):
            return ItemFailure(id=request.id, reason="engine", detail="a continuation has no tokens")
        longest = len(prompt) + max(map(len, tokens))
        if request.messages is None and len(tokens) == 1 and self.manifest.engine.stride is not None:
            return hf_score.ScoreTask(prompt, tokens, request.top_k)  # of any length: in windows
        if failure := too_long(request.id, longest, self.limit, "prompt and longest continuation"):
            return failure
        return hf_score.ScoreTask(prompt, tokens, request.top_k)

    def generate(
        self, batch: Sequence[GenerateRequest], *, sent: float
    ) -> list[GenerateResult | ItemFailure]:
        """One batch, split where ``engine.max_batch`` or the cache's budget demands it."""
        prepared = [self._new_reply(request) for request in batch]
        replies = [reply for reply in prepared if isinstance(reply, hf_generate.GrowingReply)]
        with torch.inference_mode():
            for part in hf_generate.split_replies(
                replies, self.manifest.engine.max_batch, kv_budget(self.manifest)
            ):
                self._complete(part, self.manifest.sampling, sent)
        return [r if isinstance(r, ItemFailure) else self._result(r) for r in prepared]

    def _complete(self, replies: Sequence[hf_generate.GrowingReply], sampling: Sampling, sent: float) -> None:
        """Together, in pages or in a static batch, or one by one where tokens are drafted."""
        engine = self.manifest.engine
        if engine.continuous:
            pages = continuous_batching.pages_for(
                kv_budget(self.manifest), engine.max_batch, engine.max_batch_tokens
            )
            continuous_batching.generate(self.loaded, replies, sampling.stop, sent, pages)
        elif self.speculator is None:
            hf_generate.generate(self.loaded, replies, sampling, sent)
        else:
            speculative.generate(self.loaded, self.speculator, replies, sampling.stop, sent)

    def _new_reply(self, request: GenerateRequest) -> hf_generate.GrowingReply | ItemFailure:
        prompt = self._render(request.messages)
        exact = request.exact_tokens is not None
        room = self.manifest.sampling.max_tokens if request.exact_tokens is None else request.exact_tokens
        if failure := too_long(request.id, len(prompt) + room, self.limit, "prompt and new tokens"):
            return failure
        return hf_generate.GrowingReply(id=request.id, prompt=prompt, room=room, exact=exact)

    def _result(self, reply: hf_generate.GrowingReply) -> GenerateResult | ItemFailure:
        if reply.finish is None or reply.finish == "non_finite":
            detail = f"the logits after {len(reply.tokens)} tokens are not finite"
            return ItemFailure(id=reply.id, reason="non_finite", detail=detail)
        return GenerateResult(
            id=reply.id,
            prompt_ids=reply.prompt,
            token_ids=tuple(reply.tokens),
            text=hf_generate.text_of(self.loaded, reply, self.manifest.sampling.stop),
            finish=reply.finish,
            times=tuple(reply.times),
            speculated=reply.speculated,
        )

    def resources(self, *, reset_peak: bool) -> Resources:
        """Memory of this process; on a CUDA device the device's memory that torch holds is added."""
        host = process_memory(reset_peak=reset_peak)
        if self.loaded.device.type != "cuda":
            return host
        now, peak = int(torch.cuda.memory_allocated()), int(torch.cuda.max_memory_allocated())
        if reset_peak:
            torch.cuda.reset_peak_memory_stats()
        return Resources(resident=host.resident + now, peak=host.peak + peak, swapped=host.swapped)
