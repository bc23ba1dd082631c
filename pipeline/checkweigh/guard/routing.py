"""Which arm answers whom: a sticky hash of the session, weights, a shadow, a kill switch. Pure."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

ArmName = Literal["baseline", "candidate"]


@dataclass(frozen=True, slots=True)
class Route:
    """Where a request goes, and whether a copy goes to the candidate whose answer nobody sees."""

    assigned: ArmName  # by the hash: what an analysis groups by, whatever was switched off since
    served: ArmName
    shadow: bool = False
    revivals: int = 0  # of the candidate, when the request was routed


class Router:
    """``candidate_share`` of sessions to the candidate; a session stays where it is while the share does."""

    def __init__(self, *, candidate_share: float, shadow: bool, salt: str) -> None:
        if not 0 <= candidate_share <= 1:
            raise ValueError("a share from 0 to 1")
        self.share = candidate_share
        self.shadow = shadow
        self.killed = ""
        self.revivals = 0
        self._salt = salt.encode()

    def kill(self, why: str) -> None:
        """Weight 0 for the candidate, at once and until told otherwise."""
        self.killed = self.killed or why

    def revive(self) -> None:
        """Undo ``kill``."""
        if self.killed:
            self.revivals += 1
        self.killed = ""

    @property
    def weight(self) -> float:
        """Share of sessions the candidate really gets."""
        return 0.0 if self.killed else self.share

    def route(self, session: str, *, away: bool = False) -> Route:
        """The arm of a session. With a rising share, sessions only move from baseline to candidate.

        ``away``: the candidate's engine takes nobody just now, so that the baseline serves its sessions.
        """
        assigned: ArmName = "candidate" if self._place(session) < self.share else "baseline"
        if self.killed or (away and assigned == "candidate"):
            return Route(assigned, "baseline", revivals=self.revivals)
        return Route(assigned, assigned, self.shadow and assigned == "baseline", self.revivals)

    def _place(self, session: str) -> float:
        digest = hashlib.blake2b(session.encode("utf-8", "surrogatepass"), key=self._salt[:64], digest_size=8)
        return int.from_bytes(digest.digest(), "big") / 2**64
