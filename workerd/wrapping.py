"""Functions around each run of a handler: for tracing, connections, transactions.

Each is a generator function of the context that yields once, where the run takes place, or a function of the
context and of what runs the rest:

    def traced(ctx):                        def traced(ctx, call_next):
        with span(ctx.handler):                 with span(ctx.handler):
            yield                                   return call_next()
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Generator, Mapping, Sequence
from functools import partial
from typing import Any

from workerd.errors import InvalidValue
from workerd.handler import Context, options_of

Around = Callable[..., Any]


class Wrapped:
    """A handler with functions around its runs, outermost first; made by `wrap`.

    Called directly, it runs them too, with the Context among the arguments, or None as the context.
    """

    def __init__(self, handler: Any, around: tuple[Around, ...]) -> None:
        self.handler = handler
        self.around = around
        self.__wrapped__ = handler
        for name in ("__module__", "__name__", "__qualname__", "__doc__"):
            if hasattr(handler, name):
                setattr(self, name, getattr(handler, name))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        ctx = next((value for value in (*args, *kwargs.values()) if isinstance(value, Context)), None)
        return run_around(self.around, ctx, partial(self.handler, *args, **kwargs))

    def __repr__(self) -> str:
        return f"wrap({self.handler!r}, {', '.join(map(_name, self.around))})"


def wrap(handler: Any, /, *around: Around) -> Any:
    """The handler with these functions around each run, the first outermost; may be wrapped again.

    Raises TypeError if it is not a handler, InvalidValue for a function that cannot wrap one.
    """
    if not callable(handler):
        raise TypeError(f"wrap expects a handler: a function or a class, got {handler!r}")
    if not around:
        raise TypeError("wrap expects at least one function to put around the handler, got none")
    for function in around:
        check_around(function)
    return Wrapped(handler, around)


def unwrap(wrapped: Any, /) -> Any:
    """What the last `wrap` was given, one layer below; a handler without layers is returned itself."""
    return wrapped.handler if isinstance(wrapped, Wrapped) else wrapped


def layers_of(target: Any) -> tuple[Any, tuple[Around, ...], dict[str, Any]]:
    """The handler below all layers, the functions around it, and the options of the decorator."""
    around: tuple[Around, ...] = ()
    found: list[Mapping[str, Any]] = []
    while isinstance(target, Wrapped):
        found.append(options_of(target))
        around += target.around
        target = target.handler
    options: dict[str, Any] = {}
    for layer in (options_of(target), *reversed(found)):
        options |= layer
    return target, around, options


def check_around(function: Any) -> None:
    """Raises InvalidValue for what cannot be put around a run."""
    expected = "expected a generator function of (ctx), or a function of (ctx, call_next)"
    if not callable(function) or inspect.isclass(function):
        raise InvalidValue(f"{expected}, got {function!r}")
    body = _body(function)
    if inspect.iscoroutinefunction(body) or inspect.isasyncgenfunction(body):
        raise InvalidValue(f"{expected}, got an async one: {_name(function)}")
    arguments = ("ctx",) if _is_generator(function) else ("ctx", "call_next")
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return  # a callable without a signature
    try:
        signature.bind(*arguments)
    except TypeError:
        raise InvalidValue(f"{expected}, got {_name(function)}{signature}") from None


def run_around(around: Sequence[Around], ctx: Context | None, run: Callable[[], Any]) -> Any:
    """Enter the functions in order, run, leave them in reverse order; returns what the outermost returns.

    Raises what they raise, and RuntimeError for one that breaks the protocol: that swallows an error without
    returning a value, or a generator that does not yield exactly once.
    """
    if not around:
        return run()
    inner = _Inner(around[1:], ctx, run)
    if _is_generator(around[0]):
        return _run_in_generator(around[0], ctx, inner)
    value = around[0](ctx, inner)
    if value is None and inner.error is not None:
        raise _swallowed(around[0], inner.error) from inner.error
    return value


class _Inner:
    """What is inside one layer; `error`: what its last call raised."""

    def __init__(self, around: Sequence[Around], ctx: Context | None, run: Callable[[], Any]) -> None:
        self._around = around
        self._ctx = ctx
        self._run = run
        self.error: BaseException | None = None

    def __call__(self) -> Any:
        self.error = None
        try:
            return run_around(self._around, self._ctx, self._run)
        except BaseException as error:
            self.error = error
            raise


def _run_in_generator(function: Around, ctx: Context | None, inner: _Inner) -> Any:
    generator = function(ctx)
    try:
        next(generator)
    except StopIteration:
        raise RuntimeError(f"{_name(function)} returned before its yield, so nothing was run") from None
    try:
        value = inner()
    except BaseException as error:
        return _throw(function, generator, error)
    try:
        generator.send(value)
    except StopIteration as stop:
        return value if stop.value is None else stop.value
    raise _yielded_twice(function, generator)


def _throw(function: Around, generator: Generator[Any, Any, Any], error: BaseException) -> Any:
    try:
        generator.throw(error)
    except StopIteration as stop:
        if stop.value is None:
            raise _swallowed(function, error) from error
        return stop.value
    raise _yielded_twice(function, generator)


def _swallowed(function: Around, error: BaseException) -> RuntimeError:
    return RuntimeError(
        f"{_name(function)} swallowed {type(error).__name__} and returned no value; return the value of the "
        "run, or raise"
    )


def _yielded_twice(function: Around, generator: Generator[Any, Any, Any]) -> RuntimeError:
    generator.close()
    return RuntimeError(f"{_name(function)} yielded more than once; it encloses one run")


def _body(function: Around) -> Any:
    while isinstance(function, partial):
        function = function.func
    return function if inspect.isroutine(function) else type(function).__call__


def _is_generator(function: Around) -> bool:
    return inspect.isgeneratorfunction(_body(function))


def _name(function: Any) -> str:
    while isinstance(function, partial):
        function = function.func
    return f"{getattr(function, '__module__', '?')}:{getattr(function, '__qualname__', repr(function))}"


MACHINERY = frozenset(
    function.__code__
    for function in (Wrapped.__call__, run_around, _Inner.__call__, _run_in_generator, _throw)
)
"""Code between the functions and the run, in which no exception may be raised from outside."""
