"""A stand-in for GitHub's REST interface: the comments of pull requests, on loopback."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import parse_qs, urlsplit

BOT = {"login": "github-actions[bot]", "type": "Bot"}
LIMIT = 65_536


class FakeGithub:
    """``comments`` by pull request; ``answers`` are statuses given before any real answer; ``seen`` are requests."""

    def __init__(self, token: str, user: dict[str, str] | None = None) -> None:
        self.token = token
        self.user = user  # None: the token of a workflow, which may not ask who it is
        self.me = user or BOT
        self.comments: dict[int, list[dict[str, Any]]] = {}
        self.answers: list[int] = []
        self.seen: list[str] = []
        self.url = ""

    def add(self, number: int, body: str, user: dict[str, str]) -> dict[str, Any]:
        """Somebody comments."""
        known = [c["id"] for some in self.comments.values() for c in some]
        comment = {"id": max(known, default=0) + 1, "body": body, "user": user}
        comment["html_url"] = f"{self.url}/pull/{number}#issuecomment-{comment['id']}"
        self.comments.setdefault(number, []).append(comment)
        return comment

    def answer(self, method: str, path: str, token: str, body: Any) -> tuple[int, Any]:
        """Status and JSON of one request."""
        self.seen.append(f"{method} {path}")
        if self.answers:
            return self.answers.pop(0), {"message": "not now"}
        if token != f"Bearer {self.token}":
            return 401, {"message": "Bad credentials"}
        parts = urlsplit(path)
        if (method, parts.path) == ("GET", "/user"):
            return (403, {"message": "Resource not accessible"}) if self.user is None else (200, self.user)
        if body is not None and len(body["body"]) > LIMIT:
            return 422, {"message": "Validation Failed"}
        if match := re.fullmatch(r"/repos/o/r/issues/comments/(\d+)", parts.path):
            return self._edit(int(match[1]), body)
        match = re.fullmatch(r"/repos/o/r/issues/(\d+)/comments", parts.path)
        if match is None:
            return 404, {"message": "Not Found"}
        if method == "POST":
            return 201, self.add(int(match[1]), body["body"], self.me)
        query = parse_qs(parts.query)
        size, page = int(query["per_page"][0]), int(query["page"][0])
        return 200, self.comments.get(int(match[1]), [])[size * (page - 1) : size * page]

    def _edit(self, number: int, body: Any) -> tuple[int, Any]:
        comment = next(c for some in self.comments.values() for c in some if c["id"] == number)
        if comment["user"] != self.me:
            return 403, {"message": "Forbidden"}
        comment["body"] = body["body"]
        return 200, comment


@contextmanager
def running(token: str, user: dict[str, str] | None = None) -> Iterator[FakeGithub]:
    """The server, while the block runs."""
    fake = FakeGithub(token, user)

    class Handler(BaseHTTPRequestHandler):
        def _serve(self) -> None:
            size = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(size)) if size else None
            status, value = fake.answer(self.command, self.path, self.headers.get("Authorization", ""), body)
            data = json.dumps(value).encode()
            self.send_response(status)
            if 300 <= status < 400:
                self.send_header("Location", f"{fake.url}/elsewhere")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_PATCH = _serve

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    fake.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield fake
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)
