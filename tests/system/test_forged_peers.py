"""Handlers that speak to the roles' sockets, and bytes on every socket of the node that are no messages."""

from __future__ import annotations

import contextlib
import random
import socket
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.support.daemon import ROOT, Daemon
from tests.support.eventually import eventually
from tests.support.fuzzing import fuzz_frame
from tests.support.outcomes import outcome
from tests.support.rows import Rows, assert_settled
from workerd import clock
from workerd.messages import Barrier, Beat, Demand, Hello, Holdings, Outcomes, Scheduled, Seen
from workerd.runtime.sockets import connect, poke

CONFIG = f"""
[gateway]
listen = "unix:{{folder}}/http"
[defaults]
path = ["{ROOT}"]
[handlers.waits]
call = "tests.support.handlers:wait_for_file"
[handlers.intrude]
call = "tests.support.intruding_handlers:intrude"
[handlers.echo]
call = "tests.support.intruding_handlers:echo"
"""
SEED = 13


class Node:
    """A daemon on SQLite, with the sockets of all its roles."""

    def __init__(self, folder: Path) -> None:
        url = f"sqlite:///{folder}/store.db"
        self.folder = folder
        self.rows = Rows(url)
        self.daemon = Daemon(folder / "node", url, CONFIG.format(folder=folder))
        self.private = self.daemon.folder / "run" / "private"

    def events(self, name: str) -> list[dict[str, Any]]:
        lines = [line for line in self.daemon.logged().splitlines() if line.startswith("{")]
        return [event for event in map(msgspec.json.decode, lines) if event["event"] == name]

    def pids(self) -> dict[str, int]:
        status = self.daemon.status()
        return {name: child["pid"] for part in ("roles", "pools") for name, child in status[part].items()}

    def completes(self) -> None:
        """A job goes through the whole node."""
        job = self.rows.insert("echo", {"value": 1})
        eventually(lambda: self.rows.ended(job), state=self.daemon.tail)
        assert self.rows.last(job)["status"] == "completed"


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    made = Node(tmp_path)
    made.daemon.start()
    yield made
    assert made.daemon.stop() == 0
    made.daemon.end()
    assert_settled(made.rows)


def test_a_handler_that_says_it_is_another_process_gets_and_changes_nothing(
    node: Node, tmp_path: Path
) -> None:
    """Both roles close its connection and log who it was; no forged outcome is recorded."""
    before = node.pids()
    victim = node.rows.insert("waits", {"path": str(tmp_path / "go")})
    eventually(lambda: node.daemon.runs(victim), state=node.daemon.tail)
    row = node.rows.last(victim)
    job = node.rows.insert(
        "intrude",
        {
            "folder": str(node.private),
            "victim": str(uuid.UUID(bytes=victim)),
            "claimed_at": clock.from_text(row["claimed_at"]),
            "node": str(uuid.UUID(bytes=row["node_id"])),
        },
    )
    eventually(lambda: node.rows.ended(job), state=node.daemon.tail)
    received = msgspec.json.decode(node.rows.last(job)["payload"])
    assert set(received["dispatcher"]) == set(received["ingester"]) == {0}
    assert node.rows.last(victim)["status"] == "inprogress"
    refused = node.events("peer.refused")
    assert {event["process"] for event in refused} == {"dispatcher", "ingester"}
    assert {event["peer"] for event in refused} == {"waits"}
    assert before == node.pids()
    (tmp_path / "go").touch()
    eventually(lambda: node.rows.ended(victim), state=node.daemon.tail)
    assert node.rows.last(victim)["status"] == "completed"


def frames(dice: random.Random) -> Iterator[bytes]:
    """What a client of any socket may send: frames, noise, JSON, HTTP."""
    known = [
        msgspec.msgpack.encode(message)
        for message in (
            Hello(role="pool", name="waits", life=4), Demand(received=0, room=9, handlers=("echo",)),
            Outcomes(first=0, outcomes=[outcome(handler="echo")]), Seen("echo", b"{}"), Barrier(1, {4: 5}),
            Holdings(token=1, keys=[], claimed_at=[]), Beat("up"), Scheduled(2**62),
        )
    ]  # fmt: skip
    known += [b'{"ask": "status"}', b'{"ask": ["metrics"]}', b'{"ask": "\xff"}']
    while True:
        yield fuzz_frame(dice, known)


HTTP = [
    b"GET /heartbeat HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"POST /jobs HTTP/1.1\r\nContent-Length: 5\r\n\r\n[[[[[",
    b"POST /jobs HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: 60000\r\n\r\n" + b"[" * 60_000,
    b'POST /jobs HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: 14\r\n\r\n{"handler":"\xff"',
    b"\x16\x03\x01",
    b"GET /jobs/%ff%00?wait=\xff HTTP/1.1\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"\0" * 5000, b"A" * 70_000,
]  # fmt: skip


def send(path: Path, *parts: bytes) -> None:
    """Connect, send these, and go, reading nothing; the other side may close before."""
    with contextlib.suppress(OSError), connect(path, timeout=1.0) as sock:
        for part in parts:
            sock.sendall(part)
        sock.shutdown(socket.SHUT_WR)
        sock.settimeout(0.02)
        sock.recv(4096)


def test_no_bytes_on_any_socket_end_a_process(node: Node) -> None:
    """Random ones, mutated messages, deep nesting, text that is no UTF-8, on every socket of the node."""
    node.completes()
    before = node.pids()
    dice = random.Random(SEED)
    source = frames(dice)
    for _ in range(80):
        for name in ("dispatcher", "ingester", "supervisor"):
            send(node.private / name, *(next(source) for _ in range(dice.randrange(1, 4))))
        poke(node.private.parent / "wake", next(source)[4:2000])
        send(node.folder / "http", dice.choice(HTTP)[: dice.choice((None, 20, 80))], next(source))
    node.completes()
    assert node.pids() == before
    assert not [e for e in node.events("supervisor.callback_failed") + node.events("child.exited")]
    assert node.events("task.crashed") == node.events("route.crashed") == []
    assert "Traceback" not in node.daemon.logged()
