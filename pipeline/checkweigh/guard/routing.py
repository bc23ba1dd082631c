"""Which arm serves a request: a sticky hash of the session, weights, copies, a kill switch. Pure."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

ArmName = Literal["baseline", "candidate"]


@dataclass(frozen=True, slots=True)
class Route:
    """Where a request goes."""

    assigned: ArmName  # by the hash: what an analysis groups by, whatever was switched off since
    served: ArmName
    shadow: bool = False  # a copy, whose answer nobody sees, goes to the candidate
    revivals: int = 0  # of the candidate, when the request was routed


class Router:
    """Sends ``candidate_share`` (0 to 1) of sessions to the candidate. A session stays there while the share does.

    Raises ValueError for a share that is none.
    """

    def __init__(self, *, candidate_share: float, shadow: bool, salt: str) -> None:
        if not 0 <= candidate_share <= 1:
            raise ValueError("a share from 0 to 1")
        self.share = candidate_share
        self.shadow = shadow
        self.killed = ""
        self.revivals = 0
        self._salt = salt.encode()

    def kill(self, why: str) -> None:
        """Give the candidate no session any more, until ``revive``."""
        self.killed = self.killed or why

    def revive(self) -> None:
        """Undo ``kill``; counted in ``revivals`` when it was killed."""
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
