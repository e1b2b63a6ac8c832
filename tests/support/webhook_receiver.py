"""A receiver of webhooks on loopback, which checks signatures and answers what the test wants."""

from __future__ import annotations

import hashlib
import hmac
import json
import threading
from collections import deque
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

SECRET = b"a secret of tests"


class WebhookReceiver:
    """`deliveries`: headers and body of each request. `answers`: statuses of the next answers, else 204."""

    def __init__(self) -> None:
        self.deliveries: list[tuple[dict[str, str], dict[str, Any]]] = []
        self.answers: deque[int] = deque()
        self.hang = threading.Event()
        self.hang.set()
        receiver = self

        class RequestHandler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.hang.wait(60)
                at, signed = (part.partition("=")[2] for part in self.headers["Workerd-Signature"].split(","))
                wanted = hmac.new(SECRET, at.encode() + b"." + body, hashlib.sha256).hexdigest()
                assert hmac.compare_digest(wanted, signed)
                receiver.deliveries.append((dict(self.headers), json.loads(body)))
                self.send_response(receiver.answers.popleft() if receiver.answers else 204)
                self.send_header("Location", f"{receiver.url}/moved")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                """Nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), RequestHandler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/hook?a=1"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def events(self) -> list[str]:
        """The events that were delivered."""
        return [body["event"] for _, body in self.deliveries]

    def close(self) -> None:
        """Stop listening."""
        self.hang.set()
        self._server.shutdown()
        self._server.server_close()
