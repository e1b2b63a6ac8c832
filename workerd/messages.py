"""What the processes say to each other: frozen msgspec structs, one union per direction (law 9).

Every connection begins with `Hello`. Frames are msgpack behind a four-byte length, the wire form of
`multiprocessing.Connection`. Who sends what:

    supervisor -> role or pool   Roster, Drain, Stop, Report
    role or pool -> supervisor   Beat
    pool -> dispatcher           Hello, Demand, Holdings
    dispatcher -> pool           Claims, Cancel, GiveBack, Inventory, LeaseState
    pool, dispatcher -> ingester Hello, Outcomes, Progress, Seen, Barrier
    ingester -> pool, dispatcher Ack, Limits, BarrierDone
    pool -> worker               Assignment (by the lane, one datagram each; a long one as the others)
    worker -> pool               Loaded, Progressed, Ending

The socket `wake` takes datagrams from anybody: Scheduled from the ingester, anything else (nothing, as a
rule) says that there is new work.
"""

from __future__ import annotations

from typing import Any

import msgspec

from workerd.job import Claim, Key
from workerd.outcome import Outcome, RunResult


class Message(msgspec.Struct, frozen=True, array_like=True, tag_field="t", gc=False):
    """A frame's content; the tag is the class's name."""


# -- between the supervisor and its children ---------------------------------------------------


class DeadPool(msgspec.Struct, frozen=True, array_like=True):
    """A pool process that was reaped: its handlers and the monotonic nanosecond of its death."""

    name: str
    life: int
    handlers: tuple[str, ...]
    died_ns: int


class Roster(Message, frozen=True, tag="roster"):
    """Who lives: pool name -> life (a number that no other process of this node had or will have)."""

    pools: dict[str, int]
    dead: tuple[DeadPool, ...]  # since the incarnation began, the newest 100 of each pool


class Drain(Message, frozen=True, tag="drain"):
    """Take nothing new, finish what runs within `seconds`, then interrupt it and end."""

    seconds: float


class Stop(Message, frozen=True, tag="stop"):
    """Finish what is begun and end now."""


class Report(Message, frozen=True, tag="report"):
    """Send a Beat at once; `token` comes back in it."""

    token: int


class Beat(Message, frozen=True, tag="beat"):
    """I made progress. `state`: `starting`, `up`, `waiting` (for the store), `draining`, `failed`.

    `info` is what `workerd status` and the metrics show of this process; `trouble` is one sentence
    for a person when something is wrong, empty otherwise; `fatal` asks the supervisor to stop the
    node with that exit status.
    """

    state: str
    trouble: str = ""
    info: dict[str, Any] = {}
    token: int = 0
    fatal: int = 0


ToChild = Roster | Drain | Stop | Report
FromChild = Beat


# -- between pools, dispatcher and ingester ----------------------------------------------------


class Hello(Message, frozen=True, tag="hello"):
    """Who I am: `pool` with its name, or a role. `life` as in Roster."""

    role: str
    name: str
    life: int


class Demand(Message, frozen=True, tag="demand"):
    """I have received `received` claims on this connection in all and can take `room` more.

    Counting what was received makes a Demand that crosses Claims on the way harmless. `handlers` are
    those that may be claimed for; an empty tuple stops all.
    """

    received: int
    room: int
    handlers: tuple[str, ...]


class Claims(Message, frozen=True, tag="claims"):
    """Attempts of this node that are now the pool's."""

    claims: list[Claim]


class Cancel(Message, frozen=True, tag="cancel"):
    """End this attempt as `cancelled`: at once if it waits, by signal and then force if it runs."""

    key: Key


class Release(Message, frozen=True, tag="giveback"):
    """Release what waits (not what runs) of these handlers; empty: of all."""

    handlers: tuple[str, ...]


class LeaseState(Message, frozen=True, tag="lease"):
    """`held` false: the lease is not certain any more, start nothing and set ctx.stopping."""

    held: bool


class Inventory(Message, frozen=True, tag="inventory"):
    """Say what you hold; every Claims sent before this was read before the answer is made."""

    token: int


class Holdings(Message, frozen=True, tag="holdings"):
    """All claims that are waiting, running or not acknowledged, in answer to Inventory `token`."""

    token: int
    keys: list[Key]


class Outcomes(Message, frozen=True, tag="outcomes"):
    """Outcomes numbered `first`, `first + 1`, …; acknowledged by number, sent again on a new connection."""

    first: int
    outcomes: list[Outcome]


class Progress(Message, frozen=True, tag="progress"):
    """What a running attempt says of itself; lost without harm, so it is not acknowledged."""

    id: bytes
    attempt: int
    claimed_at: int
    started_at: int
    pid: int
    progress: float | None
    note: str | None


class Seen(Message, frozen=True, tag="seen"):
    """A handler that this node has loaded, for `workerd_handlers`; `signature` is JSON or None."""

    handler: str
    signature: bytes | None


class Barrier(Message, frozen=True, tag="barrier"):
    """Read the sockets of these dead lives to their end, write or replay everything, then answer."""

    token: int
    lives: tuple[int, ...]


class Ack(Message, frozen=True, tag="ack"):
    """Every outcome of this connection numbered below `below` is durable (law 6)."""

    below: int


class PayloadLimits(Message, frozen=True, tag="limits"):
    """What the store can take: bytes of one payload. Sent after Hello and when it changes."""

    max_payload: int


class BarrierDone(Message, frozen=True, tag="barrier_done"):
    """Everything that was received before the Barrier is committed in the store."""

    token: int


class Scheduled(Message, frozen=True, tag="scheduled"):
    """A row was scheduled that becomes due at this store time (µs), sooner than the next look may be."""

    due: int


ToDispatcher = Hello | Demand | Holdings
FromDispatcher = Claims | Cancel | Release | Inventory | LeaseState
ToIngester = Hello | Outcomes | Progress | Seen | Barrier
FromIngester = Ack | PayloadLimits | BarrierDone


# -- between a pool and its workers ------------------------------------------------------------


class Assignment(Message, frozen=True, tag="assignment"):
    """Run this claim. `deadline`: seconds until the soft deadline, 0 for none; limits in bytes."""

    serial: int
    claim: Claim
    deadline: float
    max_payload: int


class HandlerSpec(msgspec.Struct, frozen=True, array_like=True):
    """What loading a handler told: the decorator's options (only those given), and its signature.

    `aliases` maps every class name of the effective policy to the `module.qualname` it stands for.
    """

    name: str
    options: dict[str, Any]
    signature: bytes | None
    aliases: dict[str, str]


class Loaded(Message, frozen=True, tag="loaded"):
    """The worker is ready; `specs` only if it imported the handlers itself (`preload = false`).

    `sources`: the files that were imported for that, with the time of their last change in nanoseconds.
    """

    specs: list[HandlerSpec] | None
    error: str | None = None
    sources: dict[str, int] = {}


class Progressed(Message, frozen=True, tag="progressed"):
    """ctx.progress was called in run `serial`."""

    serial: int
    progress: float | None
    note: str | None


ToWorker = Assignment
FromWorker = Loaded | Progressed | RunResult


def prepare() -> None:
    """Work out what decoding any message takes, once: processes that are forked later share it."""
    unions: tuple[Any, ...] = (
        ToChild, FromChild, ToDispatcher, FromDispatcher, ToIngester, FromIngester, ToWorker, FromWorker,
        Scheduled,
    )  # fmt: skip
    for union in unions:
        msgspec.msgpack.Decoder(union)
