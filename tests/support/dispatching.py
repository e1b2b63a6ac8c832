"""A real dispatcher process; the test plays supervisor, ingester and pools."""

from __future__ import annotations

import itertools
import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from tests.support.storing import job
from workerd import log
from workerd.config.handler_config import HandlerConfig, PoolConfig
from workerd.config.model import Config, DispatcherConfig, NodeConfig, StoreConfig
from workerd.config.schedule_config import ScheduleConfig
from workerd.config.workflow_config import WorkflowConfig, WorkflowJob
from workerd.dispatcher.dispatcher import main
from workerd.ingester import writer
from workerd.job import AttemptRef, Claim, new_id
from workerd.messages import (
    Ack,
    Barrier,
    BarrierDone,
    Beat,
    Cancel,
    Claims,
    DeadPool,
    Demand,
    FromChild,
    FromDispatcher,
    Hello,
    Holdings,
    Inventory,
    LeaseState,
    LivePool,
    Outcomes,
    Release,
    Roster,
    ToIngester,
)
from workerd.outcome import Outcome
from workerd.runtime.channel import Channel
from workerd.runtime.child import Child, fork
from workerd.runtime.loop import Loop
from workerd.runtime.paths import Paths, RoleContext
from workerd.runtime.sockets import connect, listen
from workerd.store import columns, jobs, nodes
from workerd.store.base import Store
from workerd.store.jobs import NewJob

T = TypeVar("T")

PLAIN = ("a", "b", "bad", "busy", "f", "g", "good", "h", "quiet")
"""Handlers that a harness has unless it is given others."""

MakeHarness = Callable[..., "DispatcherHarness"]

EVERY_SECOND = "* * * * * *"
FLOW = WorkflowConfig(
    name="flow",
    jobs=(
        WorkflowJob(name="first", handler="h", step=0),
        WorkflowJob(name="second", handler="h", needs=("first",), step=1),
    ),
)


class FakePool:
    """A pool that holds every claim it gets; it reports the capacity that the test names."""

    def __init__(self, harness: DispatcherHarness, name: str, handlers: tuple[str, ...], life: int) -> None:
        self.harness = harness
        self.name = name
        self.handlers = handlers
        self.life = life
        self.received = 0
        self.claims: dict[AttemptRef, Claim] = {}
        self.cancelled: list[AttemptRef] = []
        self.releases: list[tuple[str, ...]] = []
        self.lease_states: list[bool] = []
        self.silent = False  # does not answer Inventory
        self.batches: list[int] = []
        self.on_claims: Callable[[list[Claim]], None] = lambda claims: None
        self.channel: Channel[FromDispatcher] | None = None

    def connect(self) -> FakePool:
        """Connect, or connect again after a disconnect."""
        sock = self.harness.until(self._try)
        self.received = 0
        self.channel = Channel(self.harness.loop, sock, FromDispatcher, self._on_message, self._on_close)
        self.channel.send(Hello(role="pool", name=self.name, life=self.life))
        return self

    def _try(self) -> socket.socket | None:
        try:
            return connect(self.harness.paths.dispatcher)
        except OSError:
            return None

    def _on_close(self) -> None:
        self.channel = None

    def demand(self, room: int) -> None:
        assert self.channel is not None
        self.channel.send(Demand(received=self.received, room=room, handlers=self.handlers))

    def disconnect(self) -> None:
        if self.channel is not None:
            self.channel.close()
            self.channel = None

    def _on_message(self, message: FromDispatcher) -> None:
        match message:
            case Claims(claims=claims):
                self.received += len(claims)
                self.batches.append(len(claims))
                self.claims.update((claim.ref, claim) for claim in claims)
                self.on_claims(claims)
            case Cancel(key=key):
                self.cancelled.append(key)
            case Release(handlers=handlers):
                self.releases.append(handlers)
            case LeaseState(held=held):
                self.lease_states.append(held)
            case Inventory(token=token):
                if not self.silent:
                    self.answer(token)

    def answer(self, token: int) -> None:
        assert self.channel is not None
        moments = [claim.claimed_at for claim in self.claims.values()]
        self.channel.send(Holdings(token=token, keys=list(self.claims), claimed_at=moments))


class FakeIngester:
    """Writes outcomes to the store at once; keeps them while `paused`."""

    def __init__(self, harness: DispatcherHarness, store: Store) -> None:
        self.harness = harness
        self.store = store
        self.outcomes: list[Outcome] = []
        self.barriers: list[Barrier] = []
        self.ended: list[AttemptRef] = []  # what it says to have written the end of
        self.ended_since_ns = time.monotonic_ns()
        self.paused = False
        self._waiting: list[tuple[Channel[ToIngester], Any]] = []
        self._channels: list[Channel[ToIngester]] = []
        self._listener = listen(harness.paths.ingester)
        harness.loop.on_readable(self._listener.fileno(), self._accept)

    def _accept(self) -> None:
        sock, _ = self._listener.accept()
        channel: Channel[ToIngester] = Channel(
            self.harness.loop,
            sock,
            ToIngester,
            lambda message: self._on_message(channel, message),
            lambda: None,
        )
        self._channels.append(channel)

    def _on_message(self, channel: Channel[ToIngester], message: Any) -> None:
        if self.paused:
            self._waiting.append((channel, message))
            return
        match message:
            case Outcomes(first=first, outcomes=outcomes):
                self.outcomes += outcomes
                for outcome in outcomes:
                    owner = outcome.node_id or self.harness.incarnation
                    self.store.run(lambda tx, o=outcome, n=owner: writer.close(tx, [o], n))
                channel.send(Ack(below=first + len(outcomes)))
            case Barrier(token=token):
                self.barriers.append(message)
                ended = self.ended if message.ended else []
                channel.send(BarrierDone(token=token, ended=ended, ended_since_ns=self.ended_since_ns))

    def resume(self) -> None:
        """Write the messages kept while paused."""
        self.paused = False
        waiting, self._waiting = self._waiting, []
        for channel, message in waiting:
            self._on_message(channel, message)

    @property
    def kept(self) -> list[Any]:
        """The messages kept while paused, in their order."""
        return [message for _, message in self._waiting]

    def answer_barriers(self) -> None:
        """Answer the barriers kept while paused, and keep the rest."""
        for channel, message in self._waiting:
            if isinstance(message, Barrier):
                channel.send(BarrierDone(token=message.token))

    def close(self) -> None:
        self.restart()
        self._listener.close()

    def restart(self) -> None:
        """Drop every connection and all unwritten messages."""
        self._waiting.clear()
        for channel in self._channels:
            channel.close()
        self._channels.clear()


class DispatcherHarness:
    """One node: its folders, its dispatcher, and fakes of the processes that talk to it."""

    def __init__(self, store: Store, config: Config) -> None:
        self.loop = Loop()
        self.store = store
        self.config = config
        self.paths = Paths(config.node)
        self.paths.private.mkdir(parents=True, exist_ok=True)
        self.paths.state.mkdir(parents=True, exist_ok=True)
        self.incarnation = new_id()
        self.beats: list[Beat] = []
        self.pools: dict[str, int] = {}
        self.dead: list[DeadPool] = []
        self.dispatcher: Child | None = None
        self.supervisor: Channel[FromChild] | None = None
        self._lives = itertools.count(1)
        self._children: list[Child] = []
        self._all_pools: list[FakePool] = []
        self.ingester = FakeIngester(self, store)

    # -- the dispatcher's process

    def start(
        self,
        sabotage: Callable[[], None] = lambda: None,
        *,
        send_roster: bool = True,
        store_was_used: bool = False,
    ) -> Child:
        """Fork a dispatcher; `sabotage` runs in it first. `send_roster`: it gets a Roster at once."""
        ours, theirs = socket.socketpair()
        life = next(self._lives)
        ctx = RoleContext(self.config, self.incarnation, theirs, life, store_was_used=store_was_used)

        def run() -> int:
            log.configure(self.config.log)  # pytest's captured stdout is closed in a child
            sabotage()
            return main(ctx)

        self.store.close()  # SQLite must not have a file open when its process forks
        self.dispatcher = fork(run, keep=[theirs.fileno()])
        self._children.append(self.dispatcher)
        theirs.close()
        self.supervisor = Channel(self.loop, ours, FromChild, self.beats.append, lambda: None)
        if send_roster:
            self.send_roster()
        return self.dispatcher

    def kill(self, signum: int = signal.SIGKILL) -> None:
        """Signal the dispatcher and wait until it is reaped."""
        assert self.dispatcher is not None
        assert self.supervisor is not None
        self.dispatcher.kill(signum)
        self.until(lambda: self.dispatcher is not None and self.dispatcher.reap() is not None)
        self.supervisor.close()

    def send(self, message: Any) -> None:
        assert self.supervisor is not None
        self.supervisor.send(message)

    def send_roster(self) -> None:
        live = tuple(LivePool(name, 1, life, os.getpid()) for name, life in self.pools.items())
        self.send(Roster(pools=live, dead=tuple(self.dead)))

    def close(self) -> None:
        for child in self._children:
            child.kill(signal.SIGCONT)
            child.kill()
            self.until(lambda c=child: c.reap() is not None)
            child.close()
        if self.supervisor is not None:
            self.supervisor.close()
        self.ingester.close()
        for pool in self._all_pools:
            pool.disconnect()
        self.loop.close()

    # -- pools

    def pool(self, *handlers: str, name: str = "") -> FakePool:
        """Return a live pool that is in the roster but not connected yet."""
        pool = FakePool(self, name or handlers[0], handlers, next(self._lives))
        self.pools[pool.name] = pool.life
        self._all_pools.append(pool)
        if self.supervisor is not None:
            self.send_roster()
        return pool

    def report_death(self, pool: FakePool) -> None:
        """Simulate the pool's death: its connection closes, then the supervisor sends a Roster."""
        pool.disconnect()
        self.pools.pop(pool.name)
        self.dead.append(DeadPool(pool.name, 1, pool.life, os.getpid(), pool.handlers, time.monotonic_ns()))
        self.send_roster()

    # -- waiting for facts

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

    def serve(self, seconds: float) -> None:
        """Turn the loop for a while, to check that something does not happen."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.turn()

    @property
    def beat(self) -> Beat:
        return self.beats[-1] if self.beats else Beat(state="")

    @property
    def is_up(self) -> bool:
        return self.beat.state == "up"

    def settled(self, rounds: int = 1) -> bool:
        """Whether at least this many settlements have finished and none is running."""
        info = self.beat.info
        return info.get("settlement") == "idle" and info.get("settlements", 0) >= rounds


def node(folder: Path, name: str = "test") -> NodeConfig:
    """Build a node table with folders below `folder`."""
    return NodeConfig(name=name, runtime_dir=folder / "run", state_dir=folder / "state")


def node_config(
    folder: Path,
    url: str,
    *,
    name: str = "test",
    lease: float = 30.0,
    poll: float = 0.5,
    batch: int = 500,
    **tables: object,
) -> Config:
    """Build the configuration of a node below `folder`: dispatcher keys, and other tables as `tables`.

    Without pools among them, it has a pool of its own for each of PLAIN.
    """
    tables.setdefault("pools", {name: PoolConfig(name=name, handlers=(_plain(name),)) for name in PLAIN})
    return Config(
        node=NodeConfig(name=name, runtime_dir=folder / "run", state_dir=folder / "state"),
        store=StoreConfig(url=url),
        dispatcher=DispatcherConfig(lease=lease, poll=poll, batch=batch),
        **tables,  # type: ignore[arg-type]
    )


def _plain(name: str) -> HandlerConfig:
    return HandlerConfig(name=name, call="x:y", pool=name)


def pool_of(name: str, schedule: ScheduleConfig) -> dict[str, PoolConfig]:
    """Build a pools table with one pool of one scheduled handler."""
    handler = HandlerConfig(name=name, call="x:y", pool=name, schedule=schedule)
    return {name: PoolConfig(name=name, handlers=(handler,))}


def insert_jobs(store: Store, handler: str, count: int = 1, **fields: object) -> list[bytes]:
    """Insert new jobs of a handler; return their ids."""
    rows = [NewJob(handler=handler, **fields) for _ in range(count)]  # type: ignore[arg-type]
    return [inserted.id for inserted in store.run(lambda tx: jobs.insert(tx, rows))]


def job_state(store: Store, job_id: bytes) -> tuple[str, str | None, int]:
    """Return status, reason and attempt of the newest row."""
    row = job(store, job_id).row
    return row.status, row.reason, row.attempt


def job_rows(store: Store, handler: str) -> list[tuple[bytes, str, int]]:
    """Return id, status and due time of every row of a handler, by due time."""
    found = store.read(
        lambda tx: tx.query(
            "SELECT id, status, run_at FROM workerd_jobs WHERE handler = %s ORDER BY run_at", (handler,)
        )
    )
    return [(row[0], columns.text(row[1]), columns.time(row[2])) for row in found]


def is_registered(store: Store, node_id: bytes) -> bool:
    """Whether the store has a row of this incarnation."""
    return any(record.id == node_id for record in store.read(nodes.list_))


def idle(
    make_harness: MakeHarness, poll: float, *handlers: str, **parts: object
) -> tuple[DispatcherHarness, FakePool]:
    """A dispatcher that has looked for jobs and found none, and a pool with room for many."""
    harness = make_harness(poll=poll, **parts)
    harness.start()
    pool = harness.pool(*handlers, name="p").connect()
    pool.demand(50)
    harness.until(lambda: harness.is_up and harness.settled())
    harness.serve(0.5)
    return harness, pool
