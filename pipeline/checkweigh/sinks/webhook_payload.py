"""What a webhook is told: a block, or a waiver that was used. JSON of our own making, without any reply of a model.

Every text in it is visible text on one line; whoever shows it as HTML, Markdown or a chat message escapes it there.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import unquote

from pydantic import Field

from checkweigh import canonical
from checkweigh.errors import BadInput
from checkweigh.records.base import Digest, Record
from checkweigh.records.decision import Decision, Verdict
from checkweigh.report.safe import one_line
from checkweigh.report.view import first_lines
from checkweigh.sinks.mlflow_target import Target, scrub
from checkweigh.sinks.outbox import Parcel
from checkweigh.sources.cache import cache_root

VARIABLE = "CHECKWEIGH_WEBHOOK"  # the environment's --notify
_REASONS = 20
_TEXT = 500


class WaiverNotice(Record):
    """Who let a candidate through that had not passed, why, and until when."""

    owner: str
    reason: str
    expires: str


class NoticeArm(Record):
    """One arm by name and digests."""

    name: str
    manifest: Digest
    pins: Digest


class Notice(Record):
    """The body of the request. ``id`` is the same however often it is sent."""

    schema_: Literal["checkweigh/notice@1"] = Field(default="checkweigh/notice@1", alias="schema")
    id: Digest
    event: Literal["block", "waiver"]
    verdict: Verdict
    exit_code: int = Field(description="of the gate, without any waiver")
    baseline: NoticeArm
    candidate: NoticeArm
    policy: Digest
    policy_name: str
    reasons: tuple[str, ...]
    decision: Digest
    decided: str
    waiver: WaiverNotice | None = None


class WaitingNotice(Parcel):
    """A notice in the outbox."""

    schema_: Literal["checkweigh/waiting-notice@1"] = Field(
        default="checkweigh/waiting-notice@1", alias="schema"
    )
    notice: Notice

    @property
    def address(self) -> str:
        """The notice's id."""
        return self.notice.id


@dataclass(frozen=True, slots=True)
class WebhookTarget(Target):
    """A webhook's address. All of its path may be a secret, as with chat services: only the host is shown."""

    @property
    def shown(self) -> str:
        """Scheme, host and port."""
        scheme, _, rest = self.uri.partition("://")
        return f"{scheme}://{re.split('[/?#]', rest)[0].rpartition('@')[2]}"

    def scrub(self, text: str) -> str:
        """As of any target; and without the path and its parts."""
        rest = self.uri.partition("://")[2]
        path = "/" + re.split("[/?#]", rest, maxsplit=1)[-1]
        parts = {path, *(part for part in re.split("[/?#&=]", path) if len(part) > 3)}
        for part in sorted(parts | {unquote(part) for part in parts}, key=len, reverse=True):
            text = text.replace(part, "***")
        return scrub(text, self.uri)


def webhook_target(uri: str | None) -> WebhookTarget | None:
    """The webhook at ``uri``; None without one. BadInput when it is no address."""
    if not uri:
        return None
    if not re.fullmatch(r"https?://[^\s/?#]+\S*", uri):
        raise BadInput("--notify: expected an address such as https://HOST/PATH, found something else")
    return WebhookTarget(uri)


def notices_root() -> Path:
    """Where notices wait that could not be sent."""
    return cache_root() / "notices"


def build_notice(decision: Decision, waiver: WaiverNotice | None = None) -> Notice:
    """The notice of a block; with a waiver, of its use."""
    event: Literal["block", "waiver"] = "block" if waiver is None else "waiver"
    digest = decision.record_digest()
    about = [event, digest, None if waiver is None else waiver.model_dump(mode="json")]
    return Notice(
        id=canonical.digest(about), event=event, verdict=decision.verdict, exit_code=int(decision.exit_code),
        baseline=_arm(decision, "baseline"), candidate=_arm(decision, "candidate"),
        policy=decision.policy, policy_name=one_line(decision.policy_name),
        reasons=tuple(one_line(line, _TEXT) for line in (*first_lines(decision), *decision.reasons)[:_REASONS]),
        decision=digest, decided=decision.provenance.ended,
        waiver=None if waiver is None else WaiverNotice(
            owner=one_line(waiver.owner), reason=one_line(waiver.reason, _TEXT), expires=one_line(waiver.expires)
        ),
    )  # fmt: skip


def _arm(decision: Decision, role: Literal["baseline", "candidate"]) -> NoticeArm:
    arm = getattr(decision, role)
    return NoticeArm(name=one_line(arm.name), manifest=arm.manifest, pins=arm.pins)
