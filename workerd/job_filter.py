"""Which jobs are meant: what lists, searches and acts on many jobs filter by. No I/O."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from datetime import datetime
from enum import StrEnum
from typing import Any, NamedTuple, TypedDict

from workerd.clock import from_rfc3339, to_rfc3339
from workerd.errors import InvalidValue
from workerd.fingerprint import parse as parse_fingerprint
from workerd.job import NAME_LIMIT, Status, id_bytes, id_text
from workerd.outcome import Reason

MAX_META_KEYS = 20
MAX_META_CHARS = 10_000
"""Of the value that one key must have."""


class JobFilter(NamedTuple):
    """Which jobs are meant. `since` (included) and `until` (excluded): store times of their creation.

    `reason`: of the newest attempt; `error`: the fingerprint of its error; `request`: an id; `meta`: texts by
    key.
    """

    handler: str | None = None
    status: Status | None = None
    since: int | None = None
    until: int | None = None
    reason: str | None = None
    error: bytes | None = None
    group: str | None = None
    request: bytes | None = None
    meta: Mapping[str, str] | None = None

    @property
    def is_empty(self) -> bool:
        """Whether it means all jobs."""
        return all(value is None for value in self._replace(meta=self.meta or None))

    @property
    def narrow(self) -> bool:
        """Whether it has conditions that no index has, other than times."""
        return bool(self.conditions or self.meta)

    @property
    def conditions(self) -> tuple[tuple[str, object], ...]:
        """Those that are columns without an index of jobs, and their values."""
        given = (("reason", self.reason), ("fingerprint", self.error), ("group_key", self.group))
        return tuple((name, value) for name, value in given if value is not None)

    def check_unicode(self) -> None:
        """Raises InvalidValue for texts that cannot be compared with those of a job."""
        texts = [(name, text) for name in ("handler", "group") if (text := getattr(self, name)) is not None]
        texts += [("meta", text) for item in (self.meta or {}).items() for text in item]
        for name, text in texts:
            if not isinstance(text, str):
                raise InvalidValue(f"{name}: expected text, got {type(text).__name__}")
            try:
                text.encode()
            except UnicodeEncodeError:
                raise InvalidValue(f"{name}: expected valid Unicode, got a lone surrogate") from None

    def check(self) -> None:
        """Raises InvalidValue for texts that no job has."""
        self.check_unicode()
        for name in ("handler", "group"):
            text = getattr(self, name)
            if text is not None and not 0 < len(text) <= NAME_LIMIT:
                raise InvalidValue(f"{name}: expected 1 to {NAME_LIMIT} characters")
        if len(self.meta or {}) > MAX_META_KEYS:
            raise InvalidValue(f"meta: expected at most {MAX_META_KEYS} keys, got {len(self.meta or {})}")
        for key, text in (self.meta or {}).items():
            if not 0 < len(key) <= NAME_LIMIT or len(text) > MAX_META_CHARS:
                raise InvalidValue(
                    f"meta: expected keys of 1 to {NAME_LIMIT} characters, and texts of at most"
                    f" {MAX_META_CHARS:,}"
                )

    def document(self) -> dict[str, Any]:
        """As JSON has it: what is given of it."""
        values: dict[str, Any] = self._asdict()
        for name, text in (("since", to_rfc3339), ("until", to_rfc3339), ("error", bytes.hex)):
            if values[name] is not None:
                values[name] = text(values[name])
        if self.request is not None:
            values["request"] = id_text(self.request)
        values["meta"] = dict(self.meta) if self.meta else None
        return {name: value for name, value in values.items() if value is not None}


class GivenFilter(TypedDict, total=False):
    """A filter as a Python program gives it. `since`, `until`: with their offsets; `error`: a fingerprint."""

    handler: str
    status: str
    since: datetime
    until: datetime
    reason: str
    error: str
    group: str
    request: str | uuid.UUID
    meta: Mapping[str, str]


def parse(given: GivenFilter) -> JobFilter:
    """The filter. Raises InvalidValue, which names the key."""
    values: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    for name, read in _READERS.items():
        try:
            if name in values:
                values[name] = read(values[name])
        except ValueError as error:
            raise InvalidValue(f"{name}: {error}") from None
    return JobFilter(**values)


def _choice(choices: type[StrEnum]) -> Callable[[Any], str]:
    def read(value: Any) -> str:
        if value not in set(choices):
            raise InvalidValue(f"expected one of {', '.join(choices)}, got {value!r:.60}")
        return choices(value)

    return read


def _moment(value: datetime) -> int:
    return from_rfc3339(value.isoformat())


_READERS: dict[str, Callable[[Any], object]] = {
    "status": _choice(Status), "reason": _choice(Reason), "error": parse_fingerprint,
    "request": id_bytes,
    "since": _moment, "until": _moment,
}  # fmt: skip
