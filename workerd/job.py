"""A job's states and ids, and the claim of an attempt. No I/O."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Iterable
from enum import StrEnum
from typing import NamedTuple

import msgspec
import uuid_utils

from workerd.errors import InvalidValue


class Status(StrEnum):
    """The column `status` of `workerd_jobs`: the state of an attempt."""

    SCHEDULED = "scheduled"  # due later; then the dispatcher makes it `new`
    NEW = "new"  # may be claimed
    INPROGRESS = "inprogress"  # claimed by a node
    COMPLETED = "completed"
    RETRY = "retry"  # ended; the next attempt has its own row
    FAILURE = "failure"
    CANCELLED = "cancelled"


LIVE = frozenset({Status.SCHEDULED, Status.NEW, Status.INPROGRESS})
ENDED = frozenset({Status.COMPLETED, Status.FAILURE, Status.CANCELLED})

TRANSITIONS: dict[Status, frozenset[Status]] = {
    Status.SCHEDULED: frozenset({Status.NEW, Status.CANCELLED}),
    Status.NEW: frozenset({Status.INPROGRESS, Status.CANCELLED}),
    Status.INPROGRESS: frozenset(
        {Status.NEW, Status.COMPLETED, Status.RETRY, Status.FAILURE, Status.CANCELLED}
    ),
    # By a person only: the attempt is closed as `retry` and the next one inserted.
    Status.COMPLETED: frozenset({Status.RETRY}),
    Status.FAILURE: frozenset({Status.RETRY}),
    Status.CANCELLED: frozenset({Status.RETRY}),
    Status.RETRY: frozenset(),
}

COOLER_KEY = "~cooler"
"""The reserved `unique_key` of the only live row of a handler or workflow with an interval."""

NAME_LIMIT = 191
"""Characters in the name of a handler, key, step or node: the limit of an index."""
MAX_SHOWN_IDS = 10


def new_id() -> bytes:
    """A new job id: a UUIDv7 (RFC 9562), 16 bytes, ordered by time, so that new rows are adjacent."""
    return uuid_utils.uuid7().bytes


def id_text(job_id: bytes) -> str:
    """The id as UUID text, as displayed and in JSON."""
    digits = job_id.hex()  # called for every job: five times as fast as uuid.UUID
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def parse_id(text: str) -> bytes:
    """The 16 bytes of an id given as UUID text. Raises InvalidValue."""
    try:
        return uuid.UUID(text).bytes
    except (ValueError, AttributeError, TypeError) as error:
        raise InvalidValue(f"expected a job id such as {id_text(bytes(16))}, got {text!r}") from error


def shown_ids(ids: Iterable[bytes]) -> str:
    """The first of these ids as text, for a line of the log."""
    return ", ".join(id_text(one) for one in itertools.islice(ids, MAX_SHOWN_IDS))


def id_bytes(ident: str | uuid.UUID) -> bytes:
    """The 16 bytes of an id, as text or as UUID. Raises InvalidValue for malformed text."""
    return ident.bytes if isinstance(ident, uuid.UUID) else parse_id(ident)


class AttemptRef(NamedTuple):
    """The primary key of a row, by which processes name an attempt to each other."""

    id: bytes
    attempt: int


class LimitUse(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What an attempt took of a limit, by `name`: slots of the limit and of its `group`, and starts of rates.

    `start_us`, `group_start_us`: by how much its start moved the rate of the limit, and of the group. `slot`,
    `group_slot`: the numbers of its slots.
    """

    name: str
    group: str
    start_us: int = 0
    group_start_us: int = 0
    slot: int | None = None
    group_slot: int | None = None

    @property
    def has_slots(self) -> bool:
        return self.slot is not None or self.group_slot is not None


class ClaimedAttempt(msgspec.Struct, frozen=True, array_like=True, kw_only=True, gc=False):
    """An attempt that a node has claimed: what law 1 names, and what deciding how it ended needs.

    `claimed_at`: store time, microseconds.
    """

    id: bytes
    attempt: int
    claimed_at: int
    handler: str
    failures: int = 0
    crashes: int = 0
    losses: int = 0
    max_attempts: int | None = None
    unique_key: str | None = None
    request_id: bytes | None = None
    step: int | None = None
    name: str | None = None
    limited: LimitUse | None = None

    @property
    def ref(self) -> AttemptRef:
        return AttemptRef(self.id, self.attempt)


class HeldAttempt(ClaimedAttempt, frozen=True, array_like=True, kw_only=True, gc=False):
    """A claimed attempt as the store has it: with what its pool reported while it ran, if it did.

    `started_at`: store time, microseconds.
    """

    started_at: int | None = None
    pid: int | None = None


class Claim(ClaimedAttempt, frozen=True, array_like=True, kw_only=True, gc=False):
    """A claimed attempt with everything that running it takes.

    `run_at`: store time, microseconds. `mono`: the monotonic nanosecond at which `claimed_at` was read,
    so that later store times follow without asking the store (law 8). `vars`, `meta`, `params`, `extras`:
    JSON text as bytes, not decoded before the worker. `needs`: JSON payloads by job name; `failed`: those
    that failed. `state`: what earlier attempts saved. `is_ahead`: by the turns of groups it starts before
    those of its priority that were claimed earlier.
    """

    mono: int
    vars: bytes
    run_at: int
    meta: bytes | None = None
    deadline_ms: int | None = None
    workflow: str | None = None
    params: bytes | None = None
    extras: bytes | None = None
    needs: dict[str, bytes] | None = None
    state: bytes | None = None
    is_ahead: bool = False
    failed: list[str] | None = None
    priority: int = 0
