"""What the author of a handler uses: the decorator, the context of a run, and exceptions that decide it.

Nothing here runs user code or does I/O.
"""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, Concatenate, Literal, ParamSpec, Protocol, TypeVar, get_args, overload

import msgspec

from workerd.config.config_value import NestedKeys, keys_of
from workerd.config.handler_config import Policy
from workerd.config.quantities import duration
from workerd.config.text_validators import name as name_validator
from workerd.config.validators import Validator
from workerd.config.wrong_value import wrong
from workerd.enqueuing import ContextHandlerFunction, Enqueuing, HandlerFunction
from workerd.errors import InvalidValue
from workerd.job import Claim, id_text
from workerd.saved_state import SavedState

OPTIONS = "__workerd_options__"
"""The attribute that holds the options of a decorated function or class."""

ClassName = type[BaseException] | str
Classes = ClassName | Iterable[ClassName]
P = ParamSpec("P")
R = TypeVar("R")


# -- deciding the result of a run ----------------------------------------------------------


class Failure(Exception):
    """The job has failed and is not retried, whatever the policy."""


class Retry(Exception):
    """Retry the job `after` this long (seconds, or text such as "5m"), by default the handler's backoff.

    `counted=False` only postpones it: no attempt is used. `hold`: until then no node starts another job of
    its "group", or of its "limit", where the handler has one. Raises ValueError for an invalid `after` or
    `hold`.
    """

    def __init__(
        self,
        reason: object = "",
        after: float | str | None = None,
        counted: bool = True,
        hold: Literal["group", "limit"] | None = None,
    ) -> None:
        super().__init__(reason)
        if hold not in (None, "group", "limit"):
            raise wrong('"group" or "limit"', hold)
        self.after = None if after is None else duration(after)
        self.counted = counted
        self.hold = hold


class DeadlineExceeded(BaseException):
    """The soft deadline has passed; the job may clean up for `grace` seconds before it is killed.

    Not an Exception, so that `except Exception` does not swallow it.
    """


class Cancelled(BaseException):
    """The job was cancelled, or its request ended; it may clean up for `grace` seconds."""


class Interrupted(BaseException):
    """The node or the pool stops, and the handler is `resumable`: the job continues in its next attempt.

    The run may save and clean up for `grace` seconds before it is killed.
    """


@dataclass(frozen=True)
class Result:
    """A return value with more than a payload.

    `payload`: bytes, or anything that JSON can represent. `extras`: a mapping for the later jobs of the
    request. `spawn`: jobs to add to the request, each `{"handler", "vars"?, "name"?}`; jobs that need this
    one wait for them too, and get their payloads as "this job/name" (without a name, its number).
    """

    success: bool = True
    payload: Any = None
    extras: Mapping[str, Any] | None = None
    spawn: Iterable[Any] | None = None


# -- the context of a run ----------------------------------------------------------------------


class RunHandle(Protocol):
    """What a Context needs from the code that runs the handler."""

    @property
    def replay(self) -> bool:
        """Whether a person runs a stored job again, outside the daemon."""

    def stopping(self) -> bool:
        """Whether the run should end soon."""

    def progress(self, fraction: float | None, note: str | None) -> None:
        """Report progress."""

    def state(self) -> SavedState:
        """What the job has saved. Raises InvalidValue if that cannot be read."""

    def log(self) -> Any:
        """A structlog logger for this run."""


class Context:
    """One run of a handler, as its author sees it.

    job_id
        The same for all attempts of the job: use it as idempotency key.
    attempt
        Counts from 1. `token`: "job_id/attempt", different for every run (a fencing token).
    meta
        What the caller attached to the job, or None.
    deadline
        Seconds that this run may take, None for no limit.
    request_id, params, extras, needs
        In a request: its id, its parameters, what earlier jobs passed on, and the payloads of the jobs that
        this one needs, by name. Otherwise None and empty.
    failed
        Names of the needed jobs that failed, whose payload is None; in `finally` without needs: of all jobs.
    """

    __slots__ = ("_claim", "_log", "_run", "_soft_deadline_ns", "attempt", "deadline", "handler")

    def __init__(
        self, claim: Claim, run: RunHandle, deadline: float = 0.0, soft_deadline_ns: int = 0
    ) -> None:
        self._claim = claim
        self._run = run
        self._soft_deadline_ns = soft_deadline_ns
        self._log: Any = None
        self.attempt = claim.attempt
        self.handler = claim.handler
        self.deadline = deadline or None

    @property
    def job_id(self) -> str:
        return id_text(self._claim.id)

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
    def failed(self) -> list[str]:
        return list(self._claim.failed or ())

    @property
    def extras(self) -> dict[str, Any]:
        return _object(self._claim.extras)

    @property
    def needs(self) -> dict[str, Any]:
        return {name: msgspec.json.decode(value) for name, value in (self._claim.needs or {}).items()}

    def remaining(self) -> float:
        """Seconds until the soft deadline, 0 when it has passed, infinite without one."""
        if not self._soft_deadline_ns:
            return math.inf
        return max(0, self._soft_deadline_ns - time.monotonic_ns()) / 1e9

    @property
    def stopping(self) -> bool:
        """Whether the run should end soon: the node stops, or the job is being cancelled."""
        return self._run.stopping()

    @property
    def replay(self) -> bool:
        """Whether a person runs it again with `workerd job run`: nothing about it is stored."""
        return self._run.replay

    @property
    def log(self) -> Any:
        """A structlog logger; its events are in the daemon's log with this job and attempt."""
        if self._log is None:
            self._log = self._run.log()
        return self._log

    def progress(self, fraction: float | None = None, note: str | None = None) -> None:
        """Report progress: `fraction` from 0 to 1, and a short note; may be called at any rate.

        Raises ValueError if `fraction` is not a number.
        """
        if fraction is not None:
            fraction = float(fraction)
            if math.isnan(fraction):
                raise ValueError("expected a fraction from 0 to 1, got nan")
            fraction = min(max(fraction, 0.0), 1.0)
        self._run.progress(fraction, None if note is None else str(note))

    @property
    def saved(self) -> Any:
        """What this or an earlier attempt last passed to `save`; None at first."""
        return self._run.state().saved

    def save(self, value: Any, wait: bool = False) -> None:
        """Keep `value`, which JSON can represent, for `saved` in the next attempt; cleared by success.

        It survives the death of the worker and of the pool; a node that dies loses at most the last second,
        and nothing that was saved with `wait`, which returns when the value is committed. The saved value and
        the results of all steps may have 64 KiB together. Raises ValueError if they are longer or cannot be
        JSON, and RuntimeError after the run, in another process, or if another node has taken the job over.
        """
        self._run.state().save(value, wait)

    def step(self, name: str, function: Callable[[], Any], wait: bool = False) -> Any:
        """What `function()` returned, as JSON represents it; called once in the life of the job.

        Later attempts get the kept value. An `async def` function returns an awaitable. A name may be used
        once in a run. Raises as `save`.
        """
        return self._run.state().step(name, function, wait)

    def __repr__(self) -> str:
        return f"<Context {self.handler} {self.token}>"


def _object(data: bytes | None) -> dict[str, Any]:
    value = msgspec.json.decode(data) if data else {}
    return value if isinstance(value, dict) else {}


# -- the decorator -----------------------------------------------------------------------------


class HandlerDecorator(Protocol):
    """`@handler(…)` with options."""

    @overload
    def __call__(self, target: type[Any], /) -> Any: ...

    @overload
    def __call__(self, target: Callable[Concatenate[Context, P], R], /) -> ContextHandlerFunction[P, R]: ...

    @overload
    def __call__(self, target: Callable[P, R], /) -> HandlerFunction[P, R]: ...


@overload
def handler(target: type[Any], /) -> Any: ...


@overload
def handler(target: Callable[Concatenate[Context, P], R], /) -> ContextHandlerFunction[P, R]: ...


@overload
def handler(target: Callable[P, R], /) -> HandlerFunction[P, R]: ...


@overload
def handler(
    *,
    name: str | None = None,
    deadline: float | str | None = None,
    grace: float | str | None = None,
    max_attempts: int | None = None,
    max_crashes: int | None = None,
    backoff: Mapping[str, Any] | None = None,
    retry_on: Classes | None = None,
    fail_on: Classes | None = None,
    ignore: Classes | None = None,
    resumable: bool | None = None,
) -> HandlerDecorator: ...


def handler(target: Any = None, /, *, name: str | None = None, **options: Any) -> Any:
    """Set policy defaults of a function, or of a class with `ensure`, and let it enqueue itself.

    `.enqueue(client_or_connection, …)` and `.spec(…)` take the arguments of a call, and `_options`, a
    JobOptions. `name`: the handler's in the configuration, by default the function's own. Called directly it
    is the plain function.

    The other options are keys of the configuration, which overrides them. Durations are seconds or text
    ("30s"), exception classes are classes or their names. Raises TypeError for an unknown option, ValueError
    for an invalid value.
    """
    checked = MappingProxyType(
        {option: _checked(option, value) for option, value in options.items() if value is not None}
    )
    given = None if name is None else _name(name)

    def decorate(decorated: Any) -> Any:
        if not callable(decorated) and not hasattr(decorated, "ensure"):
            raise TypeError(f"@handler expects a function or a class, got {decorated!r}")
        setattr(decorated, OPTIONS, checked)
        own_name = str(getattr(decorated, "__name__", type(decorated).__name__))
        enqueuing = Enqueuing(decorated, given or own_name, _context_of)
        for method in ("spec", "enqueue"):
            if inspect.isroutine(decorated) or not hasattr(decorated, method):  # a class may have its own
                setattr(decorated, method, getattr(enqueuing, method))
        return decorated

    return decorate if target is None else decorate(target)


def _name(value: Any) -> str:
    try:
        return str(name_validator(value))
    except InvalidValue as error:
        raise InvalidValue(f"@handler(name=…): {error}") from None


def is_context(annotation: Any) -> bool:
    """Whether a parameter with this annotation, a type or its text, takes the Context."""
    if annotation is Context or Context in get_args(annotation):
        return True
    # Context may be imported for type checkers only: then the annotation is text.
    return isinstance(annotation, str) and annotation.strip("'\"").split(".")[-1] == "Context"


def _context_of(parameters: list[inspect.Parameter]) -> str:
    """Name of the parameter that takes the Context; "" without one."""
    named = [p.name for p in parameters if is_context(p.annotation)]
    return named[0] if named else next((p.name for p in parameters[:1] if p.name == "ctx"), "")


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
    """The options that @handler set on this object, also through functools.partial; empty without."""
    while True:
        found = getattr(target, OPTIONS, None)
        if isinstance(found, Mapping):
            return found
        if not isinstance(target, partial):
            return {}
        target = target.func


def class_name(cls: type) -> str:
    """`module.qualname`, by which processes compare classes."""
    return f"{cls.__module__}.{cls.__qualname__}"
