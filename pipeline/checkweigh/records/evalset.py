"""EvalSet: a card and its items, pinned by digest."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, SerializerFunctionWrapHandler, field_validator, model_serializer, model_validator

from checkweigh import canonical
from checkweigh.records.base import Digest, Name, Record
from checkweigh.records.columns import Columns, misfits


class Message(Record):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


StandardName = Literal[
    "exact_match", "normalised_match", "f1", "rouge_l", "chrf", "bleu", "regex", "json_schema", "numeric",
    "instructions",
]  # fmt: skip


class Scorer(Record):
    """The scorer's name and version; another version is another measurement."""

    name: (
        Literal[
            "log_likelihood",
            "choice_probability",
            "reply_check",
            "kl_divergence",
            "code_execution",
            "embedding_similarity",
        ]
        | StandardName
    )
    version: int = Field(ge=1)


class EvaluateScorer(Record):
    """A module of the library ``evaluate``, called for each item; all of this is part of the measurement's key."""

    name: Literal["evaluate"]
    version: int = Field(ge=1)
    module: str = Field(
        pattern=r"^(\./[\w./-]*[A-Za-z_]\w*\.py|[\w.-]+/[\w.-]+)$",
        description="./FILE.py below the card, or the hub's OWNER/NAME",
    )
    revision: str | None = Field(
        default=None, pattern=r"^[0-9a-f]{40}$", description="commit of a hub module"
    )
    digest: Digest | None = Field(default=None, description="of a local module's file")
    key: str = Field(min_length=1, description="name of the value in what the module computes")
    scale: tuple[float, float] | None = Field(
        default=None, description="values that mean 0 and 1; default: the value lies in [0, 1] as it is"
    )

    @property
    def local(self) -> bool:
        """Whether the module is a file below the card."""
        return self.module.startswith("./")

    @model_validator(mode="after")
    def _pinned(self) -> EvaluateScorer:
        if self.local != (self.digest is not None) or self.local == (self.revision is not None):
            raise ValueError(
                "a local module with the sha256 of its file as digest, or a hub module with its revision"
            )
        if self.scale is not None and self.scale[0] == self.scale[1]:
            raise ValueError("a scale of two different values")
        return self


AnyScorer = Annotated[Scorer | EvaluateScorer, Field(discriminator="name")]


REMOTE = (
    r"hf:[\w.-]+/[\w.-]+@[0-9a-f]{40}"
    r"|package:[A-Za-z0-9][A-Za-z0-9._-]*==[A-Za-z0-9.!+_-]+/[^\x00-\x1f\x7f]+"
)
SCORER_OF = {"text": "log_likelihood", "choice": "choice_probability", "generation": "reply_check"}
GENERATION_SCORERS = (
    "reply_check",
    *get_args(StandardName),
    "code_execution",
    "embedding_similarity",
    "evaluate",
)
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
    licence: str = Field(min_length=1, pattern=r"\S")
    description: str = Field(min_length=1)
    source: str = Field(
        min_length=1,
        description="a JSONL or Parquet file below the card, hf:OWNER/NAME@40-hex-commit, or "
        "package:DIST==VERSION/FILE-IN-WHEEL",
    )
    digest: Digest = Field(description="of the file's bytes; of hub data, of its rows after the mapping")
    wheel: Digest | None = Field(default=None, description="a package source's wheel")
    config: str | None = Field(default=None, min_length=1, description="a hub data set's configuration")
    split: str | None = Field(default=None, min_length=1, description="a hub data set's split")
    columns: Columns | None = Field(default=None, description="default: the file has our own fields")
    recipe: str | None = Field(
        default=None, min_length=1, description="a shipped mapping, instead of columns"
    )
    check: str | None = Field(
        default=None, min_length=1, description="kind of check that columns.references feed; default: phrase"
    )
    scorer: AnyScorer
    items: int | None = Field(default=None, ge=1, description="held against the items where stated")
    clusters: int | None = Field(default=None, ge=1)
    strata: dict[str, Annotated[int, Field(ge=1)]] | None = None
    baseline: Baseline | None = None

    @field_validator("source")
    @classmethod
    def _source_is_known(cls, value: str) -> str:
        if re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", value) and not re.fullmatch(REMOTE, value):
            raise ValueError(
                "a file below the card, hf:OWNER/NAME@40-hex-commit (no branch or tag: they move), "
                "or package:DIST==VERSION/FILE-IN-WHEEL"
            )
        return value

    @model_validator(mode="after")
    def _mapping_fits(self) -> Card:
        """What goes with each kind of source, and with each kind of set."""
        hub, package = self.source.startswith("hf:"), self.source.startswith("package:")
        if hub != (self.split is not None) or (self.config is not None and not hub):
            raise ValueError(
                "hf: data needs its split (and its config, if it has several); no other takes them"
            )
        if package != (self.wheel is not None):
            raise ValueError("package: data needs the sha256 of its wheel; no other source takes one")
        if self.columns is not None and self.recipe is not None:
            raise ValueError("columns or a recipe, not both")
        if hub and self.columns is None:
            raise ValueError("hf: data needs columns")
        if self.check is not None and (self.columns is None or self.columns.references is None):
            raise ValueError("check goes with columns.references")
        if self.columns is not None and (faults := list(misfits(self.kind, self.columns))):
            raise ValueError("; ".join(faults))
        return self

    @model_validator(mode="after")
    def _scorer_fits(self) -> Card:
        known = GENERATION_SCORERS if self.kind == "generation" else (SCORER_OF[self.kind],)
        if self.scorer.name not in known:
            raise ValueError(f"a {self.kind} set is scored by {' or '.join(known)}")
        if self.scorer.name != "reply_check":
            if self.check is not None:
                raise ValueError("check goes with the scorer reply_check")
            if self.columns is not None and self.columns.check is not None:
                raise ValueError(
                    f"columns.check goes with the scorer reply_check; {self.scorer.name} has references"
                )
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


class ReplyCheck(Record):
    """How a reply is scored; kinds are those of ``scoring.replies``."""

    kind: str
    values: tuple[str, ...] = ()
    pattern: str = ""


class Generation(Record):
    """A question whose reply is generated, and scored by its own check or against its references.

    The card's scorer says which of the two an item has.
    """

    id: str = Field(min_length=1)
    cluster: str = Field(min_length=1)
    stratum: str = Field(min_length=1)
    messages: tuple[Message, ...] = Field(min_length=1)
    check: ReplyCheck | None = None
    references: tuple[Annotated[str, Field(pattern=r"\S")], ...] = ()

    @model_validator(mode="after")
    def _one_of_both(self) -> Generation:
        if (self.check is None) == (not self.references):
            raise ValueError("a check or references, one of the two")
        return self

    @model_serializer(mode="wrap")
    def _as_written(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without the one of both that is not there: items with checks keep the digests they had."""
        absent = {"check": self.check is None, "references": not self.references}
        return {name: value for name, value in handler(self).items() if not absent.get(name)}


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
    folder: str | None = Field(default=None, description="where the card lies")

    def content_digest(self) -> str:
        """Of everything that is measured: kind, scorer and items in their order; not of names, files or wording."""
        scorer = self.card.scorer.model_dump(mode="json")
        items = [item.model_dump(mode="json") for item in self.items]
        return canonical.digest({"kind": self.card.kind, "scorer": scorer, "items": items})
