"""A real dispatcher process, with the test in the places of supervisor, ingester and pools."""

from __future__ import annotations

import itertools
import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from workerd import log
from workerd.config.model import Config, NodeConfig
from workerd.dispatcher.dispatcher import main
from workerd.job import Claim, Key, new_id
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
from workerd.store import outcomes as store_outcomes
from workerd.store.base import Store

T = TypeVar("T")


class Pool:
    """A pool that keeps what it gets until the test says otherwise, and asks for `capacity` in all."""

    def __init__(self, world: World, name: str, handlers: tuple[str, ...], life: int) -> None:
        self.world = world
        self.name = name
        self.handlers = handlers
        self.life = life
        self.received = 0
        self.claims: dict[Key, Claim] = {}
        self.cancelled: list[Key] = []
        self.given_back: list[tuple[str, ...]] = []
        self.held: list[bool] = []
        self.mute = False  # does not answer Inventory
        self.batches: list[int] = []
        self.on_claims: Callable[[list[Claim]], None] = lambda claims: None
        self.channel: Channel[FromDispatcher] | None = None

    def connect(self) -> Pool:
        """Connect, as a pool does as often as it must."""
        sock = self.world.until(self._try)
        self.received = 0
        self.channel = Channel(self.world.loop, sock, FromDispatcher, self._heard, self._broke)
        self.channel.send(Hello(role="pool", name=self.name, life=self.life))
        return self

    def _try(self) -> socket.socket | None:
        try:
            return connect(self.world.paths.dispatcher)
        except OSError:
            return None

    def _broke(self) -> None:
        self.channel = None

    def demand(self, room: int) -> None:
        assert self.channel is not None
        self.channel.send(Demand(received=self.received, room=room, handlers=self.handlers))

    def disconnect(self) -> None:
        if self.channel is not None:
            self.channel.close()
            self.channel = None

    def _heard(self, message: FromDispatcher) -> None:
        match message:
            case Claims(claims=claims):
                self.received += len(claims)
                self.batches.append(len(claims))
                self.claims.update((claim.key, claim) for claim in claims)
                self.on_claims(claims)
            case Cancel(key=key):
                self.cancelled.append(key)
            case Release(handlers=handlers):
                self.given_back.append(handlers)
            case LeaseState(held=held):
                self.held.append(held)
            case Inventory(token=token):
                if not self.mute:
                    self.answer(token)

    def answer(self, token: int) -> None:
        assert self.channel is not None
        self.channel.send(Holdings(token=token, keys=list(self.claims)))


class Ingester:
    """Writes what it is told into the store at once, unless `away`; then it keeps it."""

    def __init__(self, world: World, store: Store) -> None:
        self.world = world
        self.store = store
        self.outcomes: list[Outcome] = []
        self.barriers: list[Barrier] = []
        self.away = False
        self._waiting: list[tuple[Channel[ToIngester], Any]] = []
        self._channels: list[Channel[ToIngester]] = []
        self._listener = listen(world.paths.ingester)
        world.loop.on_readable(self._listener.fileno(), self._accept)

    def _accept(self) -> None:
        sock, _ = self._listener.accept()
        channel: Channel[ToIngester] = Channel(
            self.world.loop, sock, ToIngester, lambda message: self._heard(channel, message), lambda: None
        )
        self._channels.append(channel)

    def _heard(self, channel: Channel[ToIngester], message: Any) -> None:
        if self.away:
            self._waiting.append((channel, message))
            return
        match message:
            case Outcomes(first=first, outcomes=outcomes):
                self.outcomes += outcomes
                for outcome in outcomes:
                    owner = outcome.node_id or self.world.incarnation
                    self.store.run(lambda tx, o=outcome, n=owner: store_outcomes.close(tx, [o], n))
                channel.send(Ack(below=first + len(outcomes)))
            case Barrier(token=token):
                self.barriers.append(message)
                channel.send(BarrierDone(token=token))

    def back(self) -> None:
        """Write what was kept."""
        self.away = False
        waiting, self._waiting = self._waiting, []
        for channel, message in waiting:
            self._heard(channel, message)

    def close(self) -> None:
        self.restart()
        self._listener.close()

    def restart(self) -> None:
        """Lose every connection and what was not written."""
        self._waiting.clear()
        for channel in self._channels:
            channel.close()
        self._channels.clear()


class World:
    """One node: its folders, the dispatcher, and everyone that it talks to."""

    def __init__(self, folder: Path, store: Store, config: Config) -> None:
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
        self._met: list[Pool] = []
        self.ingester = Ingester(self, store)

    # -- the dispatcher's life

    def start(self, sabotage: Callable[[], None] = lambda: None, *, told: bool = True) -> Child:
        """Fork a dispatcher; `sabotage` runs in it first. `told`: it hears at once who lives."""
        ours, theirs = socket.socketpair()
        life = next(self._lives)
        ctx = RoleContext(config=self.config, incarnation=self.incarnation, control=theirs, life=life)

        def run() -> int:
            log.configure(self.config.log)  # pytest's own standard output is closed in a child
            sabotage()
            return main(ctx)

        self.store.close()  # SQLite must not have a file open when its process forks
        self.dispatcher = fork(run, keep=[theirs.fileno()])
        self._children.append(self.dispatcher)
        theirs.close()
        self.supervisor = Channel(self.loop, ours, FromChild, self.beats.append, lambda: None)
        if told:
            self.tell_roster()
        return self.dispatcher

    def kill(self, signum: int = signal.SIGKILL) -> None:
        """End the dispatcher and wait until it is reaped."""
        assert self.dispatcher is not None
        assert self.supervisor is not None
        self.dispatcher.kill(signum)
        self.until(lambda: self.dispatcher is not None and self.dispatcher.reap() is not None)
        self.supervisor.close()

    def say(self, message: Any) -> None:
        assert self.supervisor is not None
        self.supervisor.send(message)

    def tell_roster(self) -> None:
        self.say(Roster(pools=dict(self.pools), dead=tuple(self.dead)))

    def close(self) -> None:
        for child in self._children:
            child.kill(signal.SIGCONT)
            child.kill()
            self.until(lambda c=child: c.reap() is not None)
            child.close()
        if self.supervisor is not None:
            self.supervisor.close()
        self.ingester.close()
        for pool in self._met:
            pool.disconnect()
        self.loop.close()

    # -- pools

    def pool(self, *handlers: str, name: str = "") -> Pool:
        """A living pool, in the roster but not connected yet."""
        pool = Pool(self, name or handlers[0], handlers, next(self._lives))
        self.pools[pool.name] = pool.life
        self._met.append(pool)
        if self.supervisor is not None:
            self.tell_roster()
        return pool

    def bury(self, pool: Pool) -> None:
        """The pool has died: its connection ends, then the supervisor says so."""
        pool.disconnect()
        self.pools.pop(pool.name)
        self.dead.append(DeadPool(pool.name, pool.life, pool.handlers, time.monotonic_ns()))
        self.tell_roster()

    # -- waiting for facts

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

    def serve(self, seconds: float) -> None:
        """Serve everyone for a while, to see that something does not happen."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.turn()

    @property
    def beat(self) -> Beat:
        return self.beats[-1] if self.beats else Beat(state="")

    def settled(self, rounds: int = 1) -> bool:
        """Whether so many settlements are over and none is under way."""
        info = self.beat.info
        return info.get("settlement") == "idle" and info.get("settlements", 0) >= rounds


def node(folder: Path, name: str = "test") -> NodeConfig:
    """A node's folders below `folder`."""
    return NodeConfig(name=name, runtime_dir=folder / "run", state_dir=folder / "state")


def pid_exists(pid: int) -> bool:
    """Whether there is such a process."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
