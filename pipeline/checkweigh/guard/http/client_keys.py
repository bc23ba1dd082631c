"""API keys of clients, compared in constant time, and the tier of each."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping

from checkweigh.errors import BadInput
from checkweigh.guard.guard_policy import PRIORITY_TIERS, PriorityTier, Surface
from checkweigh.guard.http.error_responses import ErrorResponse

ADMIN = "CHECKWEIGH_ADMIN_KEY"
_LEAST = 8  # characters of a key


class ClientKeys:
    """Keeps digests, never keys. Without any key everybody is let in, as ``standard``. BadInput: a key is short."""

    def __init__(self, surface: Surface, environment: Mapping[str, str]) -> None:
        self._known: list[tuple[bytes, PriorityTier]] = []
        self._lower = surface.tier_header
        problems = []
        for variable, tier in surface.keys.items():
            value = environment.get(variable, "")
            if len(value) < _LEAST:
                problems.append(
                    f"surface.keys.{variable}: the environment holds no key of at least {_LEAST} characters"
                )
            self._known.append((_digest(value.encode()), tier))
        if problems:
            raise BadInput("\n".join(problems))
        admin = environment.get(ADMIN, "")
        self._admin = _digest(admin.encode()) if len(admin) >= _LEAST else None

    @property
    def open(self) -> bool:
        """Whether anybody may ask."""
        return not self._known

    def tier(self, authorization: bytes, wanted: bytes | None) -> PriorityTier:
        """The tier of a request. Raises ErrorResponse 401 for another key, 400 for a tier that is none."""
        tier: PriorityTier = "standard"
        if self._known:
            given = _digest(_bearer(authorization))
            key_tier = None
            for digest, its_tier in self._known:  # all of them, so that the time tells nothing
                if hmac.compare_digest(digest, given):
                    key_tier = its_tier
            if key_tier is None:
                raise ErrorResponse(401, "The API key is missing or wrong.", code="invalid_api_key")
            tier = key_tier
        if wanted is None or not self._lower:
            return tier
        wanted_name = wanted.decode("latin-1")
        for name in PRIORITY_TIERS:
            if name == wanted_name:
                return max(tier, name, key=PRIORITY_TIERS.index) if self._known else name
        raise ErrorResponse(
            400, f"x-checkweigh-tier: expected one of {', '.join(PRIORITY_TIERS)}", code="invalid_tier"
        )

    def admin(self, authorization: bytes) -> bool:
        """Whether it is the operator's key."""
        return self._admin is not None and hmac.compare_digest(self._admin, _digest(_bearer(authorization)))


def _bearer(authorization: bytes) -> bytes:
    scheme, _, value = authorization.partition(b" ")
    return value.strip() if scheme.lower() == b"bearer" else b""


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
