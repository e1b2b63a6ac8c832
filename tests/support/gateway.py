"""A daemon with a gateway, and clients: httpx, and raw sockets for requests that httpx cannot send."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

from tests.support.daemon import HANDLERS, Daemon
from tests.support.servers import free_port
from workerd.config.model import StoreConfig
from workerd.store.engines import open_store

ODD_NAME = "mail/50% é?#%2F"
"""Of a handler; a segment of a path when it is percent-encoded."""
SOON = '[defaults]\nbackoff = { first = "50ms", factor = 1.0, jitter = 0.0 }\n'
WORK = "".join(
    f'[handlers.{name}]\ncall = "{HANDLERS}:{call}"\npool = "work"\n{more}\n'
    for name, call, more in (
        ("behave", "behave", f'ignore = ["{HANDLERS}.Ignored"]\nmax_attempts = 1\nmax_crashes = 1'),
        ("add", "add", ""),
        ("noop", "noop", ""),
        ("file", "wait_for_file", ""),
        ("limited", "noop", "max_waiting = 2"),
        ("cool", "noop", 'cooler = "1h"'),
        ("tick", "noop", 'cron = "0 0 1 1 *"'),
        (f'"{ODD_NAME}"', "noop", ""),
    )
)
FLOWS = """
[workflows.pair]
jobs = [{ name = "first", handler = "noop" }, { name = "second", handler = "noop", needs = ["first"] }]
[workflows.held]
jobs = [
  { name = "wait", handler = "file", vars = { path = "/nonexistent" } },
  { name = "after", handler = "noop", needs = ["wait"] },
]
"""
CONFIG = f"{SOON}[pools.work]\nworkers = 2\n{WORK}{FLOWS}"


class Api:
    """A daemon with a gateway, and an HTTP client of it."""

    def __init__(
        self, folder: Path, url: str, config: str = CONFIG, gateway: str = "", **headers: str
    ) -> None:
        self.port = free_port()
        self.address = f"127.0.0.1:{self.port}"
        self.daemon = Daemon(
            folder, url, config + (f'\n[gateway]\nlisten = "{self.address}"\n{gateway}' if gateway else ""),
            gateway=self.address, name="alpha",
        )  # fmt: skip
        self.http = httpx.Client(base_url=f"http://{self.address}", timeout=30, headers=headers)

    def __enter__(self) -> Api:
        if not self.daemon.url.startswith("sqlite"):
            store = open_store(StoreConfig(url=self.daemon.url))
            store.migrate()
            store.close()
        self.daemon.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.http.close()
        self.daemon.end()

    def get(self, path: str, **more: Any) -> httpx.Response:
        return self.http.get(path, **more)

    def post(self, path: str, document: object = None, **more: Any) -> httpx.Response:
        return self.http.post(path, json={} if document is None else document, **more)

    def enqueue(self, handler: str, vars: dict[str, Any] | None = None, **more: Any) -> str:
        """Enqueue a job; return its id."""
        answer = self.post("/jobs", {"handler": handler, "vars": vars or {}, **more})
        assert answer.status_code == 201, answer.text
        return str(answer.json()["id"])

    def ended(self, job: str, within: str = "30s") -> dict[str, Any]:
        """Wait until the job has ended; return its document."""
        document: dict[str, Any] = self.get(f"/jobs/{job}?wait={within}").json()
        assert document["complete"], document
        return document

    @contextlib.contextmanager
    def bare(self) -> Iterator[socket.socket]:
        """Open a raw connection to the gateway."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=30) as connection:
            yield connection


def until_closed(connection: socket.socket) -> bytes:
    """Receive until the other side closes; return everything received."""
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while chunk := connection.recv(65536):
            received += chunk
    return received


class EventStream:
    """Server-sent events of a dashboard view, read in a thread."""

    def __init__(self, api: Api, view: str, **headers: str) -> None:
        self.parts: dict[str, str] = {}
        self.ended = threading.Event()
        self.status = 0
        self._api = api
        self._view = view
        self._headers = headers
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        url = f"{str(self._api.http.base_url).rstrip('/')}/events"
        stream = httpx.stream("GET", url, params={"view": self._view}, headers=self._headers, timeout=60)
        with contextlib.suppress(httpx.HTTPError), stream as answer:
            self.status = answer.status_code
            for line in answer.iter_lines():
                if line.startswith("data: "):
                    self.parts |= json.loads(line[6:])
        self.ended.set()
