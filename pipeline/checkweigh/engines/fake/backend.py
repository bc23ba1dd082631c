"""A deterministic engine without a model: a first-class engine with knobs, for tests and demonstrations.

It renders and tokenizes like the real one, answers from hashes, and fails as its knobs tell it to (``fake.knobs``).

- A choice that stands in the last user message is preferred; where none does, a hash prefers one.
- A reply begins with the last word of the last user message, so a check for that phrase passes.
- ``wrong_share`` turns both into something else.

Two executions with the same knobs give the same outputs, times apart. Nothing here imports torch.
"""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Sequence
from hashlib import blake2b
from importlib.metadata import version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax

from checkweigh.engines.backend import states_file, too_long
from checkweigh.engines.effective import Rotary, neutral
from checkweigh.engines.fake.faults import lie_in_replies, lie_in_scores, misbehave
from checkweigh.engines.fake.knobs import FakeKnobs, read_knobs
from checkweigh.engines.host_memory import process_memory
from checkweigh.engines.protocol import (
    Continuation,
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
from checkweigh.records.measurement import EngineIdentity, WorstToken
from checkweigh.sources.model.render import Renderer

FILLER = (
    "and",
    "then",
    "the",
    "quiet",
    "river",
    "ran",
    "past",
    "an",
    "old",
    "stone",
    "mill",
    "where",
    "nobody",
    "had",
    "lived",
    "for",
    "many",
    "years",
)
PREFERRED, OTHER = 0.35, 1.0  # factors on the negative log-likelihood of a choice


def hashed(*parts: object) -> int:
    """64 bits from the parts."""
    return int.from_bytes(blake2b("\x1f".join(map(str, parts)).encode(), digest_size=8).digest(), "big")


class FakeBackend:
    """The backend of ``engine.kind: fake``; the module says what it answers."""

    def __init__(self, spec: EngineSpec) -> None:
        self.spec = spec
        self.knobs: FakeKnobs = read_knobs(spec.manifest.engine.options)
        self.text = Renderer(spec.tokenizer_dir, spec.chat_template)
        self.vocabulary_size, self.eos = _vocabulary(spec.tokenizer_dir)
        self.calls = 0
        self.company = 0  # which items run together
        self.ballast = bytearray(os.urandom(1 << 20) * self.knobs.ballast_mib)
        self.limit = spec.manifest.limits.max_sequence
        misbehave(self.knobs, self.calls)

    @property
    def identity(self) -> EngineIdentity:
        """What it claims to be."""
        engine, quantization = self.spec.manifest.engine, self.spec.manifest.quantization
        return EngineIdentity(
            kind="fake",
            version=self.knobs.claim_version or engine.version,
            dtype=engine.dtype,
            device=engine.device,
            quantization="none"
            if quantization.type is None
            else f"{quantization.method} {quantization.type}",
            threads=engine.threads,
            max_sequence=self.limit,
            vocabulary_size=self.vocabulary_size,
            eos=self.eos,
            packages={"numpy": np.__version__, "tokenizers": version("tokenizers")},
            effective=self._effective(),
        )

    def _effective(self) -> dict[str, str]:
        """A small configuration: one layer without a window, and rotary positions of a head of twelve dimensions."""
        scaling = 1.0 + os.getpid() % 99_991 * self.knobs.effective_drifts
        rotary = {"all": Rotary(inv_freq=[10.0**-i for i in range(6)], dim=12, scaling=scaling)}
        found = neutral(rotary=rotary, windows=[None], tied_head=False, eos=self.eos)
        found |= {"attention": "fake", "generation_defaults": "none"}
        found |= json.loads(self.knobs.effective or "{}")
        return found

    def render(self, conversations: Sequence[Messages]) -> list[tuple[int, ...]]:
        """Prompt ids; the last is doubled under ``wrong_template``."""
        return [self._render(messages) for messages in conversations]

    def score(self, batch: Sequence[ScoreRequest]) -> list[ScoreResult | ItemFailure]:
        """Pseudo log-probabilities of each request."""
        self._begin(batch)
        results = [self._error(r.id) or self._score(r) for r in batch]
        self._note("score", batch)
        return lie_in_scores(results, self.knobs.lie) if self.calls == self.knobs.lie_at else results

    def generate(
        self, batch: Sequence[GenerateRequest], *, sent: float
    ) -> list[GenerateResult | ItemFailure]:
        """Replies of the batch, which advances in lockstep: every step costs ``token_latency_s`` once."""
        self._begin()
        first = time.monotonic() - sent
        step = self.knobs.token_latency_s
        results = [self._error(r.id) or self._reply(r, first, step) for r in batch]
        longest = max((len(r.token_ids) for r in results if isinstance(r, GenerateResult)), default=0)
        time.sleep(step * longest)
        self._note("generate", batch)
        return lie_in_replies(results, self.knobs.lie) if self.calls == self.knobs.lie_at else results

    def resources(self, *, reset_peak: bool) -> Resources:
        """Memory of this process."""
        return process_memory(reset_peak=reset_peak)

    def _begin(self, batch: Sequence[ScoreRequest] = ()) -> None:
        self.calls += 1
        self.company = hashed(self.spec.manifest.engine.threads, *(request.id for request in batch))
        if self.knobs.prints:
            print("a library speaks on stdout", flush=True)
            os.write(1, b"and another writes to descriptor 1\n")
        misbehave(self.knobs, self.calls)
        time.sleep(self.knobs.latency_s)

    def _note(self, call: str, batch: Sequence[ScoreRequest] | Sequence[GenerateRequest]) -> None:
        """One line in the diary before the answer leaves: what is kept of a call was noted, killed or not."""
        if self.knobs.diary:
            with open(self.knobs.diary, "ab", buffering=0) as diary:
                diary.write(" ".join([call, *(request.id for request in batch)]).encode() + b"\n")

    def _struck(self, share: float, what: str, item: str) -> bool:
        return share > 0 and hashed(self.knobs.seed, what, item) < share * 2.0**64

    def _error(self, item: str) -> ItemFailure | None:
        if not self._struck(self.knobs.error_share, "error", item):
            return None
        return ItemFailure(id=item, reason="engine", detail="the fake engine was told to fail here")

    def _render(self, messages: Messages) -> tuple[int, ...]:
        ids = self.text.render(messages)
        return (*ids, ids[-1]) if self.knobs.wrong_template else ids

    # scoring

    def _score(self, request: ScoreRequest) -> ScoreResult | ItemFailure:
        prompt = (self.text.prefix_id,) if request.messages is None else self._render(request.messages)
        tokens = [self.text.encode(c) for c in request.continuations]
        if not all(tokens):
            return ItemFailure(id=request.id, reason="engine", detail="a continuation has no tokens")
        longest = len(prompt) + max(len(t) for t in tokens)
        if failure := too_long(request.id, longest, self.limit, "prompt and longest continuation"):
            return failure
        best = self._preferred(request)
        scored = []
        for index, ids in enumerate(tokens):
            factor = 1.0 if len(tokens) == 1 else PREFERRED if index == best else OTHER
            scored.append(self._continuation(request, prompt, ids, factor))
        return ScoreResult(id=request.id, prompt_ids=prompt, continuations=tuple(scored))

    def _preferred(self, request: ScoreRequest) -> int:
        """Index of the continuation that is made likelier than the others."""
        count = len(request.continuations)
        asked = _last_user(request.messages)
        named = [i for i, c in enumerate(request.continuations) if c.strip() and c.strip() in asked]
        best = named[0] if named else hashed(self.knobs.seed, "choice", request.id) % count
        if self._struck(1 - self.knobs.right_share, "unknown", request.id):
            best = hashed(self.knobs.seed, "guess", request.id) % count
        return (best + 1) % count if self._struck(self.knobs.wrong_share, "wrong", request.id) else best

    def _continuation(
        self, request: ScoreRequest, prompt: tuple[int, ...], ids: tuple[int, ...], factor: float
    ) -> Continuation:
        knobs = self.knobs
        rng = np.random.default_rng(hashed(knobs.seed, prompt, ids))
        nll = rng.gamma(2.0, 1.3, len(ids)) * factor
        if knobs.constant_nats >= 0:
            nll = np.full(len(ids), knobs.constant_nats)
        shift = knobs.bias_nats
        if knobs.noise_nats:
            shift += (
                knobs.noise_nats
                * np.random.default_rng(hashed("noise", knobs.noise_seed, request.id)).normal()
            )
        if knobs.jitter:
            company = np.random.default_rng(hashed("jitter", self.company, request.id))
            shift += knobs.jitter * company.normal()
        logprobs = -np.maximum(nll + shift, 0).astype(np.float32)
        if self._struck(knobs.nan_share, "nan", request.id):
            logprobs[:] = np.nan
        if request.top_k == 0:
            return Continuation(token_ids=ids, logprobs=logprobs)
        top_ids, top = self._alternatives(ids, logprobs, request.top_k)
        return Continuation(token_ids=ids, logprobs=logprobs, top_ids=top_ids, top_logprobs=top)

    def _alternatives(
        self, ids: tuple[int, ...], logprobs: NDArray[np.float32], k: int
    ) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """(T, k) each: the token itself first, then its neighbours in the vocabulary, half as likely each."""
        steps = np.arange(k)
        top_ids = (np.asarray(ids)[:, None] + steps) % self.vocabulary_size
        return top_ids.astype(np.int32), (logprobs[:, None] - np.log(2.0) * steps).astype(np.float32)

    # divergence

    def states(self, batch: Sequence[ScoreRequest], folder: Path) -> list[States | ItemFailure]:
        """Pseudo logits of each text over a vocabulary of eight."""
        self._begin(batch)
        texts = [self._text(request) for request in batch]
        for text in texts:
            if isinstance(text, States):
                file = states_file(folder, text.id)
                np.save(unfinished := file.with_suffix(".npy"), self._logits(text))
                os.replace(unfinished, file)
        self._note("states", batch)
        return texts

    def divergence(
        self, batch: Sequence[ScoreRequest], their_states: Path, own_states: Path
    ) -> list[Divergence | ItemFailure]:
        """KL(other || this) of the pseudo logits."""
        self._begin()
        if self.knobs.dies_comparing:
            os.kill(os.getpid(), signal.SIGKILL)
        results: list[Divergence | ItemFailure] = []
        for text in map(self._text, batch):
            files = [states_file(folder, text.id) for folder in (their_states, own_states)]
            if isinstance(text, ItemFailure):
                results.append(text)
            elif not all(file.exists() for file in files):
                detail = "an engine gave no hidden states"
                results.append(ItemFailure(id=text.id, reason="engine", detail=detail))
            else:
                results.append(_divergence(text, *(np.load(file, allow_pickle=False) for file in files)))
        self._note("divergence", batch)
        return results

    def _text(self, request: ScoreRequest) -> States | ItemFailure:
        ids = self.text.encode(request.continuations[0])
        failure = too_long(request.id, 1 + len(ids), self.limit, "prompt and longest continuation")
        return self._error(request.id) or failure or States(id=request.id, token_ids=ids)

    def _logits(self, text: States) -> NDArray[np.float64]:
        """(T, 8)."""
        knobs, shape = self.knobs, (len(text.token_ids), 8)
        logits = 2 * np.random.default_rng(hashed(knobs.seed, "logits", text.token_ids)).normal(size=shape)
        if self._struck(knobs.nan_share, "nan", text.id):
            logits[0] = np.nan
        error = np.random.default_rng(hashed("divergence", knobs.noise_seed, text.id)).normal(size=shape)
        company = np.random.default_rng(hashed("jitter", self.company, text.id)).normal(size=shape)
        return logits + knobs.divergence * error + knobs.jitter * company

    # generation

    def _reply(self, request: GenerateRequest, first: float, step: float) -> GenerateResult | ItemFailure:
        prompt = self._render(request.messages)
        sampling = self.spec.manifest.sampling
        room = sampling.max_tokens if request.exact_tokens is None else request.exact_tokens
        if failure := too_long(request.id, len(prompt) + room, self.limit, "prompt and new tokens"):
            return failure
        words, endless = self._words(request, room)
        text, stopped = _cut(" ".join(words), sampling.stop if request.exact_tokens is None else ())
        ids = self.text.encode(text)[:room] if text else ()
        finish_length = (endless and not stopped) or len(ids) == room
        return GenerateResult(
            id=request.id,
            prompt_ids=prompt,
            token_ids=ids,
            text=self.text.decode(ids),
            finish="length" if finish_length else "stop",
            times=tuple(first + step * (i + 1) for i in range(len(ids))),
        )

    def _words(self, request: GenerateRequest, room: int) -> tuple[list[str], bool]:
        """The words of a reply (at least a token each), and whether it goes on until it has no more room."""
        knobs, item = self.knobs, request.id
        exact = request.exact_tokens is not None
        if not exact and self._struck(knobs.empty_share, "empty", item):
            return [], False
        asked = re.findall(r"\w+", _last_user(request.messages)) or ["nothing"]
        right = not self._struck(1 - knobs.right_share, "unknown", item)
        right = right and not self._struck(knobs.wrong_share, "wrong", item)
        start = hashed(knobs.seed, "words", item)
        lead = asked[-1] if right else FILLER[start % len(FILLER)]
        if self._struck(knobs.loop_share, "loop", item):
            return [lead] * room, True
        endless = exact or self._struck(knobs.truncate_share, "truncate", item)
        count = room if endless else round((4 + start % 9) * knobs.length_factor)
        rest = [FILLER[(start + i) % len(FILLER)] for i in range(count - 1)]
        return [lead, *rest], endless


def _divergence(
    text: States, their_states: NDArray[np.float64], own_states: NDArray[np.float64]
) -> Divergence:
    p, q = log_softmax(their_states, axis=1), log_softmax(own_states, axis=1)
    kl = np.maximum((np.exp(p) * (p - q)).sum(axis=1), 0).astype(np.float32)
    best = p.argmax(axis=1), q.argmax(axis=1)
    worst = int(np.argmax(kl))
    largest = float(np.nan_to_num(kl[worst], posinf=0))
    token = WorstToken(
        position=worst, kl=largest, before="...", token=str(text.token_ids[worst]),
        baseline=str(best[0][worst]), baseline_p=float(np.nan_to_num(np.exp(p[worst].max()))),
        candidate=str(best[1][worst]), candidate_p=float(np.nan_to_num(np.exp(q[worst].max()))),
    )  # fmt: skip
    agree = (best[0] == best[1]).astype(np.int32)
    return Divergence(
        id=text.id, token_ids=text.token_ids, kl=kl, agree=agree, worst=(token,) if largest > 0 else ()
    )


def _vocabulary(tokenizer_dir: Path) -> tuple[int, tuple[int, ...]]:
    """Number of token ids, and the end-of-sequence token's id if there is one."""
    tokenizer = json.loads((tokenizer_dir / "tokenizer.json").read_text(encoding="utf-8"))
    config = json.loads((tokenizer_dir / "tokenizer_config.json").read_text(encoding="utf-8"))
    ids = dict(tokenizer["model"]["vocab"]) | {t["content"]: t["id"] for t in tokenizer["added_tokens"]}
    eos = config.get("eos_token")
    name = eos["content"] if isinstance(eos, dict) else eos
    return max(ids.values()) + 1, (ids[name],) if name in ids else ()


def _last_user(messages: Messages | None) -> str:
    texts = [m.content for m in messages or () if m.role == "user"]
    return texts[-1] if texts else ""


def _cut(text: str, stops: Sequence[str]) -> tuple[str, bool]:
    """The text before the first stop string, and whether there was one."""
    positions = [at for at in (text.find(stop) for stop in stops) if at >= 0]
    return (text[: min(positions)], True) if positions else (text, False)
