"""What a program reports on descriptor 3: lines of JSON with progress, extras, saved values, retries."""

from __future__ import annotations

import sys
from typing import Any, Literal

import msgspec

from workerd import json_text, text
from workerd.errors import InvalidValue
from workerd.handler import Context, Retry

MAX_WARNINGS = 3
"""Lines of one run that are named in its log as unreadable; rubbish must not fill it."""
_SHOWN = 80
"""Characters of such a line that are shown."""
_OVERHEAD_BYTES = 1024
"""A line may be longer than the limit of extras by this much."""


class RetryMessage(msgspec.Struct, forbid_unknown_fields=True):
    """`{"retry": {…}}`: the arguments of `workerd.Retry`."""

    after: float | str | None = None
    reason: str = ""
    counted: bool = True
    hold: Literal["group", "limit"] | None = None


class Message(msgspec.Struct):
    """One line; a key that is not known may be one of a later version."""

    progress: float | None = None
    note: str | None = None
    extras: dict[str, Any] | None = None
    save: Any = msgspec.UNSET
    retry: RetryMessage | None = None


class ProgramMessages:
    """The messages of one run.

    `extras`: the newest. `retry`: what the newest wish raises, None without one. Lines that cannot be read
    are left out, the first MAX_WARNINGS of them with a line in the run's log.
    """

    def __init__(self, ctx: Context, max_extras: int) -> None:
        self.extras: dict[str, Any] | None = None
        self.retry: Retry | None = None
        self._ctx = ctx
        self._limit = max_extras + _OVERHEAD_BYTES
        self._partial = b""
        self._skipping = False
        self._warnings = 0

    def take(self, data: bytes) -> None:
        """Take what was read; a line without its end waits for the rest, and is dropped at the limit."""
        *lines, rest = data.split(b"\n")
        for line in lines:
            whole, skipped = self._partial + line, self._skipping
            self._partial, self._skipping = b"", False
            if not skipped and len(whole) <= self._limit and whole.strip():
                self._take_line(whole)
        if not self._skipping:
            self._partial += rest
        if len(self._partial) > self._limit:
            self._warn(self._partial, "it is too long")
            self._partial, self._skipping = b"", True

    def _take_line(self, line: bytes) -> None:
        try:
            json_text.refuse_non_finite("line", line)
            message = msgspec.json.decode(line, type=Message)
            self._act(message)
        except (InvalidValue, ValueError, RecursionError) as error:
            self._warn(line, str(error))

    def _act(self, message: Message) -> None:
        if message.progress is not None or message.note is not None:
            self._ctx.progress(message.progress, message.note)
        if message.extras is not None:
            self.extras = message.extras
        if message.save is not msgspec.UNSET:
            self._ctx.save(message.save)
        if message.retry is not None:
            wish = message.retry
            reason = wish.reason or "The program asked for it."
            self.retry = Retry(reason, wish.after, wish.counted, wish.hold)

    def _warn(self, line: bytes, why: str) -> None:
        self._warnings += 1
        if self._warnings <= MAX_WARNINGS:
            shown = text.one_line(line[:_SHOWN].decode("utf-8", "replace"))
            print(f"workerd: descriptor 3: ignored {shown!r}: {text.one_line(why)}", file=sys.stderr)
