"""A real ingester process, with the test in the places of supervisor, pools and dispatcher."""

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


class Pool:
    """A sender of outcomes that keeps them until they are acknowledged, as a pool does."""

    def __init__(self, world: World, name: str, life: int) -> None:
        self.world = world
        self.name = name
        self.life = life
        self.sent: list[Outcome] = []
        self.durable = 0  # how many were acknowledged
        self.limit = 0
        self.barriers: list[int] = []
        self.channel: Channel[FromIngester] | None = None
        self.broken = 0

    def connect(self) -> Pool:
        """Connect, and send again what was not acknowledged."""
        sock = self.world.until(self._try)
        self.channel = Channel(self.world.loop, sock, FromIngester, self._heard, self._broke)
        self.world.channels.append(self.channel)
        self.channel.send(Hello(role="pool", name=self.name, life=self.life))
        if self.durable < len(self.sent):
            self.channel.send(Outcomes(first=self.durable, outcomes=self.sent[self.durable :]))
        return self

    def _try(self) -> socket.socket | None:
        try:
            return connect(self.world.paths.ingester)
        except OSError:
            return None

    def _broke(self) -> None:
        self.channel = None
        self.broken += 1

    def _heard(self, message: FromIngester) -> None:
        match message:
            case Ack(below=below):
                assert self.durable <= below <= len(self.sent)
                self.durable = below
            case PayloadLimits(max_payload=limit):
                self.limit = limit
            case BarrierDone(token=token):
                self.barriers.append(token)

    def send(self, *outcomes: Outcome, at_once: int = 500) -> None:
        """Send outcomes, a frame for every `at_once` of them."""
        for start in range(0, len(outcomes), at_once):
            part = list(outcomes[start : start + at_once])
            if self.channel is not None:
                self.channel.send(Outcomes(first=len(self.sent), outcomes=part))
            self.sent += part

    def say(self, message: Any) -> None:
        assert self.channel is not None
        self.channel.send(message)

    def barrier(self, token: int, *lives: int) -> None:
        self.say(Barrier(token=token, lives=lives))

    @property
    def all_durable(self) -> bool:
        return self.durable == len(self.sent)


class World:
    """One node with nothing but an ingester: its folders, its life, its store as others see it."""

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

    # -- the ingester's life

    def start(self, sabotage: Callable[[], None] = lambda: None, watchdog: float = 10.0) -> World:
        """Fork an ingester; `sabotage` runs in it first. No SQLite connection may be open here."""
        ours, theirs = socket.socketpair()
        config = self.config
        if watchdog != config.supervisor.watchdog:
            from msgspec.structs import replace

            config = replace(config, supervisor=replace(config.supervisor, watchdog=watchdog))
        ctx = RoleContext(config=config, incarnation=self.incarnation, control=theirs, life=next(self._lives))

        def run() -> int:
            # pytest's own are descriptors that a forked child closes.
            sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__
            log.configure(config.log)
            sabotage()
            return main(ctx)

        self.child = fork(run, keep=[theirs.fileno()])
        self._children.append(self.child)
        theirs.close()
        self.supervisor = Channel(self.loop, ours, FromChild, self.beats.append, lambda: None)
        self.channels.append(self.supervisor)
        return self

    def kill(self, signum: int = signal.SIGKILL) -> int:
        """End the ingester; its wait status."""
        assert self.child is not None
        self.child.kill(signum)
        return self.reaped()

    def reaped(self) -> int:
        """Wait for the ingester's end; its wait status."""
        child = self.child
        assert child is not None
        self.until(lambda: child.reap() is not None)
        assert child.status is not None
        assert self.supervisor is not None
        self.supervisor.close()
        return child.status

    def stop(self) -> int:
        """Tell it to end; its exit status."""
        self.say(Stop())
        return self.reaped()

    def say(self, message: Any) -> None:
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

    def pool(self, name: str = "echo") -> Pool:
        """A pool that is not connected yet."""
        return Pool(self, name, next(self._lives))

    def bury(self, *pools: Pool) -> None:
        """Tell the ingester that these pools are dead."""
        dead = tuple(DeadPool(p.name, 1, p.life, (p.name,), time.monotonic_ns()) for p in pools)
        self.say(Roster(pools=(), dead=dead))

    def claimed(self, count: int, **given: Any) -> list[Outcome]:
        """So many jobs of this node `inprogress` in the store, and an outcome for each."""
        at = clock.now_us() - 1_000_000
        made = [
            outcome(**{"claimed_at": at, "started_at": at + 10, "finished_at": at + 20, "run_at": at}
                    | {"node_id": None} | given)
            for _ in range(count)
        ]  # fmt: skip
        self.insert(made)
        return made

    def insert(self, outcomes: list[Outcome]) -> None:
        """Rows that wait for these outcomes."""
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
        """What the ingester says of itself, asked for now."""
        token = next(self._tokens)
        self.say(Report(token=token))
        return self.until(lambda: next((b for b in reversed(self.beats) if b.token == token), None)).info

    @property
    def state(self) -> str:
        return self.beats[-1].state if self.beats else ""

    def turn(self) -> None:
        self.loop.turn(0.01)

    def until(self, fact: Callable[[], T], within: float = 30.0) -> T:
        """Serve everyone until `fact` is true; its first true value."""
        end = time.monotonic() + within
        while True:
            self.turn()
            value = fact()
            if value:
                return value
            if time.monotonic() > end:
                shown = self.beats[-1] if self.beats else None
                raise AssertionError(f"not within {within} s; last value {value!r}, last beat {shown}")


def die() -> None:
    """The end of a process at this very instruction."""
    os.kill(os.getpid(), signal.SIGKILL)
