"""A module of the library ``evaluate`` as a scorer: the user's own file, pinned by digest, or a hub module at a commit.

The library takes seconds to import; this happens when a card names it.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from numbers import Real
from pathlib import Path
from typing import Any

from checkweigh import canonical
from checkweigh.errors import BadDocument, PinMismatch, Problem, ScorerError, SourceError
from checkweigh.files import write_atomic
from checkweigh.records.evalset import EvaluateScorer
from checkweigh.sources.cache import cache_root
from checkweigh.sources.documents import read_bytes

MAX_BYTES = 1 << 20


class EvaluateModule:
    """A loaded module. BadDocument, PinMismatch or SourceError where it is not what the card says."""

    def __init__(self, wanted: EvaluateScorer, folder: Path | None) -> None:
        self.wanted = wanted
        self.module = _load(wanted, folder)
        self.takes_lists = _takes_lists(self.module.features)

    def score(self, reply: str, references: Sequence[str]) -> float:
        """The module's value for one reply, from 0 to 1 by the card's scale.

        Of several references the best value counts, where the module takes one at a time. Raises ScorerError for
        anything but a finite number in the card's range.
        """
        choices: list[Any] = [list(references)] if self.takes_lists else list(references)
        return max(self._value(reply, reference) for reference in choices)

    def _value(self, reply: str, reference: Any) -> float:
        key = self.wanted.key
        result = self.module.compute(predictions=[reply], references=[reference])
        if not isinstance(result, dict) or key not in result:
            keys = ", ".join(map(str, result)) if isinstance(result, dict) else type(result).__name__
            raise ScorerError(f"{self.wanted.module} gave no '{key}', but {keys}")
        value = result[key]
        if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
            raise ScorerError(f"{self.wanted.module} gave {key} = {value!r:.80}, which is no finite number")
        low, high = self.wanted.scale or (0.0, 1.0)
        score = (float(value) - low) / (high - low)
        if not 0.0 <= score <= 1.0:
            raise ScorerError(
                f"{self.wanted.module} gave {key} = {value!r}, which is not from {low:g} to {high:g}"
            )
        return score


def _takes_lists(features: Any) -> bool:
    """Whether the module takes several references for one prediction."""
    from datasets import LargeList, List

    layouts = features if isinstance(features, list) else [features]
    return any(isinstance(layout["references"], list | List | LargeList) for layout in layouts)


def _load(wanted: EvaluateScorer, folder: Path | None) -> Any:
    source = str(_pinned_copy(wanted, folder)) if wanted.local else wanted.module
    with _evaluate(offline=wanted.local) as evaluate:
        try:
            module = evaluate.load(
                source,
                revision=wanted.revision,
                keep_in_memory=True,
                cache_dir=str(cache_root() / "evaluate" / "data"),
            )
        except (
            Exception,
            SystemExit,
        ) as error:  # the hub's, the library's, and whatever the file itself raises
            why = (str(error).strip().splitlines() or [""])[0]
            message = (
                f"{wanted.module}: cannot be loaded as a module of evaluate ({type(error).__name__}: {why})"
            )
            raise SourceError(message) from error
    if "references" not in dict(module.features[0] if isinstance(module.features, list) else module.features):
        raise SourceError(f"{wanted.module}: takes no references")
    return module


def _pinned_copy(wanted: EvaluateScorer, folder: Path | None) -> Path:
    """The file alone, where no other file can join it: what runs is what the digest is of."""
    if folder is None:
        raise SourceError(f"{wanted.module}: the set was not loaded from a folder")
    card, path = folder / "card.yaml", folder / wanted.module
    if folder.resolve() not in path.resolve().parents:
        problem = Problem(
            file=str(card),
            line=None,
            path="scorer.module",
            expected="a file below the card",
            found=wanted.module,
        )
        raise BadDocument([problem])
    data = read_bytes(path, "the module that card.yaml names", MAX_BYTES)
    digest = canonical.digest_bytes(data)
    if digest != wanted.digest:
        problem = Problem(
            file=str(card),
            line=None,
            path="scorer.digest",
            expected=str(wanted.digest),
            found=f"{digest} of {path}",
        )
        raise PinMismatch([problem])
    home = cache_root() / "evaluate" / "modules" / canonical.short(digest) / path.stem
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    write_atomic(home / path.name, data)
    return home / path.name


@contextmanager
def _evaluate(offline: bool) -> Iterator[Any]:
    """The library, told not to look around in the network where a file is loaded."""
    try:
        import evaluate
    except ImportError as error:
        raise ScorerError(f"the scorer evaluate needs the extra 'scorers' ({error})") from error
    before = evaluate.config.HF_EVALUATE_OFFLINE
    evaluate.config.HF_EVALUATE_OFFLINE = before or offline
    try:
        yield evaluate
    finally:
        evaluate.config.HF_EVALUATE_OFFLINE = before
