"""Handlers that speak to the roles' sockets as other processes of the node, and look into them."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import time
from pathlib import Path
from typing import Any

import msgspec

from workerd.job import parse_id
from workerd.messages import Demand, Hello, Message, Outcomes
from workerd.outcome import Outcome, Reason
from workerd.runtime.sockets import connect

_LENGTH = struct.Struct("!i")


def intrude(folder: str, victim: str, claimed_at: int, node: str) -> dict[str, list[int]]:
    """As each of the first lives: demand jobs, and send an outcome of `victim`; returns bytes received."""
    forged = Outcome(
        id=parse_id(victim), attempt=1, claimed_at=claimed_at, handler="waits", status="failure",
        reason=Reason.FAILURE, success=False, error="forged", node_id=parse_id(node),
    )  # fmt: skip
    demand = Demand(received=0, room=100, handlers=("echo", "waits"))
    return {
        "dispatcher": [_speak(Path(folder) / "dispatcher", life, "waits", demand) for life in range(1, 8)],
        "ingester": [
            _speak(Path(folder) / "ingester", life, "waits", Outcomes(first=0, outcomes=[forged]))
            for life in range(1, 8)
        ],
    }


def _speak(path: Path, life: int, pool: str, *messages: Message) -> int:
    """The number of bytes received within a moment of having sent Hello and these messages."""
    with connect(path, timeout=0.2) as sock:
        with contextlib.suppress(OSError):
            for message in (Hello(role="pool", name=pool, life=life), *messages):
                body = msgspec.msgpack.encode(message)
                sock.sendall(_LENGTH.pack(len(body)) + body)
        return _received(sock)


def _received(sock: socket.socket) -> int:
    count, end = 0, time.monotonic() + 0.2
    with contextlib.suppress(OSError):
        while time.monotonic() < end and (data := sock.recv(65536)):
            count += len(data)
    return count


def inspect(pids: dict[str, int]) -> dict[str, list[str]]:
    """What of each process can be read in /proc."""
    return {
        name: [part for part in ("environ", "fd", "maps") if _is_readable(Path(f"/proc/{pid}") / part)]
        for name, pid in pids.items()
    }


def _is_readable(path: Path) -> bool:
    try:
        if path.name == "fd":
            return bool([os.readlink(entry) for entry in path.iterdir()])
        path.read_bytes()
    except OSError:
        return False
    return True


def echo(value: Any = None) -> Any:
    return value
