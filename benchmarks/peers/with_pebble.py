"""Pebble's ProcessPool: in memory only, nothing survives its process. It runs inside a process of its own."""

from __future__ import annotations

import json
import os
import socket
import sys

from benchmarks.peers.jobs import JOBS

LIBRARY = "pebble"
SETTINGS = {"durable": False, "results": "in memory"}
_socket: socket.socket | None = None


def command(workers: int) -> list[str]:
    """The line that starts the pool; what is sent before is read when it listens."""
    return [sys.executable, "-m", __name__, str(workers)]


def send(name: str, **vars: object) -> None:
    """Put it in the pool's socket."""
    global _socket
    if _socket is None:
        _socket = socket.create_connection(("127.0.0.1", int(os.environ["PEER_PORT"])))
    _socket.sendall(json.dumps([name, vars]).encode() + b"\n")


def forget() -> None:
    """Connect anew at the next send."""
    global _socket
    _socket = None


def serve(workers: int) -> None:
    """Schedule what comes; `go` begins, so that all may wait first."""
    from pebble import ProcessPool

    listener = socket.create_server(("127.0.0.1", int(os.environ["PEER_PORT"])))
    with ProcessPool(max_workers=workers) as pool:
        pool.schedule(len, args=[""]).result()
        stream = listener.accept()[0].makefile("rb")
        waiting = []
        for line in stream:
            name, vars = json.loads(line)
            if name == "go":
                for job, kwargs in waiting:
                    pool.schedule(JOBS[job], kwargs=kwargs)
                waiting.clear()
            elif name == "noop":
                waiting.append((name, vars))
            else:
                pool.schedule(JOBS[name], kwargs=vars, timeout=1 if name in ("spin", "c_code") else None)


if __name__ == "__main__":
    serve(int(sys.argv[1]))
