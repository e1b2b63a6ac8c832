"""The messages between a pool and its workers: frozen msgspec structs, one union per direction.

A pool sends Assignment, in shared memory or over the channel when it is too long, and Kept; a worker sends
Loaded, Progressed, Traced, Saved, Unstarted and RunResult, and LogRecord as JSON in its output pipe.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from workerd.job import Claim
from workerd.messages import Message, Traced
from workerd.outcome import RunResult


class Assignment(Message, frozen=True, tag="assignment"):
    """Run this claim. `deadline`: seconds until the soft deadline, 0 for none; `max_payload`: bytes."""

    serial: int
    claim: Claim
    deadline: float
    max_payload: int


class HandlerSpec(msgspec.Struct, frozen=True, array_like=True):
    """A loaded handler: the options given to its decorator, and its signature in JSON.

    `aliases`: class names in the effective policy -> the `module.qualname` that each stands for.
    `has_cooler`: whether it is a class that decides the pause before its next run.
    """

    name: str
    options: dict[str, Any]
    signature: bytes | None
    aliases: dict[str, str]
    has_cooler: bool = False


class Loaded(Message, frozen=True, tag="loaded"):
    """The worker is ready, or cannot be: then `error` says why.

    With `preload = false`, `specs` are the handlers that it imported, and `sources` the imported files
    with the time of their last change, nanoseconds.
    """

    specs: list[HandlerSpec] | None
    error: str | None = None
    sources: dict[str, int] = msgspec.field(default_factory=dict)


class Progressed(Message, frozen=True, tag="progressed"):
    """The handler called ctx.progress in run `serial`."""

    serial: int
    progress: float | None
    note: str | None


class Saved(Message, frozen=True, tag="saved"):
    """The handler saved `state`, as JSON, in run `serial`; answered with Kept.

    `number` counts the saves of a worker. `wait`: answer when it is committed, not when it is safe from the
    worker's death.
    """

    serial: int
    number: int
    state: bytes
    wait: bool


class Unstarted(Message, frozen=True, tag="unstarted"):
    """The worker took run `serial` out of its queue and did not begin it, since the lease was over."""

    serial: int


class Kept(Message, frozen=True, tag="kept"):
    """Answers Saved `number`; `ours` is false if the attempt is no longer this node's."""

    number: int
    ours: bool = True


class LogRecord(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a handler logged in run `serial`; `exception`: a traceback."""

    level: Literal["debug", "info", "warning", "error", "critical"]
    event: str
    serial: int = 0
    fields: dict[str, bool | int | float | str | None] = {}
    exception: str | None = None


ToWorker = Assignment | Kept
FromWorker = Loaded | Progressed | Traced | Saved | Unstarted | RunResult


def prepare() -> None:
    """Build the decoding tables once; processes forked later share their memory."""
    for union in (ToWorker, FromWorker):
        msgspec.msgpack.Decoder(union)
