"""Modules of ``evaluate`` as scorers: the user's own file, loaded by the real library, and all that it may do wrong."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.builders import evalset

from checkweigh import canonical
from checkweigh.errors import BadDocument, BadInput, PinMismatch, ScorerError, SourceError
from checkweigh.records.evalset import EvalSet, EvaluateScorer, Generation
from checkweigh.scorers.score_items import item_scorer

pytest.importorskip("evaluate")
pytestmark = pytest.mark.usefixtures("checkweigh_home", "no_network")
MODULE = """
import datasets
import evaluate


class Mine(evaluate.Metric):
    def _info(self):
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description="made for a test", citation="", inputs_description="",
            features=datasets.Features({{"predictions": text, "references": {references}}}),
        )

    def _compute(self, predictions, references):
        said, wanted = predictions[0], references[0]
        {body}
"""
SEVERAL = "datasets.Sequence(text)"
OVERLAP = 'return {"overlap": 100 * float(said in wanted), "other": 1.0}'
Write = Callable[..., EvalSet]


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever looks up a name or connects fails the test."""

    def refuse(*args: object, **more: object) -> Any:
        raise AssertionError(f"network: {args}")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """``write(body, references=..., **scorer)`` -> a set of references whose card names a module with that body."""

    def build(body: str = OVERLAP, references: str = SEVERAL, **changes: Any) -> EvalSet:
        text = body if "class " in body else MODULE.format(body=body, references=references)
        (tmp_path / "mine.py").write_text(text)
        wanted = {
            "name": "evaluate", "version": 1, "module": "./mine.py", "key": "overlap", "scale": (0.0, 100.0),
            "digest": canonical.digest_bytes(text.encode()),
        } | changes  # fmt: skip
        scorer = EvaluateScorer.model_validate({k: v for k, v in wanted.items() if v is not None})
        made = evalset("generation", 2)
        items = tuple(
            Generation(
                id=i.id, cluster=i.cluster, stratum=i.stratum, messages=i.messages, references=("a", "b")
            )
            for i in made.items
            if isinstance(i, Generation)
        )
        card = made.card.model_copy(update={"scorer": scorer})
        return EvalSet(card=card, items=items, folder=str(tmp_path))

    return build


def scores(made: EvalSet, *replies: str) -> list[float]:
    score, item = item_scorer(made), made.items[0]
    assert isinstance(item, Generation)
    return [score(item, reply) for reply in replies]


def test_a_file_of_ones_own_scores_on_its_scale(write: Write) -> None:
    assert scores(write(), "a", "b", "c", "") == [1.0, 1.0, 0.0, 0.0]
    assert scores(write(scale=None, key="other"), "c") == [1.0]
    assert scores(write('return {"overlap": 2.0}', scale=(4.0, 0.0)), "c") == [0.5]  # lower is better


def test_one_reference_at_a_time_gives_the_best(write: Write) -> None:
    made = write('return {"overlap": 50.0 * (said == wanted) + 25.0}', references="text")
    assert scores(made, "b", "c") == [0.75, 0.25]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ('raise RuntimeError("no dictionary")', "RuntimeError: no dictionary"),
        ("raise SystemExit(0)", "SystemExit: 0"),
        ("import sys; sys.exit(0)", "SystemExit: 0"),
        ("return None", "gave no 'overlap', but NoneType"),
        ('return {"score": 1.0}', "gave no 'overlap', but score"),
        ('return {"overlap": float("nan")}', "overlap = nan, which is no finite number"),
        ('return {"overlap": float("inf")}', "overlap = inf, which is no finite number"),
        ('return {"overlap": "100"}', "overlap = '100', which is no finite number"),
        ('return {"overlap": [100.0]}', "overlap = [100.0], which is no finite number"),
        ('return {"overlap": None}', "overlap = None, which is no finite number"),
        ('return {"overlap": True}', "overlap = True, which is no finite number"),
        ('return {"overlap": 101.0}', "overlap = 101.0, which is not from 0 to 100"),
        ('return {"overlap": -1}', "overlap = -1, which is not from 0 to 100"),
    ],
)
def test_a_module_that_breaks_is_the_measurements_fault(write: Write, body: str, said: str) -> None:
    with pytest.raises(ScorerError) as caught:
        scores(write(body), "a")
    assert said in str(caught.value)
    assert "set set, item i0: " in str(caught.value)
    assert not isinstance(caught.value, BadInput)


def test_a_module_that_moved_is_refused_with_both_digests(write: Write, tmp_path: Path) -> None:
    made = write()
    (tmp_path / "mine.py").write_text("class Other: pass")
    moved = canonical.digest_bytes(b"class Other: pass")
    with pytest.raises(PinMismatch, match=r"scorer.digest: expected sha256:\w+, found " + moved):
        item_scorer(made)


@pytest.mark.parametrize(
    ("body", "error", "said"),
    [
        ("import nothing_like_it\nclass A: pass", SourceError, "cannot be loaded as a module of evaluate"),
        ("class A: pass", SourceError, "cannot be loaded"),
        ("raise SystemExit(0)\nclass A: pass", SourceError, "SystemExit"),
        ("from .helper import x\nclass A: pass", SourceError, "cannot be loaded"),  # not in the digest
    ],
)
def test_a_file_that_is_no_module_is_bad_input(
    write: Write, tmp_path: Path, body: str, error: type[BadInput], said: str
) -> None:
    (tmp_path / "helper.py").write_text("x = 1")
    with pytest.raises(error, match=said):
        item_scorer(write(body))


def test_a_module_elsewhere_or_not_there_is_bad_input(write: Write, tmp_path: Path) -> None:
    with pytest.raises(BadDocument, match="no such file"):
        item_scorer(write(module="./gone.py"))
    with pytest.raises(BadDocument, match="a file below the card"):
        item_scorer(write(module="./../mine.py"))


def test_a_hub_module_that_cannot_be_had_is_bad_input(write: Write) -> None:
    made = write(module="owner/metric", digest=None, revision="0" * 40)
    with pytest.raises(SourceError, match="owner/metric: cannot be loaded"):
        item_scorer(made)


def test_another_version_of_a_scorer_is_not_ours(write: Write) -> None:
    with pytest.raises(BadInput, match=r"evalset set: scorer\.version: expected 1 for evaluate, found 2"):
        item_scorer(write(version=2))
