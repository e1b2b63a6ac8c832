"""Who performs an operation, and through which interface."""

from __future__ import annotations

from typing import Literal, NamedTuple


class Actor(NamedTuple):
    """A person or program; `name` is stored as `paused_by`."""

    name: str
    via: Literal["http", "ui", "cli", "client"]
