"""What the routes answer, as types: /schema is made of them, and tests hold the routes to it."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from workerd.client.model import Attempt, Enqueued, Job, Request

__all__ = [
    "Attempt", "Bulk", "Done", "Enqueued", "Handler", "Handlers", "Heartbeat", "Job", "Jobs", "Made", "Node",
    "Nodes", "Problem", "Ready", "Request", "Requests", "Schedule", "Schedules",
]  # fmt: skip

Time = str | None


class Problem(msgspec.Struct, kw_only=True):
    """An error (RFC 9457). `detail`: one sentence on what was expected and what to do."""

    type: str
    title: str
    status: int
    detail: str


class Bulk(msgspec.Struct):
    """The jobs of a bulk, in its order."""

    items: list[Enqueued]


class Jobs(msgspec.Struct, kw_only=True):
    """Jobs, newest first, without payloads and attempts. `next`: the next page's `after`, null at the end."""

    jobs: list[Job]
    next: str | None


class Requests(msgspec.Struct, kw_only=True):
    """Requests, newest first, without their jobs."""

    requests: list[Request]
    next: str | None


class Handler(msgspec.Struct, kw_only=True):
    """A handler, with the live nodes that have it. `known`: some node has loaded it."""

    name: str
    known: bool
    signature: Any
    nodes: list[str]
    seen_at: Time
    paused_at: Time
    paused_by: str | None
    pause_reason: str | None


class Handlers(msgspec.Struct, kw_only=True):
    """All handlers."""

    handlers: list[Handler]
    next: None


class Node(msgspec.Struct, kw_only=True):
    """A running daemon, or one whose lease is over."""

    id: str
    name: str
    host: str
    pid: int | None
    version: str
    started_at: Time
    lease_until: Time
    state: Literal["up", "lost"]


class Nodes(msgspec.Struct, kw_only=True):
    """All nodes."""

    nodes: list[Node]
    next: None


class Schedule(msgspec.Struct, kw_only=True):
    """What recurs. `last_job`: the id of the job, or of the request of a workflow."""

    name: str
    kind: Literal["cron", "cooler"]
    expression: str
    timezone: str
    next_at: Time
    last_tick: Time
    last_job: str | None
    last_status: str | None
    last_end: Time
    paused_at: Time
    paused_by: str | None


class Schedules(msgspec.Struct, kw_only=True):
    """All schedules."""

    schedules: list[Schedule]
    next: None


class Made(msgspec.Struct):
    """The job, or the request of a workflow, that was begun."""

    id: str


class Done(msgspec.Struct):
    """It was done."""

    ok: bool


class Heartbeat(msgspec.Struct):
    """The process answers."""

    status: Literal["ok"]


class Ready(msgspec.Struct, kw_only=True):
    """The node is ready. `quarantined`: pools that are held back, and why."""

    ready: bool
    quarantined: dict[str, str | None]
