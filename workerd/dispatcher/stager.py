"""Makes rows claimable when they are due, and polls for new jobs, cancels and pauses; the wake-up socket."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import msgspec

from workerd.config.workflow_config import WAIT_HANDLER
from workerd.dispatcher.claimer import Claimer
from workerd.dispatcher.limited_handlers import LimitedHandlers
from workerd.dispatcher.monitored_store import MonitoredStore
from workerd.dispatcher.pool_links import PoolLink, PoolLinks
from workerd.dispatcher.tasks import TaskRunner
from workerd.dispatcher.workflow_tasks import WorkflowPickup
from workerd.job import AttemptRef
from workerd.messages import Cancel, Freed, NewRows, Release, Scheduled
from workerd.runtime.loop import Loop
from workerd.runtime.sockets import bind_datagram
from workerd.runtime.wake_ups import MAX_DATAGRAM_BYTES
from workerd.store import claims, polls
from workerd.store.polls import PollResult

MAX_DATAGRAMS = 1000
"""Wake-ups read in one turn: a flood of them must not keep the loop from everything else."""
FULL_QUEUE = 5
"""Wake-ups read in one turn among which there may have been one more that was dropped: the kernel keeps 11 by
default (`net.unix.max_dgram_qlen`), and who sends to a full queue is told that nobody waits for it."""
MAX_DUE_ROWS = 500
"""Rows that one transaction makes `new`."""
SHORTEST_PAUSE_S = 0.002
"""Between two transactions for due rows; not 0, since another node may hold a due row locked."""
CANCEL_REPEAT_S = 5.0
"""Until a cancel that is still pending is sent again: its claim may have been in transit."""


class Stager:
    """Makes scheduled rows `new` once they are due, and passes on what every poll of the store brings.

    `on_expired` is called when there are rows that have expired.

    promoted
        Rows made `new` since the start.
    paused
        Handlers of this node that are paused.
    on_polled
        Called with what every poll found.
    """

    def __init__(
        self,
        tasks: TaskRunner,
        store: MonitoredStore,
        pools: PoolLinks,
        claimer: Claimer,
        workflows: WorkflowPickup,
        handlers: Iterable[str],
        incarnation: bytes,
        limited: LimitedHandlers,
        on_expired: Callable[[], None] = lambda: None,
    ) -> None:
        self._on_expired = on_expired
        self._tasks = tasks
        self._store = store
        self._pools = pools
        self._claimer = claimer
        self._workflows = workflows
        self._handlers = frozenset(handlers)
        self._incarnation = incarnation
        self._limited = limited
        self._holds: frozenset[tuple[str, int]] = frozenset()  # that the pools were told of
        self._promoted_at = 0.0
        self._cancels: dict[AttemptRef, float] = {}  # those under way, and when they were last sent
        self.on_polled: Callable[[PollResult], object] | None = None
        self.promoted = 0
        self.paused: frozenset[str] = frozenset()

    def announce(self, names: Iterable[str] | None = None) -> None:
        """New rows exist for these handlers or workflows; None: for any."""
        self._claimer.announce(names)
        self._workflows.announce(names)

    # -- due rows

    def promote_due(self) -> float | None:
        """One slice of due rows; sleeps until the next one is due."""
        self._promoted_at = time.monotonic()
        promoted = self._store.run(lambda tx: claims.promote_due(tx, MAX_DUE_ROWS))
        if promoted.count:
            self.promoted += promoted.count
            self.announce(promoted.handlers)
        if promoted.expired:
            self._on_expired()
        if promoted.full:
            return 0.0
        if promoted.next_due is None:
            return None
        return max(SHORTEST_PAUSE_S, self._store.seconds_until(promoted.next_due))

    def on_scheduled(self, due: int) -> None:
        """A wake-up announced a row that becomes due at this store time."""
        if self._store.knows_time:  # else the first slice is still to come
            # Not at once: any local program may send this, again and again.
            pause_s = self._promoted_at + SHORTEST_PAUSE_S - time.monotonic()
            self._tasks.wake(self.promote_due, max(pause_s, self._store.seconds_until(due)))

    # -- polls

    def poll(self) -> None:
        """One combined query: new jobs, pauses, cancels, next due time."""
        handlers = sorted(self._claimer.to_poll())
        polled = [*handlers, WAIT_HANDLER]
        parking = self._limited.parking
        holds_since = self._store.now() if self._limited.has_limits else None
        result = self._store.read_one(
            lambda tx: polls.poll(tx, self._incarnation, polled, parking, holds_since)
        )
        self._propagate_holds(result.holds)
        self._propagate_pauses(result)  # before the new jobs: paused handlers are not claimed
        self._propagate_cancels(result.cancels)
        if result.next_due is not None:
            self._tasks.wake(self.promote_due, self._store.seconds_until(result.next_due))
        if self.on_polled is not None:
            self.on_polled(result)
        if handlers:
            self._claimer.polled(result.handlers - {WAIT_HANDLER})

    def _propagate_holds(self, holds: frozenset[tuple[str, int]]) -> None:
        """What waits in pools and is held now is released; what is not held is claimed again at once."""
        new, self._holds = holds - self._holds, holds
        handlers = self._limited.of_limit(limit for limit, _ in new)
        if handlers:
            self._pools.broadcast(Release(handlers=tuple(sorted(handlers))))

    def on_pool_up(self, link: PoolLink) -> None:
        """A pool connected: it has missed what was sent before."""
        self._cancels.clear()
        if self.paused:
            link.send(Release(handlers=tuple(sorted(self.paused))))

    def _propagate_pauses(self, result: PollResult) -> None:
        served = {name for link in self._pools.peers.values() for name in link.handlers}
        paused = frozenset(result.paused & (served | self._handlers))
        if paused == self.paused:
            return
        new, self.paused = paused - self.paused, paused
        if new:
            self._pools.broadcast(Release(handlers=tuple(sorted(new))))
        self._claimer.pause(paused)

    def _propagate_cancels(self, keys: list[AttemptRef]) -> None:
        """To all pools: which of them holds a claim is not known here."""
        now = time.monotonic()
        self._cancels = {key: self._cancels[key] for key in keys if key in self._cancels}
        for key in keys:
            if now - self._cancels.get(key, -CANCEL_REPEAT_S) >= CANCEL_REPEAT_S:
                self._cancels[key] = now
                self._pools.broadcast(Cancel(key=key))


class WakeSocket:
    """Reads wake-ups; a thousand of them are worth one.

    `on_new`: there are new rows, of these handlers or, None, of any. `on_freed`: something of these limits
    was given back. `on_scheduled`: a row becomes due at this store time, microseconds.
    """

    def __init__(
        self,
        loop: Loop,
        path: Path,
        on_new: Callable[[Iterable[str] | None], None],
        on_freed: Callable[[Iterable[str]], None],
        on_scheduled: Callable[[int], None],
    ) -> None:
        self._loop = loop
        self._on_new = on_new
        self._on_freed = on_freed
        self._on_scheduled = on_scheduled
        self._decoder = msgspec.msgpack.Decoder(Freed | NewRows | Scheduled)
        self._socket = bind_datagram(path, 0o666)

    def start(self) -> None:
        """Listen from now on."""
        self._loop.on_readable(self._socket.fileno(), self._read, rank=2)

    def _received(self) -> Iterator[bytes]:
        with contextlib.suppress(BlockingIOError):
            for _ in range(MAX_DATAGRAMS):
                yield self._socket.recv(MAX_DATAGRAM_BYTES)

    def _read(self) -> None:
        received = list(self._received())
        due: list[int] = []
        freed: set[str] = set()
        new: set[str] = set()
        is_any = len(received) >= FULL_QUEUE
        for datagram in set(received):
            try:
                message = self._decoder.decode(datagram)
            except (msgspec.MsgspecError, ValueError, RecursionError):
                is_any = True
                continue
            if isinstance(message, NewRows):
                new.update(message.handlers)
            elif isinstance(message, Freed):
                freed.update(message.limits)
            else:
                due.append(message.due)
        if freed:
            self._on_freed(freed)
        if due:
            self._on_scheduled(min(due))
        if new or is_any:
            self._on_new(None if is_any else new)
