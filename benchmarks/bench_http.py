"""The gateway under load: enqueues at a steady rate beside long polls, and latency from POST to start.

    python benchmarks/bench_http.py [--mysql] [--rate 500] [--seconds 20] [--polls 50] [--json]

Starts its own node. The sender keeps its rate: a slow response delays no other request, so that the latencies
are those of real clients.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from tests.support.gateway import Api
from tests.support.servers import DatabaseServer, template

sys.path.insert(0, str(Path(__file__).parents[1]))


CONFIG = '[pools.work]\nworkers = 2\n[handlers.noop]\ncall = "tests.support.handlers:noop"\npool = "work"\n'
SENDERS = 32
LATENCY_ROUNDS = 300


class Connection:
    """One persistent connection, one request at a time."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def ask(self, method: str, path: str, document: object = None) -> tuple[int, Any]:
        """Status and document of the response."""
        if self._writer is None:
            self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        assert self._reader is not None
        body = b"" if document is None else json.dumps(document).encode()
        head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        self._writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        answer = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        length = int(answer.partition("content-length: ")[2].partition("\r")[0])
        return int(answer[9:12]), json.loads(await self._reader.readexactly(length))

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


class Load:
    """Enqueues jobs at a rate while long polls wait."""

    def __init__(self, port: int, rate: float, seconds: float, polls: int) -> None:
        self._port = port
        self._rate = rate
        self._count = int(rate * seconds)
        self._polls = polls
        self.latencies: list[float] = []
        self.errors: list[str] = []
        self.polled = 0

    async def run(self) -> None:
        queue: asyncio.Queue[float | None] = asyncio.Queue()
        ended = asyncio.Event()
        senders = [asyncio.create_task(self._send(queue)) for _ in range(SENDERS)]
        pollers = [asyncio.create_task(self._poll(ended)) for _ in range(self._polls)]
        start = time.perf_counter() + 0.2
        for number in range(self._count):
            due = start + number / self._rate
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            queue.put_nowait(due)
        for _ in senders:
            queue.put_nowait(None)
        await asyncio.gather(*senders)
        ended.set()
        await asyncio.gather(*pollers)

    async def _send(self, queue: asyncio.Queue[float | None]) -> None:
        connection = Connection(self._port)
        while (due := await queue.get()) is not None:
            try:
                status, document = await connection.ask("POST", "/jobs", {"handler": "noop"})
                self.latencies.append(time.perf_counter() - due)
                if status != 201:
                    self.errors.append(f"POST {status}: {document}")
            except (OSError, asyncio.IncompleteReadError, ValueError) as error:
                self.errors.append(f"POST: {error!r}")
                connection = Connection(self._port)
        connection.close()

    async def _poll(self, ended: asyncio.Event) -> None:
        connection = Connection(self._port)
        try:
            while not ended.is_set():
                _, job = await connection.ask("POST", "/jobs", {"handler": "noop", "delay": 0.5})
                status, document = await connection.ask("GET", f"/jobs/{job['id']}?wait=60s")
                self.polled += 1
                if status != 200 or not document["complete"]:
                    self.errors.append(f"poll {status}: {document}")
        except (OSError, asyncio.IncompleteReadError, ValueError) as error:
            self.errors.append(f"poll: {error!r}")
        connection.close()


async def starts(port: int, rounds: int) -> list[float]:
    """Seconds from before the POST to the start of its handler, one job after the other on an idle node."""
    connection = Connection(port)
    found = []
    for _ in range(rounds):
        before = time.time()
        _, job = await connection.ask("POST", "/jobs", {"handler": "noop"})
        _, done = await connection.ask("GET", f"/jobs/{job['id']}?wait=30s")
        started = datetime.fromisoformat(done["started_at"]).timestamp()
        found.append(started - before)
        await asyncio.sleep(0.02)
    connection.close()
    return found


def quantile(values: list[float], part: float) -> float:
    """In milliseconds."""
    return round(sorted(values)[min(len(values) - 1, int(part * len(values)))] * 1000, 2)


def measure(url: str, folder: Path, rate: float, seconds: float, polls: int) -> dict[str, Any]:
    """One node, one run of each."""
    with Api(folder / "node", url, CONFIG) as api:
        asyncio.run(starts(api.port, 20))
        started = asyncio.run(starts(api.port, LATENCY_ROUNDS))
        load = Load(api.port, rate, seconds, polls)
        asyncio.run(load.run())
        return {
            "start_p50_ms": quantile(started, 0.5),
            "start_p99_ms": quantile(started, 0.99),
            "enqueued": len(load.latencies),
            "polled": load.polled,
            "errors": len(load.errors),
            "first_errors": load.errors[:5],
            "enqueue_p50_ms": quantile(load.latencies, 0.5),
            "enqueue_p99_ms": quantile(load.latencies, 0.99),
            "fault": "Traceback" in api.daemon.logged(),
        }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--mysql", action="store_true", help="on a private MariaDB instead of SQLite")
    parser.add_argument("--rate", type=float, default=500)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--polls", type=int, default=50)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        if given.mysql:
            server = DatabaseServer().start()
            try:
                url = server.url(server.new_database())
                result = measure(url, Path(folder), given.rate, given.seconds, given.polls)
            finally:
                server.remove()
                template.remove()
        else:
            url = f"sqlite:///{folder}/store.db"
            result = measure(url, Path(folder), given.rate, given.seconds, given.polls)
    if given.json:
        print(json.dumps(result))
    else:
        for name, value in result.items():
            print(f"{name:16} {value}")
    return 1 if result["errors"] or result["fault"] else 0


if __name__ == "__main__":
    sys.exit(main())
