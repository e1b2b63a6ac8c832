"""One combined poll: new jobs, due rows, cancels, pauses; and the wake-up socket."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Set
from pathlib import Path

import msgspec

from workerd.dispatcher.claimer import Claimer
from workerd.dispatcher.lease import Contact
from workerd.dispatcher.pool_links import PoolLink
from workerd.dispatcher.tasks import PeriodicTask, jittered
from workerd.job import Key
from workerd.messages import Cancel, Release, Scheduled
from workerd.runtime.loop import Loop
from workerd.runtime.peer_server import PeerServer
from workerd.runtime.sockets import bind_datagram
from workerd.store import claims
from workerd.store.claims import poll

AT_ONCE = 1000
"""Datagrams that are read in one turn: a flood of them must not keep the others waiting."""
SIZE = 64
"""Bytes of one that are read; what is longer is not ours."""


class Wake:
    """Reads the wake-ups; a thousand of them are as good as one.

    `on_new`: there is new work. `on_scheduled`: a row becomes due at this store time, microseconds.
    """

    def __init__(
        self, loop: Loop, path: Path, on_new: Callable[[], object], on_scheduled: Callable[[int], object]
    ) -> None:
        self._loop = loop
        self._on_new = on_new
        self._on_scheduled = on_scheduled
        self._decoder = msgspec.msgpack.Decoder(Scheduled)
        self._socket = bind_datagram(path, 0o666)

    def start(self) -> None:
        """Listen from now on."""
        self._loop.on_readable(self._socket.fileno(), self._read, rank=2)

    def _read(self) -> None:
        bodies: set[bytes] = set()
        with contextlib.suppress(BlockingIOError):
            for _ in range(AT_ONCE):
                bodies.add(self._socket.recv(SIZE))
        due: int | None = None
        new = False
        for body in bodies:
            try:
                told = self._decoder.decode(body).due
            except msgspec.DecodeError:
                new = True
            else:
                due = told if due is None else min(due, told)
        if due is not None:
            self._on_scheduled(due)
        if new:
            self._on_new()


SLICE = 500
SHORTEST = 0.002


class DueRows(PeriodicTask):
    """Makes due rows `new`, in slices, and sleeps no longer than until the next is due."""

    name = "due rows"

    def __init__(self, contact: Contact, announce: Callable[[Iterable[str]], None]) -> None:
        super().__init__()
        self._contact = contact
        self._announce = announce
        self.promoted = 0
        self.next_due: int | None = None
        self._looked = 0.0

    def work(self) -> float | None:
        """One slice."""
        self._looked = time.monotonic()
        done = self._contact.run(lambda tx: claims.promote_due(tx, SLICE))
        self.next_due = done.next_due
        if done.count:
            self.promoted += done.count
            self._announce(done.handlers)
        if done.count >= SLICE:
            return 0.0
        if done.next_due is None:
            return None
        # Not 0: a due row that another node holds locked is not ours to wait for in a tight loop.
        return max(SHORTEST, self._contact.seconds_until(done.next_due))

    def seen(self, next_due: int | None) -> None:
        """The first scheduled row is due then; it may be one that nobody has foretold."""
        self.next_due = next_due
        if next_due is not None:
            self.wake(self._contact.seconds_until(next_due))

    def foretold(self, due: int) -> None:
        """A row was scheduled for this store time; looked at then, if no look comes before."""
        if self._contact.knows_time:  # else the first look is still to come
            # Anybody can say so, again and again.
            rest = self._looked + SHORTEST - time.monotonic()
            self.wake(max(rest, self._contact.seconds_until(due)))


REPEAT = 5.0
"""Seconds after which a cancel that was not obeyed is sent again: its claim may have been on its way."""


class CancelAndPause:
    """Passes cancels and pauses on to the pools. Which pool holds a claim is not kept: all are told."""

    def __init__(
        self,
        pools: PeerServer[PoolLink],
        handlers: Iterable[str],
        on_paused: Callable[[frozenset[str]], None],
    ) -> None:
        self._pools = pools
        self._handlers = frozenset(handlers)
        self._on_paused = on_paused
        self._told: dict[Key, float] = {}
        self.paused: frozenset[str] = frozenset()

    def on_pool_up(self, link: PoolLink) -> None:
        """A pool that connects has heard nothing yet."""
        self._told.clear()
        if self.paused:
            link.send(Release(handlers=tuple(sorted(self.paused))))

    def heard(self, cancels: list[Key], paused: Set[str]) -> None:
        """What the store says now."""
        self._cancel(cancels)
        served = {name for link in self._pools.peers.values() for name in link.handlers}
        ours = paused & (served | self._handlers)
        if ours != self.paused:
            new, self.paused = ours - self.paused, frozenset(ours)
            if new:
                self._pools.broadcast(Release(handlers=tuple(sorted(new))))
            self._on_paused(self.paused)

    def _cancel(self, keys: list[Key]) -> None:
        now = time.monotonic()
        self._told = {key: self._told[key] for key in keys if key in self._told}
        for key in keys:
            if now - self._told.get(key, -REPEAT) >= REPEAT:
                self._told[key] = now
                self._pools.broadcast(Cancel(key=key))


class Poll(PeriodicTask):
    """Asks once for all of them: a node that has nothing to do costs its server one statement a poll."""

    name = "looks"

    def __init__(
        self,
        contact: Contact,
        incarnation: bytes,
        poll: float,
        claimer: Claimer,
        orders: CancelAndPause,
        due: DueRows,
    ) -> None:
        super().__init__()
        self._contact = contact
        self._incarnation = incarnation
        self._poll = poll
        self._claimer = claimer
        self._orders = orders
        self._due = due

    def work(self) -> float:
        """One look; what it brought is passed on."""
        wanted = sorted(self._claimer.unknown())
        sight = self._contact.look(lambda tx: poll(tx, self._incarnation, wanted))
        # Pauses first: for what is paused nothing is claimed.
        self._orders.heard(sight.cancels, sight.paused)
        self._due.seen(sight.next_due)
        if wanted:
            self._claimer.found(sight.handlers)
        return jittered(self._poll)
