"""A reverse proxy that serves a gateway below a path: it strips the path and names it in a header."""

from __future__ import annotations

import contextlib
import re
import socketserver
import threading
from types import TracebackType

import httpx


class PathProxy:
    """Listens on a port of its own; 404 outside of `prefix`."""

    def __init__(self, target: str, prefix: str) -> None:
        self.prefix = prefix
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.target, self._server.prefix = target, prefix
        self.address = f"127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    def __enter__(self) -> PathProxy:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False
    target = ""
    prefix = ""


class _Handler(socketserver.StreamRequestHandler):
    """One request a connection; the answer is streamed as it comes."""

    def handle(self) -> None:
        assert isinstance(self.server, _Server)
        method, path, _ = self.rfile.readline().decode().split(" ")
        headers = {}
        while line := self.rfile.readline().decode().strip():
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        body = self.rfile.read(int(headers.get("content-length", 0)))
        prefix = self.server.prefix
        if not path.startswith(f"{prefix}/"):
            self.wfile.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            return
        sent = {**headers, "x-forwarded-prefix": prefix, "connection": "close"}
        url = f"http://{self.server.target}{path.removeprefix(prefix)}"
        with httpx.stream(method, url, headers=sent, content=body, timeout=60) as answer:
            head = [f"HTTP/1.1 {answer.status_code} {answer.reason_phrase}", "Connection: close"]
            head += [
                f"{name}: {value}"
                for name, value in answer.headers.multi_items()
                if not re.fullmatch("connection|transfer-encoding|keep-alive", name)
            ]
            self.wfile.write("\r\n".join([*head, "", ""]).encode())
            with contextlib.suppress(ConnectionError):  # the browser has left the page
                for chunk in answer.iter_raw():
                    self.wfile.write(chunk)
