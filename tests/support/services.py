"""Little HTTP services on loopback, each with users that can be looked up and deleted."""

from __future__ import annotations

import json
import threading
from collections import deque
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class UserService:
    """One service. `calls` are those it got; `answers` are the statuses of the next ones, else 200.

    With `for_good` every call is answered by that status.
    """

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.answers: deque[int] = deque()
        self.for_good: int | None = None
        service = self

        class Answer(BaseHTTPRequestHandler):
            def _answer(self) -> None:
                service.calls.append(f"{self.command} {self.path}")
                body = json.dumps({"email": "ada@example.org"}).encode()
                self.send_response(service.next_status())
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_DELETE = _answer  # noqa: N815 - the names that http.server calls

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def next_status(self) -> int:
        """The status of the next answer."""
        return self.for_good or (self.answers.popleft() if self.answers else 200)

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
