"""What a handler's author sees: the decorator, the context of a run, and how to decide its ending.

Nothing here runs user code or does I/O; whoever runs a handler gives its Context a `Line`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, Protocol, TypeVar, overload

import msgspec

from workerd.config.model import NestedKeys, Policy, keys_of
from workerd.config.validators import Validator, duration, wrong
from workerd.errors import InvalidValue
from workerd.job import Claim, id_text

OPTIONS = "__workerd_options__"
"""The attribute under which a decorated function or class keeps its options."""

ClassName = type[BaseException] | str
Classes = ClassName | Iterable[ClassName]
F = TypeVar("F")


# -- how a handler decides its ending ----------------------------------------------------------


class Failure(Exception):
    """The job has failed and is not tried again, whatever the policy says."""


class Retry(Exception):
    """Try again: `after` so long (seconds or text such as "5m"), else by the handler's backoff.

    `counted=False` uses no attempt: the job is only put off. Raises ValueError for a wrong `after`.
    """

    def __init__(self, reason: object = "", after: float | str | None = None, counted: bool = True) -> None:
        super().__init__(reason)
        self.after = None if after is None else duration(after)
        self.counted = counted


class DeadlineExceeded(BaseException):
    """The soft deadline is over; what is left of `grace` is for cleaning up.

    No Exception, so that `except Exception` does not swallow it.
    """


class Cancelled(BaseException):
    """A person cancelled the job, or its request ended; the time left is for cleaning up."""


@dataclass(frozen=True)
class Result:
    """A return value that says more than a payload.

    `payload`: bytes, or anything that can be written as JSON. `extras`: values for the later jobs of the
    request, a mapping. `spawn`: jobs to add to the request, each `{"handler", "vars"?, "name"?}`; what needs
    this job waits for them too, and gets their payloads as "this job/name" (else its number).
    """

    success: bool = True
    payload: Any = None
    extras: Mapping[str, Any] | None = None
    spawn: Iterable[Any] | None = None


# -- the context of a run ----------------------------------------------------------------------


class RunHandle(Protocol):
    """What a context asks of whoever runs the handler."""

    def stopping(self) -> bool:
        """Whether the run should end soon."""

    def progress(self, fraction: float | None, note: str | None) -> None:
        """Pass on how far the run is."""

    def log(self) -> Any:
        """A structlog logger bound to this run."""


class Context:
    """One run of a handler, as its author sees it.

    job_id
        The same for all attempts of the job: use it as idempotency key.
    attempt
        Counts from 1. `token`: "job_id/attempt", different for every run (a fencing token).
    meta
        What the caller gave along, None if nothing.
    deadline
        Seconds that this run may take, None for no limit.
    request_id, params, extras, needs
        Inside a request: its id, what it was submitted with, what earlier jobs handed on, and the payloads
        of the jobs that this one needs, by name. Otherwise None and empty.
    """

    __slots__ = ("_claim", "_ends_ns", "_line", "_log", "attempt", "deadline", "handler", "job_id")

    def __init__(self, claim: Claim, line: RunHandle, deadline: float = 0.0, ends_ns: int = 0) -> None:
        self._claim = claim
        self._line = line
        self._ends_ns = ends_ns
        self._log: Any = None
        self.job_id = id_text(claim.id)
        self.attempt = claim.attempt
        self.handler = claim.handler
        self.deadline = deadline or None

    @property
    def token(self) -> str:
        return f"{self.job_id}/{self.attempt}"

    @property
    def meta(self) -> Any:
        return None if self._claim.meta is None else msgspec.json.decode(self._claim.meta)

    @property
    def request_id(self) -> str | None:
        return None if self._claim.request_id is None else id_text(self._claim.request_id)

    @property
    def params(self) -> dict[str, Any]:
        return _object(self._claim.params)

    @property
    def extras(self) -> dict[str, Any]:
        return _object(self._claim.extras)

    @property
    def needs(self) -> dict[str, Any]:
        return {name: msgspec.json.decode(value) for name, value in (self._claim.needs or {}).items()}

    def remaining(self) -> float:
        """Seconds until the soft deadline, 0 when it is over, infinite without one."""
        if not self._ends_ns:
            return math.inf
        return max(0, self._ends_ns - time.monotonic_ns()) / 1e9

    @property
    def stopping(self) -> bool:
        """True when the run should end soon: the node stops, or the job is cancelled."""
        return self._line.stopping()

    @property
    def log(self) -> Any:
        """A structlog logger whose events go to the daemon's log with this job and attempt."""
        if self._log is None:
            self._log = self._line.log()
        return self._log

    def progress(self, fraction: float | None = None, note: str | None = None) -> None:
        """Say how far the run is: `fraction` from 0 to 1, and a short note; may be called at any rate.

        Raises ValueError if `fraction` is not a number.
        """
        if fraction is not None:
            fraction = float(fraction)
            if math.isnan(fraction):
                raise ValueError("expected a fraction from 0 to 1, got nan")
            fraction = min(max(fraction, 0.0), 1.0)
        self._line.progress(fraction, None if note is None else str(note))

    def __repr__(self) -> str:
        return f"<Context {self.handler} {self.token}>"


def _object(data: bytes | None) -> dict[str, Any]:
    value = msgspec.json.decode(data) if data else {}
    return value if isinstance(value, dict) else {}


# -- the decorator -----------------------------------------------------------------------------


@overload
def handler(target: F, /) -> F: ...


@overload
def handler(
    *,
    deadline: float | str | None = None,
    grace: float | str | None = None,
    max_attempts: int | None = None,
    max_crashes: int | None = None,
    backoff: Mapping[str, Any] | None = None,
    retry_on: Classes | None = None,
    fail_on: Classes | None = None,
    ignore: Classes | None = None,
) -> Callable[[F], F]: ...


def handler(target: Any = None, /, **options: Any) -> Any:
    """Give a function, or a class with `ensure`, the policy that its author thinks best.

    The options are those of the configuration, which has the last word. Durations are seconds or text
    ("30s"), classes are classes or their names. Raises TypeError for an unknown option, ValueError for a
    wrong value.
    """
    checked = MappingProxyType(
        {name: _checked(name, value) for name, value in options.items() if value is not None}
    )

    def decorate(decorated: F) -> F:
        if not callable(decorated) and not hasattr(decorated, "ensure"):
            raise TypeError(f"@handler expects a function or a class, got {decorated!r}")
        setattr(decorated, OPTIONS, checked)
        return decorated

    return decorate if target is None else decorate(target)


_CLASS_LISTS = ("retry_on", "fail_on", "ignore")


def _checked(name: str, value: Any) -> Any:
    keys = keys_of(Policy)
    if name not in keys:
        raise TypeError(f"@handler knows no option {name!r}; expected one of {', '.join(keys)}")
    key = keys[name]
    try:
        if name in _CLASS_LISTS:
            return _classes(value)
        return key(value) if isinstance(key, Validator) else _table(key, value)
    except InvalidValue as error:
        raise InvalidValue(f"@handler({name}=…): {error}") from None


def _table(keys: NestedKeys, value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping) or not value.keys() <= keys.keys():
        raise wrong(f"a dict with some of the keys {', '.join(keys)}", value)
    return {name: keys[name](item) for name, item in value.items()}


def _classes(value: Any) -> tuple[ClassName, ...]:
    if isinstance(value, type | str) or not isinstance(value, Iterable):
        value = (value,)
    found = tuple(value)
    for item in found:
        if not isinstance(item, str) and not (isinstance(item, type) and issubclass(item, BaseException)):
            raise wrong("exception classes or their names", item)
    return found


def options_of(target: Any) -> Mapping[str, Any]:
    """What @handler was given on this object, seen through functools.partial; empty without it."""
    while True:
        found = getattr(target, OPTIONS, None)
        if isinstance(found, Mapping):
            return found
        if not isinstance(target, partial):
            return {}
        target = target.func


def class_name(cls: type) -> str:
    """`module.qualname`, the form in which classes are compared between processes."""
    return f"{cls.__module__}.{cls.__qualname__}"
