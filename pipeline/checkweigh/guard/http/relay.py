"""An engine's answer on its way to the client: cut into whole events, its tokens counted, its end recognised. Pure."""

from __future__ import annotations

import json
from typing import Any

_DONE = b"data: [DONE]"


class TruncatedAnswer(Exception):
    """The engine's answer ended before it was whole, or is not an answer."""


class EventStream:
    """A stream of server-sent events, cut at event boundaries, so that an error can be put between two of them.

    ``rename``: (engine's name, served name) of the model, replaced in every event. The engine is always asked for the
    usage; the chunk that brings it is passed on only when the client asked for it too.
    """

    def __init__(self, *, usage: bool, rename: tuple[str, str] | None, keep: bool) -> None:
        self._usage = usage
        self._names = None if rename is None else tuple(f'"model":{{}}"{n}"'.encode() for n in rename)
        self._keep = keep
        self._rest = b""
        self._texts: list[str] = []
        self.done = False
        self.failed = False
        self.finish: str | None = None
        self.updates = 0
        self.counted: int | None = None

    def take(self, chunk: bytes) -> tuple[bytes, int]:
        """Take bytes of the engine; returns (whole events for the client, updates in them). Raises TruncatedAnswer."""
        data = self._rest + chunk
        cut = data.rfind(b"\n\n") + 2
        if cut == 1:
            self._rest = data
            return b"", 0
        whole, self._rest = data[:cut], data[cut:]
        updates = whole.count(b'"finish_reason"')
        self.updates += updates
        if b'"usage"' in whole or b'"error"' in whole or _DONE in whole or self._keep or b'_reason": "' in whole \
                or b'_reason":"' in whole:  # fmt: skip
            whole = b"".join(self._read_event(event) for event in whole.split(b"\n\n")[:-1])
        return self._renamed(whole), updates

    @property
    def tokens(self) -> int:
        """Tokens of the reply: what the engine counted, else one for each update."""
        return self.updates if self.counted is None else self.counted

    @property
    def text(self) -> str:
        """The reply's text, where it was to be kept; else empty."""
        return "".join(self._texts)

    def _read_event(self, event: bytes) -> bytes:
        """Read one event; returns it, or empty bytes when the client is not to see it."""
        if not event.startswith(b"data:"):
            return event + b"\n\n"
        if event.startswith(_DONE):
            self.done = True
            return event + b"\n\n"
        try:
            value = json.loads(event[5:])
            choices = value.get("choices")
        except (ValueError, AttributeError) as error:
            raise TruncatedAnswer("an event that is no JSON object") from error
        if value.get("error") is not None:
            self.failed = True
            raise TruncatedAnswer("the engine reports an error")
        if isinstance(usage := value.get("usage"), dict) and type(usage.get("completion_tokens")) is int:
            self.counted = usage["completion_tokens"]
            if not choices and not self._usage:
                return b""
        for choice in choices or ():
            self.finish = choice.get("finish_reason") or self.finish
            if self._keep:
                self._texts.append((choice.get("delta") or {}).get("content") or choice.get("text") or "")
        return event + b"\n\n"

    def _renamed(self, data: bytes) -> bytes:
        if self._names is None:
            return data
        for space in (b"", b" "):
            old, new = (name.replace(b"{}", space) for name in self._names)
            data = data.replace(old, new)
        return data


def parse_whole_answer(raw: bytes, rename: tuple[str, str] | None) -> tuple[bytes, int, str | None, str]:
    """An answer in one piece: (body for the client, tokens, finish reason, text). Raises Truncated."""
    try:
        value: dict[str, Any] = json.loads(raw)
        choice = value["choices"][0]
        tokens = value["usage"]["completion_tokens"]
        text = (choice.get("message") or {}).get("content") or choice.get("text") or ""
        if type(tokens) is not int or not isinstance(text, str):
            raise TypeError
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise TruncatedAnswer("an answer that is no completion") from error
    if rename is not None and value.get("model") == rename[0]:
        value["model"] = rename[1]
        raw = json.dumps(value).encode()
    return raw, tokens, choice.get("finish_reason"), text
