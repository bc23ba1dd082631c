"""What every record shares: frozen, strict, unknown keys refused, no NaN or infinity."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

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
