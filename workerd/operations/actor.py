"""Who acts, and by which way in."""

from __future__ import annotations

from typing import Literal, NamedTuple


class Actor(NamedTuple):
    """A person or program; `name` is what `paused_by` and the log show."""

    name: str
    via: Literal["http", "ui", "cli", "client"]
