"""A real ingester process; the test plays supervisor, pools and dispatcher."""

from __future__ import annotations

import itertools
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from msgspec.structs import replace

from tests.support.outcomes import outcome
from tests.support.rows import Rows
from workerd import clock, log
from workerd.config.model import Config, IngesterConfig, NodeConfig, StoreConfig
from workerd.ingester.ingester import main
from workerd.job import new_id
from workerd.messages import (
    Ack,
    Barrier,
    BarrierDone,
    Beat,
    DeadPool,
    FromChild,
    FromIngester,
    Hello,
    LivePool,
    Outcomes,
    PayloadLimits,
    Report,
    Roster,
    Stop,
)
from workerd.outcome import Outcome
from workerd.runtime.channel import Channel
from workerd.runtime.child import Child, fork
from workerd.runtime.loop import Loop
from workerd.runtime.paths import Paths, RoleContext
from workerd.runtime.sockets import connect

T = TypeVar("T")


class SendingPool:
    """Sends outcomes and keeps them until they are acknowledged, as a pool does."""

    def __init__(self, harness: IngesterHarness, name: str, life: int) -> None:
        self.harness = harness
        self.name = name
        self.life = life
        self.sent: list[Outcome] = []
        self.durable = 0  # number of acknowledged outcomes
        self.limit = 0
        self.barriers: list[int] = []
        self.on_barrier_done: Callable[[BarrierDone], None] = lambda message: None
        self.channel: Channel[FromIngester] | None = None
        self.disconnects = 0

    def connect(self) -> SendingPool:
        """Connect and resend unacknowledged outcomes."""
        sock = self.harness.until(self._try)
        self.channel = Channel(self.harness.loop, sock, FromIngester, self._on_message, self._on_close)
        self.harness.channels.append(self.channel)
        self.channel.send(Hello(role="pool", name=self.name, life=self.life))
        if self.durable < len(self.sent):
            self.channel.send(Outcomes(first=self.durable, outcomes=self.sent[self.durable :]))
        return self

    def _try(self) -> socket.socket | None:
        try:
            return connect(self.harness.paths.ingester)
        except OSError:
            return None

    def _on_close(self) -> None:
        self.channel = None
        self.disconnects += 1

    def _on_message(self, message: FromIngester) -> None:
        match message:
            case Ack(below=below):
                assert self.durable <= below <= len(self.sent)
                self.durable = below
            case PayloadLimits(max_payload=limit):
                self.limit = limit
            case BarrierDone(token=token):
                self.barriers.append(token)
                self.on_barrier_done(message)

    def send(self, *outcomes: Outcome, at_once: int = 500) -> None:
        """Send outcomes in frames of at most `at_once`."""
        for start in range(0, len(outcomes), at_once):
            part = list(outcomes[start : start + at_once])
            if self.channel is not None:
                self.channel.send(Outcomes(first=len(self.sent), outcomes=part))
            self.sent += part

    def send_message(self, message: Any) -> None:
        assert self.channel is not None
        self.channel.send(message)

    def barrier(self, token: int, *lives: int) -> None:
        self.send_message(Barrier(token=token, lives=dict.fromkeys(lives, os.getpid())))

    @property
    def all_durable(self) -> bool:
        return self.durable == len(self.sent)


class IngesterHarness:
    """One node with only an ingester; the test plays its supervisor, pools and dispatcher."""

    def __init__(self, folder: Path, url: str, **ingester: Any) -> None:
        node = NodeConfig(name="test", runtime_dir=folder / "run", state_dir=folder / "state")
        self.config = Config(node=node, store=StoreConfig(url=url), ingester=IngesterConfig(**ingester))
        self.paths = Paths(node)
        self.paths.private.mkdir(parents=True, exist_ok=True)
        self.paths.state.mkdir(parents=True, exist_ok=True)
        self.loop = Loop()
        self.rows = Rows(url)
        self.incarnation = new_id()
        self.beats: list[Beat] = []
        self.child: Child | None = None
        self.supervisor: Channel[FromChild] | None = None
        self._lives = itertools.count(1)
        self._tokens = itertools.count(1)
        self._children: list[Child] = []
        self.channels: list[Channel[Any]] = []
        self.pools: list[SendingPool] = []

    # -- the ingester's process

    def start(self, sabotage: Callable[[], None] = lambda: None, watchdog: float = 10.0) -> IngesterHarness:
        """Fork an ingester; `sabotage` runs in it first. No SQLite connection may be open here."""
        ours, theirs = socket.socketpair()
        config = self.config
        if watchdog != config.supervisor.watchdog:
            config = replace(config, supervisor=replace(config.supervisor, watchdog=watchdog))
        ctx = RoleContext(config=config, incarnation=self.incarnation, control=theirs, life=next(self._lives))

        def run() -> int:
            # pytest's captured streams are closed in a forked child.
            sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__
            log.configure(config.log)
            sabotage()
            return main(ctx)

        self.child = fork(run, keep=[theirs.fileno()])
        self._children.append(self.child)
        theirs.close()
        self.supervisor = Channel(self.loop, ours, FromChild, self.beats.append, lambda: None)
        self.channels.append(self.supervisor)
        self.send_roster()
        return self

    def kill(self, signum: int = signal.SIGKILL) -> int:
        """Signal the ingester and wait; return its wait status."""
        assert self.child is not None
        self.child.kill(signum)
        return self.wait_for_exit()

    def wait_for_exit(self) -> int:
        """Wait until the ingester has exited; return its wait status."""
        child = self.child
        assert child is not None
        self.until(lambda: child.reap() is not None)
        assert child.status is not None
        assert self.supervisor is not None
        self.supervisor.close()
        return child.status

    def stop(self) -> int:
        """Send Stop and wait; return its exit status."""
        self.send_message(Stop())
        return self.wait_for_exit()

    def send_message(self, message: Any) -> None:
        assert self.supervisor is not None
        self.supervisor.send(message)

    def close(self) -> None:
        for child in self._children:
            child.kill(signal.SIGCONT)
            child.kill()
            self.until(lambda c=child: c.reap() is not None)
            child.close()
        for channel in self.channels:
            channel.close()
        self.loop.close()

    # -- pools and their jobs

    def pool(self, name: str = "echo") -> SendingPool:
        """Return a pool that is in the roster but not connected yet."""
        pool = SendingPool(self, name, next(self._lives))
        self.pools.append(pool)
        if self.supervisor is not None:
            self.send_roster()
        return pool

    def report_death(self, *pools: SendingPool) -> None:
        """Send a roster that lists these pools as dead."""
        self.pools = [pool for pool in self.pools if pool not in pools]
        self.send_roster(*pools)

    def send_roster(self, *dead: SendingPool) -> None:
        """Send a roster of the living pools, and of these dead ones."""
        self.send_message(
            Roster(
                pools=tuple(LivePool(p.name, 1, p.life, os.getpid()) for p in self.pools),
                dead=tuple(
                    DeadPool(p.name, 1, p.life, os.getpid(), (p.name,), time.monotonic_ns()) for p in dead
                ),
            )
        )

    def insert_claimed(self, count: int, **given: Any) -> list[Outcome]:
        """Insert `count` jobs claimed by this node; return an outcome for each."""
        at = clock.now_us() - 1_000_000
        made = [
            outcome(**{"claimed_at": at, "started_at": at + 10, "finished_at": at + 20, "run_at": at}
                    | {"node_id": None} | given)
            for _ in range(count)
        ]  # fmt: skip
        self.insert(made)
        return made

    def insert(self, outcomes: list[Outcome]) -> None:
        """Insert the `inprogress` rows of these outcomes."""
        mark = "?" if self.rows.sqlite else "%s"
        with self.rows.connection() as connection:
            cursor = connection.cursor()
            cursor.execute("BEGIN")
            cursor.executemany(
                "INSERT INTO workerd_jobs (id, attempt, handler, node_id, claimed_at, run_at, status)"
                f" VALUES ({', '.join([mark] * 6)}, 'inprogress')",
                [
                    (o.id, o.attempt, o.handler, o.node_id or self.incarnation, at, at)
                    for o in outcomes
                    for at in [clock.to_text(o.claimed_at)]
                ],
            )
            cursor.execute("COMMIT")

    # -- facts

    @property
    def info(self) -> dict[str, Any]:
        """Request a report from the ingester; return its info."""
        token = next(self._tokens)
        self.send_message(Report(token=token))
        return self.until(lambda: next((b for b in reversed(self.beats) if b.token == token), None)).info

    @property
    def state(self) -> str:
        return self.beats[-1].state if self.beats else ""

    def turn(self) -> None:
        self.loop.turn(0.01)

    def until(self, fact: Callable[[], T], within: float = 30.0) -> T:
        """Turn the loop until `fact` is true; return its first true value."""
        end = time.monotonic() + within
        while True:
            self.turn()
            value = fact()
            if value:
                return value
            if time.monotonic() > end:
                shown = self.beats[-1] if self.beats else None
                raise AssertionError(f"not within {within} s; last value {value!r}, last beat {shown}")


def kill_self() -> None:
    """SIGKILL this process."""
    os.kill(os.getpid(), signal.SIGKILL)
