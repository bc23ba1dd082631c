"""DSSE envelopes around in-toto statements, by securesystemslib."""

from __future__ import annotations

import base64
import binascii
import json
from dataclasses import dataclass
from typing import Any

from checkweigh import canonical
from checkweigh.attest.keys import PrivateKey
from checkweigh.errors import BadDocument, SigningError
from checkweigh.records.attestation import PAYLOAD, Statement
from checkweigh.records.base import Record
from checkweigh.records.yaml.document import load_json, parse_json

MAX_ENVELOPE_BYTES = 4_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """One reason not to accept something; ``code`` is for programs."""

    code: str
    text: str

    def __str__(self) -> str:
        return f"{self.code}: {self.text}"


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedEnvelope:
    """The statement in an envelope, as far as it could be read, and everything wrong with the envelope itself."""

    statement: Statement | None
    refusals: tuple[Refusal, ...]


def seal(statement: Statement, key: PrivateKey) -> bytes:
    """The statement in an envelope signed by ``key``, read back and verified before it is handed out.

    SigningError when that cannot be done.
    """
    from securesystemslib.dsse import Envelope

    try:
        payload = canonical.dumps(statement.model_dump(mode="json", by_alias=True)).encode()
        envelope = Envelope(payload, PAYLOAD, {})
        envelope.sign(key.signer)
        data = json.dumps(envelope.to_dict(), indent=1).encode() + b"\n"
        opened = unseal(data, key.signer.public_key)
    except Exception as error:  # whatever the library raises: an unsigned verdict is not a signed one
        raise SigningError(f"the verdict could not be signed ({type(error).__name__})") from None
    if opened.refusals or opened.statement != statement:
        raise SigningError("the verdict was signed, and its signature does not hold")
    return data


def unseal(data: bytes, key: Any) -> OpenedEnvelope:
    """Open an envelope.

    1. It must be a DSSE envelope of in-toto JSON.
    2. One signature must be by ``key``, and hold.
    3. The payload must be a Statement. It is read even when 2 failed, so that all that is wrong can be said at once.
    """
    from securesystemslib.dsse import Envelope
    from securesystemslib.exceptions import VerificationError

    wrong: list[Refusal] = []
    try:
        if len(data) > MAX_ENVELOPE_BYTES:
            raise ValueError
        envelope = Envelope.from_dict(_strict_object(data))
    except Exception:  # hostile bytes: whatever they make a parser raise, they are no envelope
        refusal = Refusal(code="envelope", text="expected a DSSE envelope, found something else")
        return OpenedEnvelope(statement=None, refusals=(refusal,))
    if envelope.payload_type != PAYLOAD:
        text = f"expected payload type {PAYLOAD}, found {str(envelope.payload_type)[:80]!r}"
        wrong.append(Refusal(code="payload-type", text=text))
    if not envelope.signatures:
        wrong.append(Refusal(code="unsigned", text="the envelope has no signature"))
    elif key.keyid not in envelope.signatures:
        by = ", ".join(sorted(str(keyid)[:12] for keyid in envelope.signatures))
        text = f"signed by another key ({by}), expected {key.keyid[:12]}"
        wrong.append(Refusal(code="key", text=text))
    else:
        try:
            envelope.verify([key], 1)
        except VerificationError:
            text = "the signature does not hold: the content or the signature was changed"
            wrong.append(Refusal(code="signature", text=text))
    statement = _read(Statement, envelope.payload, "statement", wrong)
    return OpenedEnvelope(statement=statement, refusals=tuple(wrong))


def _strict_object(data: bytes) -> dict[str, Any]:
    """The JSON object of an envelope: exactly its three keys, and base64 that decodes in one way only."""
    value = load_json(data, "envelope")
    if not isinstance(value, dict) or set(value) != {"payload", "payloadType", "signatures"}:
        raise ValueError
    if not isinstance(value["payloadType"], str) or not isinstance(value["signatures"], list):
        raise ValueError
    for text in (value["payload"], *(signature["sig"] for signature in value["signatures"])):
        try:
            base64.b64decode(text, validate=True)
        except binascii.Error as error:
            raise ValueError from error
    return value


def _read(model: type[Statement], data: bytes, what: str, wrong: list[Refusal]) -> Statement | None:
    try:
        return parse_json(model, data, what)
    except BadDocument as error:
        wrong += [Refusal(code=what, text=str(problem)) for problem in error.problems[:5]]
        return None


def read_unverified(data: bytes) -> bytes:
    """The payload of an envelope, to be shown and never to be trusted. Raises ValueError when there is none."""
    if len(data) > MAX_ENVELOPE_BYTES:
        raise ValueError("more than an envelope")
    return base64.b64decode(_strict_object(data)["payload"])


def read_part(model: type[Record], value: Any, what: str) -> Any:
    """A predicate as a record. BadDocument otherwise."""
    return parse_json(model, canonical.dumps(value).encode(), what)
