"""The messages between the processes: frozen msgspec structs, one union per direction; never pickles.

Those between a pool and its workers are in `pool.worker_messages`. Every connection begins with `Hello`.
Frames are msgpack behind a four-byte length, the wire form of `multiprocessing.Connection`. Who sends what:

    supervisor -> role or pool   Roster, Drain, Stop, Report, ReadLog
    role or pool -> supervisor   Beat, LogText
    pool -> dispatcher           Hello, Demand, Holdings
    dispatcher -> pool           Claims, Cancel, Release, Inventory, LeaseState
    pool, dispatcher -> ingester Hello, Outcomes, Progress, Traced, StateSaved, Seen, AnnounceAgain,
                                 Barrier
    ingester -> pool, dispatcher Ack, PayloadLimits, StateStored, Announced, BarrierDone; Throughput
                                 (dispatcher only)

The datagram socket `wake` is open to every local client: Scheduled and Freed come from the ingester, NewRows
from processes that enqueued, and Inserting before that; anything else, usually an empty datagram, announces
new rows of any handler.
"""

from __future__ import annotations

from typing import Any

import msgspec

from workerd.job import AttemptRef, Claim
from workerd.outcome import Outcome


class Message(msgspec.Struct, frozen=True, array_like=True, tag_field="t", gc=False):
    """A frame's content; the tag is the class's name."""


# -- between the supervisor and its children ---------------------------------------------------


class LivePool(msgspec.Struct, frozen=True, array_like=True):
    """A pool's process that lives. `life`: a number that no other process of this node had or will have.

    `generation` tells processes of one pool apart that run side by side. `pid`: only this process may say
    that it is this life.
    """

    name: str
    generation: int
    life: int
    pid: int


class DeadPool(msgspec.Struct, frozen=True, array_like=True):
    """A pool's process that was reaped, its handlers, and when it died: CLOCK_MONOTONIC nanoseconds."""

    name: str
    generation: int
    life: int
    pid: int
    handlers: tuple[str, ...]
    died_ns: int


class RoleLife(msgspec.Struct, frozen=True, array_like=True):
    """A process of a role: one that lives, or one of the last that died."""

    name: str
    life: int
    pid: int


class QuarantinedPool(msgspec.Struct, frozen=True, array_like=True):
    """A pool in quarantine; `life`: the one that its quarantine began with; `error`: why."""

    name: str
    life: int
    error: str


class Roster(Message, frozen=True, tag="roster"):
    """Which pools live, and which died since the incarnation began: the newest 100 deaths of each.

    `roles`: those that connect to other roles. `quarantined`: the pools that are, also while they are tried.
    """

    pools: tuple[LivePool, ...]
    dead: tuple[DeadPool, ...]
    roles: tuple[RoleLife, ...] = ()
    quarantined: tuple[QuarantinedPool, ...] = ()

    @property
    def lives(self) -> frozenset[int]:
        """Of the pools that live."""
        return frozenset(pool.life for pool in self.pools)

    @property
    def pids(self) -> dict[int, int]:
        """The process of each life."""
        pids = {role.life: role.pid for role in self.roles}
        pids |= {pool.life: pool.pid for pool in self.dead}
        return pids | {pool.life: pool.pid for pool in self.pools}


class Drain(Message, frozen=True, tag="drain"):
    """Take no new jobs, finish running ones within `seconds`, then interrupt the rest and exit.

    `overlap`: another generation of the pool has taken over, so running jobs are not asked to stop before.
    """

    seconds: float
    overlap: bool = False


class Stop(Message, frozen=True, tag="stop"):
    """Finish what is begun and exit now."""


class Report(Message, frozen=True, tag="report"):
    """Send a Beat with this `token` at once."""

    token: int


Series = tuple[str, tuple[str, ...], list[float]]
"""One metric series: its family, its label values, and what was counted since the sender's last Beat.

A counter has one number, a histogram the sum of the observations and their number in each bucket.
"""


class Beat(Message, frozen=True, tag="beat"):
    """The sender makes progress. `state`: `starting`, `up`, `waiting` (for the store), `draining`, `failed`.

    `trouble`: one sentence about what is wrong, or empty. `info`: what `workerd status` shows of this
    process. `fatal`: an exit status with which the supervisor is to stop a node that is not ready yet.
    `counted`: what the metrics add to their counts.
    """

    state: str
    trouble: str = ""
    info: dict[str, Any] = {}
    token: int = 0
    fatal: int = 0
    counted: list[Series] = []


class ReadLog(Message, frozen=True, tag="read_log"):
    """Send LogText with this `token`: what `attempt` of the job (0: the one that runs) logged after `start`.

    `start`: bytes that are known already.
    """

    token: int
    job: bytes
    attempt: int
    start: int


class LogText(Message, frozen=True, tag="log_text"):
    """Answers ReadLog. `found`: the sender has the log; `until`: the next `start`; `skipped`: bytes lost.

    `ended`: the attempt has ended, this is the last part.
    """

    token: int
    found: bool = False
    attempt: int = 0
    text: str = ""
    until: int = 0
    skipped: int = 0
    ended: bool = False


ToChild = Roster | Drain | Stop | Report | ReadLog
FromChild = Beat | LogText


# -- between pools, dispatcher and ingester ----------------------------------------------------


class Hello(Message, frozen=True, tag="hello"):
    """Introduces the sender: `role` is `pool` or `dispatcher`; `life` as in Roster."""

    role: str
    name: str
    life: int


class Demand(Message, frozen=True, tag="demand"):
    """The pool has received `received` claims on this connection in all and can take `room` more.

    Because of the count, a Demand that crosses Claims on the way does no harm. `handlers`: those to
    claim for; none stops claiming.
    """

    received: int
    room: int
    handlers: tuple[str, ...]


class Claims(Message, frozen=True, tag="claims"):
    """Claims of this node, handed over to the pool."""

    claims: list[Claim]


class Cancel(Message, frozen=True, tag="cancel"):
    """End this attempt as `cancelled`: at once if it waits, by signal, then by force, if it runs."""

    key: AttemptRef


class Release(Message, frozen=True, tag="release"):
    """Release the waiting claims, not the running ones, of these handlers; empty: of all."""

    handlers: tuple[str, ...]


class LeaseState(Message, frozen=True, tag="lease_state"):
    """Whether the lease is certainly held; if not, start nothing and set ctx.stopping.

    until_ns
        CLOCK_MONOTONIC nanoseconds, after which nothing is started unless another LeaseState has come: the
        dispatcher may hang, or the whole node have been stopped.
    """

    held: bool
    until_ns: int


class Inventory(Message, frozen=True, tag="inventory"):
    """Ask for Holdings; all Claims sent before this are read before the answer is made."""

    token: int


class Holdings(Message, frozen=True, tag="holdings"):
    """All claims that wait, run, or whose outcomes are unacknowledged; answers Inventory `token`.

    `claimed_at`: the store time of each claim, microseconds.
    """

    token: int
    keys: list[AttemptRef]
    claimed_at: list[int]


class Outcomes(Message, frozen=True, tag="outcomes"):
    """Outcomes numbered `first`, `first + 1`, …; acknowledged by number, resent on a new connection."""

    first: int
    outcomes: list[Outcome]


class Progress(Message, frozen=True, tag="progress"):
    """Progress that a running attempt reported; not acknowledged, for losing it does no harm.

    `claimed_at`, `started_at`: store time, microseconds.
    """

    id: bytes
    attempt: int
    claimed_at: int
    started_at: int
    pid: int
    progress: float | None
    note: str | None


class StateSaved(Message, frozen=True, tag="state_saved"):
    """What a running attempt has saved; sent again on a new connection until StateStored names it.

    `number` counts the saves of the attempt. `wait`: the run waits until it is committed. `claimed_at`,
    `started_at`: store time, microseconds.
    """

    id: bytes
    attempt: int
    claimed_at: int
    started_at: int
    pid: int
    state: bytes
    number: int
    wait: bool = False

    @property
    def ref(self) -> AttemptRef:
        return AttemptRef(self.id, self.attempt)


class StateStored(Message, frozen=True, tag="state_stored"):
    """The state saved as `number` is committed, or (`ours` is false) the attempt is no longer this node's."""

    id: bytes
    attempt: int
    number: int
    ours: bool

    @property
    def ref(self) -> AttemptRef:
        return AttemptRef(self.id, self.attempt)


class Traced(Message, frozen=True, tag="traced"):
    """Spans that ended in a run which goes on, as `workerd.tracing.spans` encodes them; not acknowledged."""

    spans: bytes


class Seen(Message, frozen=True, tag="seen"):
    """A handler that the pool has loaded, for the table `workerd_handlers`; `signature` is JSON."""

    handler: str
    signature: bytes | None


class AnnounceAgain(Message, frozen=True, tag="announce_again"):
    """The node was registered anew: write again which handlers its connected pools have loaded.

    `served`: those that the node is configured with; a pool that ends may have had others.
    """

    served: frozenset[str]


class Announced(Message, frozen=True, tag="announced"):
    """A handler that was Seen is in the store, or will be there when the store is back."""

    handler: str


class Barrier(Message, frozen=True, tag="barrier"):
    """Read the sockets of dead lives to their end, commit everything, then send BarrierDone.

    `lives`: dead life -> its process, for the receiver's Roster may not name its death yet. `ended`: tell
    which attempts were ended.
    """

    token: int
    lives: dict[int, int]
    ended: bool = False


class Ack(Message, frozen=True, tag="ack"):
    """Every outcome of this connection numbered below `below` is durable (law 6: ack after durable)."""

    below: int


class PayloadLimits(Message, frozen=True, tag="payload_limits"):
    """Bytes of the largest payload that the store takes; sent after Hello and whenever it changes."""

    max_payload: int


class BarrierDone(Message, frozen=True, tag="barrier_done"):
    """Everything received before the Barrier is committed.

    `ended`: attempts whose end was written since `ended_since_ns`, monotonic, if the Barrier asks for them.
    """

    token: int
    ended: list[AttemptRef] = []
    ended_since_ns: int = 0


class Throughput(Message, frozen=True, tag="throughput"):
    """Of each handler, the jobs recorded as ended within the last minute, and the jobs that came.

    `handlers`: name -> (came, ended). A job comes when it becomes due for the first time; here are those
    whose first attempt has ended since.
    """

    handlers: dict[str, tuple[int, int]]


class Scheduled(Message, frozen=True, tag="scheduled"):
    """A row becomes due at this store time, microseconds: possibly before the next poll."""

    due: int


class Inserting(Message, frozen=True, tag="inserting"):
    """Rows of these handlers are being inserted: they may be seen before the sender is told of it."""

    handlers: tuple[str, ...]


class NewRows(Message, frozen=True, tag="new"):
    """There are new rows of these handlers; `job`: the only new job, if it is one."""

    handlers: tuple[str, ...]
    job: bytes = b""


class Freed(Message, frozen=True, tag="freed"):
    """Attempts have ended that used these limits: what waits for one of them may fit now."""

    limits: tuple[str, ...]


ToDispatcher = Hello | Demand | Holdings
FromDispatcher = Claims | Cancel | Release | Inventory | LeaseState
ToIngester = Hello | Outcomes | Progress | Traced | StateSaved | Seen | AnnounceAgain | Barrier
FromIngester = Ack | PayloadLimits | StateStored | Announced | BarrierDone | Throughput


def prepare() -> None:
    """Build the decoding tables of all messages once; processes forked later share their memory."""
    unions: tuple[Any, ...] = (
        ToChild, FromChild, ToDispatcher, FromDispatcher, ToIngester, FromIngester, Scheduled,
    )  # fmt: skip
    for union in unions:
        msgspec.msgpack.Decoder(union)
