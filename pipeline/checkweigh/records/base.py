"""What every record shares: frozen, strict, unknown keys refused, no NaN or infinity."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer

from checkweigh import canonical

SHA256 = r"^sha256:[0-9a-f]{64}$"
Digest = Annotated[str, Field(pattern=SHA256)]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$", max_length=100)]


class Record(BaseModel):
    """Base of all records."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        populate_by_name=True,
        serialize_by_alias=True,
    )

    def record_digest(self) -> str:
        """``sha256:<hex>`` of the record's canonical JSON."""
        return canonical.digest(self.model_dump(mode="json"))


class GrownRecord(Record):
    """A record that files of earlier versions hold without some of its fields.

    ``YOUNGER`` names those fields. One that was absent stays absent when the record is written again, so that the
    digest of an old file is what it was.
    """

    YOUNGER: ClassVar[frozenset[str]] = frozenset()

    @model_serializer(mode="wrap")
    def _as_read(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields: dict[str, Any] = handler(self)
        for name in self.YOUNGER - self.model_fields_set:
            fields.pop(name, None)
        return fields
