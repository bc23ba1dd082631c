"""The embedding scorer with its real model, from the wheel that it pins."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tests.conftest import missing

from checkweigh import canonical
from checkweigh.errors import SourceError
from checkweigh.records.evalset import Generation
from checkweigh.scorers.embedding import LONGEST, EmbeddingSimilarity
from checkweigh.scorers.score_items import item_scorer
from checkweigh.sources.evalsets.load_evalset import load_evalset

CARD = """\
schema: checkweigh/evalset@1
name: meaning
version: 1.0.0
kind: generation
licence: CC0-1.0
description: a test
source: items.jsonl
digest: {digest}
columns: {{prompt: q, references: a}}
scorer: {{name: embedding_similarity, version: 1}}
"""


@pytest.fixture(scope="module")
def score() -> EmbeddingSimilarity:
    try:
        return EmbeddingSimilarity()
    except SourceError as error:
        missing(f"the model of the embedding scorer ({error})")
        raise


def item(*references: str) -> Generation:
    return Generation.model_validate(
        {
            "id": "x", "cluster": "x", "stratum": "all", "references": references,
            "messages": [{"role": "user", "content": "?"}],
        },
        strict=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("reply", "published"),
    [
        ("That is a happy dog", 0.6945774),
        ("That is a very happy person", 0.9429150),
        ("Today is a sunny day", 0.2568760),
    ],
)
def test_the_numbers_its_publishers_give(score: EmbeddingSimilarity, reply: str, published: float) -> None:
    """The example of the model's page, computed there with sentence-transformers."""
    assert score(item("That is a happy person"), reply) == pytest.approx(published, abs=1e-5)


def test_of_several_references_the_best(score: EmbeddingSimilarity) -> None:
    assert score(item("Today is a sunny day", "That is a happy dog"), "That is a happy dog") == pytest.approx(
        1.0
    )
    assert score(item("anything"), " \n ") == 0.0


def test_what_stands_behind_its_limit_is_not_seen(score: EmbeddingSimilarity) -> None:
    long = "word " * (LONGEST + 50)
    assert score(item(long), long + "and then something else") == pytest.approx(1.0)


def test_it_stays_in_range_and_leaves_the_threads_alone(score: EmbeddingSimilarity) -> None:
    before = torch.get_num_threads()
    values = [
        score(item(text), other)
        for text in ("no", "½ \u202e\x00", "[MASK]")
        for other in ("yes", "🙂" * 500, "#")
    ]
    assert all(0.0 <= value <= 1.0 for value in values)
    assert torch.get_num_threads() == before


def test_a_card_may_name_it(score: EmbeddingSimilarity, tmp_path: Path) -> None:
    rows = "".join(
        json.dumps({"q": f"say {i}", "a": "That is a happy person"}) + "\n" for i in range(3)
    ).encode()
    folder = tmp_path / "meaning"
    folder.mkdir()
    (folder / "items.jsonl").write_bytes(rows)
    (folder / "card.yaml").write_text(CARD.format(digest=canonical.digest_bytes(rows)))
    evalset = load_evalset(folder)
    found = item_scorer(evalset)
    (first, *_) = evalset.items
    assert isinstance(first, Generation)
    assert found(first, "That is a very happy person") == pytest.approx(0.9429150, abs=1e-5)
