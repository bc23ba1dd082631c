"""One comment on a pull request, updated in place.

The token is sent to the API's own address alone: redirects are not followed. No error holds it.
"""

from __future__ import annotations

import json
import os
import re
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from typing import Any

from checkweigh.errors import BadInput, Broken
from checkweigh.report.safe import one_line
from checkweigh.sinks.no_redirects import open_directly

API = "https://api.github.com"
SECONDS = 20
TRIES = 3
PAGES = 50  # of a hundred comments
MOST = 8_000_000  # bytes of an answer


class GithubError(Broken):
    """GitHub refused, or did not answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Github:
    """A repository on GitHub, and a token that may comment there."""

    repository: str
    token: str = field(repr=False)
    api: str = API
    pause_s: float = 2.0

    @classmethod
    def from_environment(cls) -> Github:
        """GITHUB_REPOSITORY, GITHUB_TOKEN and GITHUB_API_URL. BadInput lists what is missing or wrong."""
        repository, token = (os.environ.get(f"GITHUB_{name}", "") for name in ("REPOSITORY", "TOKEN"))
        api = os.environ.get("GITHUB_API_URL") or API
        wrong = []
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
            wrong.append(f"GITHUB_REPOSITORY: expected OWNER/NAME, found '{one_line(repository)}'")
        if not token.strip():
            wrong.append("GITHUB_TOKEN: expected a token that may write comments, found none")
        if not re.fullmatch(r"https?://[\w.:/-]+", api):
            wrong.append("GITHUB_API_URL: expected an address such as https://api.github.com")
        if wrong:
            raise BadInput("\n".join(wrong))
        return cls(repository=repository, token=token.strip(), api=api.rstrip("/"))

    def put_comment(self, number: int, marker: str, body: str, *, create: bool = True) -> str:
        """Update our comment that starts with ``marker``, or create it; its address. "" when there is none to update.

        Somebody else's comment is never ours, whatever it starts with: its author could change it afterwards.
        """
        login = self._login()
        for comment in self._comments(number):
            if comment["body"].startswith(marker) and _is_ours(comment["user"], login):
                path = f"/repos/{self.repository}/issues/comments/{int(comment['id'])}"
                return str(self._request("PATCH", path, {"body": body}).get("html_url", ""))
        if not create:
            return ""
        created = self._request("POST", f"/repos/{self.repository}/issues/{number}/comments", {"body": body})
        return str(created.get("html_url", ""))

    def _login(self) -> str | None:
        """Who we are; None for the token of a workflow, which may not ask."""
        try:
            return str(self._request("GET", "/user")["login"])
        except (GithubError, KeyError):
            return None

    def _comments(self, number: int) -> list[dict[str, Any]]:
        comments: list[dict[str, Any]] = []
        for page in range(1, PAGES + 1):
            path = f"/repos/{self.repository}/issues/{number}/comments?per_page=100&page={page}"
            batch = self._request("GET", path)
            if not isinstance(batch, list):
                raise GithubError("GitHub answered with something else than a list of comments")
            comments += [
                c for c in batch if isinstance(c.get("body"), str) and isinstance(c.get("user"), dict)
            ]
            if len(batch) < 100:
                break
        return comments

    def _request(self, method: str, path: str, body: object = None) -> Any:
        """One request. A server that is busy or not there is asked again; GithubError when that does not help."""
        for attempt in range(1, TRIES + 1):
            try:
                return self._request_once(method, path, body)
            except urllib.error.HTTPError as error:
                with error:
                    reason = f"{error.code} {one_line(str(error.reason), 100)}"
                if error.code < 500 and error.code != 429:
                    raise GithubError(f"GitHub refused {method} {path.partition('?')[0]}: {reason}") from None
            except (OSError, ValueError) as error:
                reason = one_line(f"{type(error).__name__}: {error}".replace(self.token, "***"), 200)
            if attempt < TRIES:
                time.sleep(self.pause_s * attempt)
        raise GithubError(f"GitHub did not take {method} {path.partition('?')[0]}: {reason}")

    def _request_once(self, method: str, path: str, body: object) -> Any:
        headers = {
            "Accept": "application/vnd.github+json",
            "Authorization": f"Bearer {self.token}",
            "User-Agent": "checkweigh",
            "X-GitHub-Api-Version": "2022-11-28",
        }
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.api}{path}", data, headers, method=method)
        with open_directly(request, SECONDS) as response:
            return json.loads(response.read(MOST))


def _is_ours(user: dict[str, Any], login: str | None) -> bool:
    return user.get("login") == login if login is not None else user.get("type") == "Bot"
