"""The options of enqueue, declared once: as programs give them, and checked for the store."""

from __future__ import annotations

import math
import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime, timedelta
from operator import attrgetter, is_not
from typing import Annotated, Any, Literal, NamedTuple, TypedDict, get_type_hints

import msgspec

from workerd import clock, json_text
from workerd.config.quantities import MAX_WINDOW_S, duration
from workerd.config.wrong_value import refuse_reserved
from workerd.duplicates import OnConflict
from workerd.errors import InvalidValue
from workerd.group import checked_group
from workerd.job import NAME_LIMIT, id_bytes

Duration = float | str | timedelta
"""Seconds, the text form of the configuration ("90s", "5m"), or a timedelta."""

_INT_LIMIT = 2**31
MAX_VARS_BYTES = 1 << 20
"""Default limit of vars and meta as JSON; with a configuration it is `gateway.max_body`."""


class Option(NamedTuple):
    """An option as HTTP and the command line offer it, where it is JSON or text.

    `kind` decides its JSON schema and how its text is parsed. `flag`: "" for the name with dashes.
    """

    kind: Literal[
        "duration", "time", "duration or time", "priority", "count", "key", "name", "conflict", "json"
    ]  # fmt: skip
    metavar: str
    help: str
    flag: str = ""


class JobOptions(TypedDict, total=False):
    """The optional fields of a JobSpec, for functions that take them as keywords."""

    id: str | uuid.UUID | None
    delay: Duration | None
    run_at: datetime | str | None
    priority: int
    unique_key: str | None
    on_conflict: str | None
    max_delay: Duration | None
    unique_for: Duration | None
    group: str | None
    deadline: Duration | None
    expires: Duration | datetime | None
    max_attempts: int | None
    meta: Any


@dataclass(frozen=True, kw_only=True)
class JobSpec:
    """A job to enqueue.

    `vars`: the handler's arguments by name, anything that msgspec encodes as JSON. `delay`: from now, or
    `run_at`: a time with its UTC offset; not both. `priority`: smaller runs first. `unique_key`: at most one
    live job of the handler has it; `on_conflict` says what a further enqueue does: "keep" (the default),
    "replace", "debounce" (at most `max_delay` after the job was created) or "follow". `unique_for`: at most
    one job of the key, live or ended, in each window of this length. `group`: for limits, fairness and
    search. `deadline`, `expires`, `max_attempts`: instead of the handler's own; a job that has not started
    this long after it was due, or by this time, expires. `meta`: any JSON value of the caller's. `id`: a UUID
    chosen by the caller; a repeat changes nothing.
    """

    handler: str
    vars: Mapping[str, Any] = field(default_factory=dict)
    id: str | uuid.UUID | None = None
    delay: Annotated[Duration | None, Option("duration", "D", "Start this much later: 90s, 5m.")] = None
    run_at: Annotated[
        datetime | str | None, Option("time", "T", "Start at this time: 2026-01-31T12:00:00+01:00.")
    ] = None
    priority: Annotated[int, Option("priority", "N", "Smaller runs first.")] = 0
    unique_key: Annotated[
        str | None,
        Option("key", "KEY", "At most one live job of the handler has this key.", flag="--unique"),
    ] = None
    on_conflict: Annotated[
        str | None,
        Option(
            "conflict", "WORD", "What to do if a live job has the key: keep, replace, debounce or follow."
        ),
    ] = None
    max_delay: Annotated[
        Duration | None,
        Option("duration", "D", "Start a debounced job no later than this after its first enqueue."),
    ] = None
    unique_for: Annotated[
        Duration | None, Option("duration", "D", "At most one job of the key in each window of this length.")
    ] = None
    group: Annotated[
        str | None, Option("name", "G", "Group of the job, used by limits, fairness and search.")
    ] = None
    deadline: Annotated[Duration | None, Option("duration", "D", "Overrides the handler's deadline.")] = None
    expires: Annotated[
        Duration | datetime | None,
        Option(
            "duration or time",
            "D|T",
            "Drop it if it has not started this long after it is due, or by this time.",
        ),
    ] = None
    max_attempts: Annotated[int | None, Option("count", "N", "Overrides the handler's max_attempts.")] = None
    meta: Annotated[Any, Option("json", "JSON", "Your own JSON, kept with the job.")] = None


def spec_of(handler: str | JobSpec, vars: Mapping[str, Any] | None, options: JobOptions) -> JobSpec:
    """A spec as it is, or one of a handler, its vars and options. Raises TypeError for a spec with others."""
    if isinstance(handler, str):
        return JobSpec(handler=handler, vars=vars or {}, **options)
    if vars is not None or options:
        raise TypeError("a JobSpec has its vars and options itself: replace them there")
    return handler


OPTIONS: dict[str, Option] = {
    name: extra
    for name, hint in get_type_hints(JobSpec, include_extras=True).items()
    for extra in getattr(hint, "__metadata__", ())
    if isinstance(extra, Option)
}
"""The options that every way in has, by their names in JobSpec; all but `priority` are None by default.

A new one needs a field of JobOptions, JobSpec and NewJob here, and a line in `check`; and if it is a column,
one in `EnqueuedColumns`. HTTP with its schema, bulk and command line follow.
"""


class NewJob(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A checked job as the store inserts it. `vars`, `meta`: JSON.

    `run_at`: store time, or `delay`: from the store's now; `expires_at`, or `expires_in`: from `run_at`;
    `max_delay`, `unique_for`; all in microseconds. `given_key`: the caller's, where `unique_key` is a
    reserved one. An existing `id` is left as it is. `request_id`, `step`, `name`: of a job of a request.
    """

    handler: str
    id: bytes | None = None
    vars: bytes = b"{}"
    meta: bytes | None = None
    priority: int = 0
    run_at: int | None = None
    delay: int | None = None
    deadline_ms: int | None = None
    max_attempts: int | None = None
    unique_key: str | None = None
    on_conflict: OnConflict = OnConflict.KEEP
    max_delay: int | None = None
    unique_for: int | None = None
    given_key: str | None = None
    group_key: str | None = None
    expires_at: int | None = None
    expires_in: int | None = None
    request_id: bytes | None = None
    step: int | None = None
    name: str | None = None

    @property
    def plain(self) -> bool:
        """Whether it is due at once and no existing row can conflict with it."""
        times = (self.run_at, self.delay, self.expires_at, self.expires_in)
        return self.id is None and self.unique_key is None and times == (None,) * len(times)


_RARE = tuple(one.name for one in fields(JobSpec) if one.name not in ("handler", "vars", "priority"))
_rare_of = attrgetter(*_RARE)
_NONE_GIVEN = (None,) * len(_RARE)
"""What most jobs have of them: seen in one look, a third of the time of `check` less, 3.8 → 2.6 µs."""


def check(spec: JobSpec, vars_limit: int = MAX_VARS_BYTES) -> NewJob:
    """The spec as the store inserts it. Raises InvalidValue, which names the option and what was expected."""
    if not any(map(is_not, _rare_of(spec), _NONE_GIVEN)):
        return NewJob(
            handler=_handler(spec.handler),
            vars=_vars(spec.vars, vars_limit),
            priority=_integer("priority", spec.priority, -_INT_LIMIT),
        )
    if spec.delay is not None and spec.run_at is not None:
        raise InvalidValue("give either delay or run_at, not both")
    conflict = _conflict(spec)
    expires_at, expires_in = _expires(spec)
    return NewJob(
        expires_at=expires_at,
        expires_in=expires_in,
        handler=_handler(spec.handler),
        id=_id(spec.id),
        vars=_vars(spec.vars, vars_limit),
        meta=None if spec.meta is None else _json("meta", spec.meta, vars_limit),
        priority=_integer("priority", spec.priority, -_INT_LIMIT),
        run_at=None if spec.run_at is None else _moment(spec.run_at),
        delay=None if spec.delay is None else _delay(spec.delay, spec.max_delay),
        deadline_ms=None if spec.deadline is None else _milliseconds(spec.deadline),
        max_attempts=None if spec.max_attempts is None else _integer("max_attempts", spec.max_attempts, 1),
        unique_key=None if spec.unique_key is None else _key(spec.unique_key),
        on_conflict=conflict,
        max_delay=None if spec.max_delay is None else _microseconds("max_delay", spec.max_delay),
        unique_for=None if spec.unique_for is None else _window(spec.unique_for),
        group_key=None if spec.group is None else checked_group(spec.group),
    )


def _delay(delay: Duration, max_delay: Duration | None) -> int:
    """Microseconds; `max_delay` bounds the first enqueue too, which postpones nothing."""
    wanted = _microseconds("delay", delay)
    return wanted if max_delay is None else min(wanted, _microseconds("max_delay", max_delay))


def _conflict(spec: JobSpec) -> OnConflict:
    """What to do on a conflict. Raises InvalidValue for options that cannot be combined."""
    try:
        conflict = OnConflict(spec.on_conflict or "keep")
    except ValueError:
        words = ", ".join(f'"{word}"' for word in OnConflict)
        raise InvalidValue(f"on_conflict: expected one of {words}") from None
    for name in ("on_conflict", "max_delay", "unique_for"):
        if getattr(spec, name) is not None and spec.unique_key is None:
            raise InvalidValue(f"{name}: requires a unique_key")
    if conflict is OnConflict.DEBOUNCE and spec.delay is None:
        raise InvalidValue('on_conflict: "debounce" requires a delay')
    if spec.max_delay is not None and conflict is not OnConflict.DEBOUNCE:
        raise InvalidValue('max_delay: requires on_conflict "debounce"')
    if spec.unique_for is not None and conflict is not OnConflict.KEEP:
        raise InvalidValue('unique_for: requires on_conflict "keep", the default')
    if spec.id is not None and (spec.unique_for is not None or conflict is not OnConflict.KEEP):
        raise InvalidValue("id: an id or Idempotency-Key cannot be combined with on_conflict or unique_for")
    return conflict


def _window(value: Duration) -> int:
    window = _microseconds("unique_for", value)
    if not clock.SECOND <= window <= MAX_WINDOW_S * clock.SECOND:
        raise InvalidValue(f"unique_for: expected 1 second to 366 days, got {value!r}")
    return window


def _microseconds(field_name: str, value: Duration) -> int:
    return round(seconds(field_name, value) * clock.SECOND)


def seconds(field_name: str, value: Duration) -> float:
    """A duration in seconds. Raises InvalidValue."""
    if isinstance(value, timedelta):
        value = value.total_seconds()
    try:
        return duration(value)
    except ValueError as error:
        raise InvalidValue(f"{field_name}: {error}") from None


def _milliseconds(value: Duration) -> int:
    milliseconds = math.ceil(seconds("deadline", value) * 1000)
    if milliseconds >= _INT_LIMIT:
        raise InvalidValue(f"deadline: expected at most 24 days, got {value!r}")
    return milliseconds


_DATE = re.compile(r"\s*\d{4}-\d\d-\d\d")


def _expires(spec: JobSpec) -> tuple[int | None, int | None]:
    """A time, and a duration after the job is due, both in microseconds; at most one of them."""
    value = spec.expires
    if value is None:
        return None, None
    if not isinstance(value, datetime) and not (isinstance(value, str) and _DATE.match(value)):
        return None, round(seconds("expires", value) * clock.SECOND)
    moment = _moment(value, "expires")
    # By this host's clock; a job that is too late by the store's clock simply expires after its insertion.
    due = _moment(spec.run_at) if spec.run_at is not None else clock.now_us()
    if spec.delay is not None:
        due += round(seconds("delay", spec.delay) * clock.SECOND)
    if moment < due:
        raise InvalidValue("expires: must be later than the time at which the job is due")
    return moment, None


def _moment(value: datetime | str, name: str = "run_at") -> int:
    if isinstance(value, str):
        try:
            return clock.from_rfc3339(value)
        except ValueError as error:
            raise InvalidValue(f"{name}: {error}") from None
    if value.utcoffset() is None:
        raise InvalidValue(f"{name}: expected a time with its UTC offset, got one without: set its tzinfo")
    return clock.from_rfc3339(value.astimezone(UTC).isoformat(timespec="microseconds"))


def checked_name(field_name: str, value: object) -> str:
    """A name or key that all engines store and compare alike. Raises InvalidValue."""
    if not isinstance(value, str) or not 0 < len(value) <= NAME_LIMIT:
        raise InvalidValue(f"{field_name}: expected text of 1 to {NAME_LIMIT} characters")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InvalidValue(f"{field_name}: expected valid Unicode, got a lone surrogate") from None
    if value.endswith(" "):
        raise InvalidValue(f"{field_name}: expected no space at its end, which MySQL ignores")
    return value


def _handler(value: object) -> str:
    name = checked_name("handler", value)
    try:
        refuse_reserved(name)
    except InvalidValue as error:
        raise InvalidValue(f"handler: {error}") from None
    return name


def _key(value: object) -> str:
    key = checked_name("unique_key", value)
    if key.startswith("~"):
        raise InvalidValue('unique_key: keys that start with "~" are reserved; choose another')
    return key


def _integer(field_name: str, value: object, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value < _INT_LIMIT:
        raise InvalidValue(f"{field_name}: expected a whole number from {least} to {_INT_LIMIT - 1}")
    return value


def _id(value: str | uuid.UUID | None) -> bytes | None:
    return None if value is None else id_bytes(value)


def _vars(value: object, limit: int) -> bytes:
    if not isinstance(value, Mapping):
        raise InvalidValue(f"vars: expected the handler's arguments by name, got {type(value).__name__}")
    if not all(isinstance(name, str) for name in value):
        raise InvalidValue("vars: expected text as names of arguments")
    return _json("vars", dict(value), limit)


def _json(field_name: str, value: object, limit: int) -> bytes:
    encoded = json_text.encode_given(field_name, value)
    if len(encoded) > limit:
        raise InvalidValue(f"{field_name}: {len(encoded)} bytes of JSON exceed the limit of {limit}")
    return encoded


def any_json(field_name: str, value: object, limit: int = MAX_VARS_BYTES) -> bytes:
    """Any JSON value of a caller's. Raises InvalidValue."""
    return _json(field_name, value, limit)


def params_json(params: object, limit: int = MAX_VARS_BYTES) -> bytes:
    """A request's params as JSON. Raises InvalidValue if they are not a mapping by text, or too large."""
    if not isinstance(params, Mapping) or not all(isinstance(name, str) for name in params):
        raise InvalidValue(f"params: expected a mapping by text, got {type(params).__name__}")
    return _json("params", dict(params), limit)
