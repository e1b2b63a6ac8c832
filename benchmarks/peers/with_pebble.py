"""Pebble's ProcessPool: in memory only, nothing survives its process. It runs inside a process of its own.

A line of JSON asks for something, a line answers: a job's number, what became of it, how many have ended.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from typing import TYPE_CHECKING, Any

from benchmarks.peers.jobs import JOBS, LIMITED

if TYPE_CHECKING:
    from pebble import ProcessFuture, ProcessPool


LIBRARY = "pebble"
SETTINGS = {"durable": False, "results": "in memory"}
IN_MEMORY = True
_link: tuple[socket.socket, Any] | None = None


def command(workers: int) -> list[str]:
    """The line that starts the pool."""
    return [sys.executable, "-m", __name__, str(workers)]


def _ask(*words: object) -> Any:
    global _link
    if _link is None:
        sock = socket.create_connection(("127.0.0.1", int(os.environ["PEER_PORT"])), 10)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        _link = sock, sock.makefile("rb")
    _link[0].sendall(json.dumps(words).encode() + b"\n")
    return json.loads(_link[1].readline())


def send(name: str, **vars: object) -> Any:
    """Schedule one; a `noop` waits in its process for `go`."""
    return _ask("job", name, vars)


def go() -> None:
    """Begin: all that waited goes into the pool."""
    _ask("go")


def became(job: Any) -> str:
    """The recorded state of the job."""
    return str(_ask("became", job))


def stored() -> int:
    """How many have ended."""
    return int(_ask("stored"))


def forget() -> None:
    """Connect anew at the next word."""
    global _link
    if _link is not None:
        _link[1].close()
        _link[0].close()
    _link = None


class Served:
    """The pool, and what was asked of it."""

    def __init__(self, pool: ProcessPool) -> None:
        self._pool = pool
        self._futures: list[ProcessFuture | None] = []
        self._waiting: list[tuple[int, dict[str, Any]]] = []

    def answer(self, words: list[Any]) -> object:
        """To one line."""
        kind, *rest = words
        if kind == "job":
            return self._job(*rest)
        if kind == "became":
            return self._became(rest[0])
        if kind == "go":
            for number, vars in self._waiting:
                self._futures[number] = self._pool.schedule(JOBS["noop"], kwargs=vars)
            self._waiting.clear()
        return sum(1 for future in self._futures if future is not None and future.done())

    def _job(self, name: str, vars: dict[str, Any]) -> int:
        limit = 1 if name in LIMITED else None
        wait = name == "noop" and vars["n"] >= 0
        if wait:
            self._waiting.append((len(self._futures), vars))
        self._futures.append(None if wait else self._pool.schedule(JOBS[name], kwargs=vars, timeout=limit))
        return len(self._futures) - 1

    def _became(self, number: int) -> str:
        future = self._futures[number]
        if future is None or not future.done():
            return "pending"
        error = future.exception()
        return f"returned {future.result()!r}" if error is None else f"failed: {type(error).__name__}"


def serve(workers: int) -> None:
    """Until it is killed, one connection after the other."""
    from pebble import ProcessPool

    with ProcessPool(max_workers=workers) as pool:
        pool.schedule(len, args=[""]).result()
        listener = socket.create_server(("127.0.0.1", int(os.environ["PEER_PORT"])))
        served = Served(pool)
        while True:
            link = listener.accept()[0]
            link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for line in link.makefile("rb"):
                link.sendall(json.dumps(served.answer(json.loads(line))).encode() + b"\n")


if __name__ == "__main__":
    serve(int(sys.argv[1]))
