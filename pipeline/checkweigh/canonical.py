"""Canonical JSON and the digests of records.

One text for one value: sorted keys, no blanks, UTF-8, no NaN or infinity (RFC 8785 in spirit; numbers
are Python's shortest round-trip representation). Digests are ``sha256:<64 hex>``.
"""

from __future__ import annotations

import hashlib
import json


def dumps(value: object) -> str:
    """Canonical JSON text of a JSON-like value; ValueError on NaN or infinity, TypeError on other types."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest_bytes(data: bytes) -> str:
    """``sha256:<hex>`` of bytes."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def digest(value: object) -> str:
    """``sha256:<hex>`` of a JSON-like value's canonical text."""
    return digest_bytes(dumps(value).encode())


def short(value: str) -> str:
    """The first twelve hex digits of a digest, for people."""
    return value.removeprefix("sha256:")[:12]
