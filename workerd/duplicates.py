"""What becomes of a job whose unique key a live job has, and of one that may exist once in a window. Pure."""

from __future__ import annotations

import hashlib
from enum import StrEnum
from typing import Literal

from workerd.job import Status

FOLLOWER_PREFIX = "~next:"
"""Begins the reserved key of the one job that waits until the running job of a key has ended."""
FOLLOWER_KEYS = (FOLLOWER_PREFIX, FOLLOWER_PREFIX + "g")
"""From which key on, and before which, all of these are: the rest of them is hexadecimal."""
WINDOW_PREFIX = "~for:"
"""Begins the reserved key of a job that may exist once in a window."""


class OnConflict(StrEnum):
    """What enqueueing does where a live job of the handler has the unique key."""

    KEEP = "keep"  # nothing: that job is the answer
    REPLACE = "replace"  # a waiting one gets the new data; behind a running one another waits
    DEBOUNCE = "debounce"  # the same, and it is due `delay` later, at most `max_delay` after it was made
    FOLLOW = "follow"  # the same as `replace`


Action = Literal["insert", "replace_holder", "insert_follower", "replace_follower"]
Holder = Literal["none", "waiting", "running"]

ACTIONS: dict[tuple[Holder, bool], Action] = {
    ("none", False): "insert",
    ("none", True): "replace_follower",
    ("waiting", False): "replace_holder",
    ("waiting", True): "replace_follower",  # it runs last, so that the newest data does
    ("running", False): "insert_follower",
    ("running", True): "replace_follower",
}
"""(state of the job that holds the key, whether one waits behind it) -> what a new one with the key does."""


def holder_state(status: Status | None) -> Holder:
    """What the status of the job that holds the key means for a new one; None: no live job has it."""
    if status is None:
        return "none"
    return "running" if status is Status.INPROGRESS else "waiting"


def follower_key(key: str) -> str:
    """The reserved unique key of the job that waits behind the running one with this key."""
    return FOLLOWER_PREFIX + hashlib.sha256(key.encode()).hexdigest()


def is_follower(unique_key: str | None) -> bool:
    """Whether this is the key of a job that waits until another has ended."""
    return unique_key is not None and unique_key.startswith(FOLLOWER_PREFIX)


def window_key(key: str, window_us: int, now: int) -> str:
    """The reserved unique key of the job that holds this window."""
    text = f"{window_us}\0{now // window_us}\0{key}"
    return WINDOW_PREFIX + hashlib.sha256(text.encode()).hexdigest()


def window_id(handler: str, key: str, window_us: int, now: int) -> bytes:
    """The id, a UUIDv7, of the only job of a handler and key in this window; windows count from 1970."""
    number = now // window_us
    text = f"{handler}\0{window_us}\0{number}\0{key}"
    random = bytearray(hashlib.sha256(text.encode()).digest()[:10])
    random[0] = 0x70 | random[0] & 0x0F
    random[2] = 0x80 | random[2] & 0x3F
    begin_ms = number * window_us // 1000
    return begin_ms.to_bytes(6, "big") + bytes(random)


def due_at(now: int, delay: int, created_at: int, max_delay: int | None) -> int:
    """When a debounced job is due: `delay` after the last enqueue, at most `max_delay` after it was made."""
    due = now + delay
    return due if max_delay is None else max(now, min(due, created_at + max_delay))
