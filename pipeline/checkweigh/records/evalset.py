"""EvalSet: a card and its items, pinned by digest."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from checkweigh.records.base import Digest, Name, Record


class Message(Record):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


class Scorer(Record):
    """The scorer's name and version; another version is another measurement."""

    name: Literal["log_likelihood", "choice_probability", "reply_check", "kl_divergence"]
    version: int = Field(ge=1)


SCORER_OF = {"text": "log_likelihood", "choice": "choice_probability", "generation": "reply_check"}
Kind = Literal["text", "choice", "generation"]


class Baseline(Record):
    """The shipped baseline's own numbers, for the reader of the card."""

    manifest: str
    note: str
    metrics: dict[str, float]
    by_stratum: dict[str, float] = Field(default_factory=dict)


class Card(Record):
    """``card.yaml``: what a set is, where it comes from, and its digest."""

    schema_: Literal["checkweigh/evalset@1"] = Field(alias="schema")
    name: Name
    version: str = Field(pattern=r"^\d+\.\d+\.\d+$")
    kind: Kind
    licence: str = Field(min_length=1)
    description: str = Field(min_length=1)
    source: str = Field(min_length=1, description="items file (JSONL), relative to the card")
    digest: Digest
    scorer: Scorer
    items: int = Field(ge=1)
    clusters: int = Field(ge=1)
    strata: dict[str, Annotated[int, Field(ge=1)]]
    baseline: Baseline | None = None

    @model_validator(mode="after")
    def _scorer_fits(self) -> Card:
        if self.scorer.name != SCORER_OF[self.kind]:
            raise ValueError(f"a {self.kind} set is scored by {SCORER_OF[self.kind]}")
        return self


class Text(Record):
    """Running prose, scored token by token."""

    id: str = Field(min_length=1)
    cluster: str = Field(min_length=1)
    stratum: str = Field(min_length=1)
    text: str = Field(min_length=1)
    origin: str = ""


class Choice(Record):
    """A question whose candidate replies are scored by likelihood."""

    id: str = Field(min_length=1)
    cluster: str = Field(min_length=1)
    stratum: str = Field(min_length=1)
    messages: tuple[Message, ...] = Field(min_length=1)
    choices: tuple[Annotated[str, Field(min_length=1)], ...] = Field(min_length=2)
    answer: int = Field(ge=0)

    @model_validator(mode="after")
    def _answer_exists(self) -> Choice:
        if self.answer >= len(self.choices):
            raise ValueError("answer must be an index into choices")
        return self


class Check(Record):
    """How a reply is scored; kinds are those of ``scoring.replies``."""

    kind: str
    values: tuple[str, ...] = ()
    pattern: str = ""


class Generation(Record):
    """A question whose reply is generated and checked."""

    id: str = Field(min_length=1)
    cluster: str = Field(min_length=1)
    stratum: str = Field(min_length=1)
    messages: tuple[Message, ...] = Field(min_length=1)
    check: Check


Item = Text | Choice | Generation
ITEM_OF: dict[str, type[Text] | type[Choice] | type[Generation]] = {
    "text": Text,
    "choice": Choice,
    "generation": Generation,
}


class EvalSet(Record):
    """A loaded set: its card and all its items."""

    card: Card
    items: tuple[Item, ...]
