"""HTTP requests that follow no redirect: one would carry a token, or a secret address, elsewhere."""

from __future__ import annotations

import urllib.request
from typing import Any


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


def open_directly(request: urllib.request.Request, timeout_s: float) -> Any:
    """The response, to be closed by the caller. HTTPError for any status but 2xx, OSError when nobody answers."""
    return urllib.request.build_opener(_NoRedirects).open(request, timeout=timeout_s)
