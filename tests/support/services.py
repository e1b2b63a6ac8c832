"""HTTP services on loopback with users to look up and delete."""

from __future__ import annotations

import json
import threading
from collections import deque
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class UserService:
    """One service. `calls`: requests received. `answers`: statuses of the next answers, else 200.

    `always`, if set, is the status of every answer.
    """

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.answers: deque[int] = deque()
        self.always: int | None = None
        service = self

        class RequestHandler(BaseHTTPRequestHandler):
            def _answer(self) -> None:
                service.calls.append(f"{self.command} {self.path}")
                body = json.dumps({"email": "ada@example.org"}).encode()
                self.send_response(service.next_status())
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_DELETE = _answer  # noqa: N815 - names required by http.server

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), RequestHandler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def next_status(self) -> int:
        """Return the status of the next answer."""
        return self.always or (self.answers.popleft() if self.answers else 200)

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
