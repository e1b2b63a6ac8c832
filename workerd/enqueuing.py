"""What `@handler` adds to a function: it enqueues itself, with the arguments of a call."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, TypeVar, overload

from workerd.job_spec import JobOptions, JobSpec

if TYPE_CHECKING:
    from workerd.async_client import AsyncClient
    from workerd.document_types import Enqueued

P = ParamSpec("P")
R_co = TypeVar("R_co", covariant=True)


class Enqueuing:
    """Makes jobs of one handler. `context_name`: the parameter that vars do not fill, "" for none."""

    def __init__(
        self, target: Any, name: str, context_name: Callable[[list[inspect.Parameter]], str]
    ) -> None:
        self.name = name
        self._target = target
        self._context_name = context_name

    def spec(self, *args: Any, _options: JobOptions | None = None, **kwargs: Any) -> JobSpec:
        """The job of a call with these arguments. Raises TypeError for arguments that the handler lacks."""
        return JobSpec(handler=self.name, vars=self._vars(args, kwargs), **(_options or {}))

    def enqueue(
        self, target: Any, /, *args: Any, _options: JobOptions | None = None, **kwargs: Any
    ) -> Enqueued | Awaitable[Enqueued]:
        """Enqueue it by a Client, an AsyncClient (then to be awaited), or inside a connection's transaction.

        Raises as `spec` and as the client or `workerd.enqueue`.
        """
        vars, options = self._vars(args, kwargs), _options or {}
        if callable(getattr(target, "enqueue_many", None)):
            by_client: Enqueued | Awaitable[Enqueued] = target.enqueue(self.name, vars, **options)
            return by_client
        # A pool imports this module, and must not load what enqueues.
        transaction: Any = importlib.import_module("workerd.transaction")
        inside: Enqueued = transaction.enqueue(target, self.name, vars, **options)
        return inside

    def _vars(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        called = getattr(self._target, "ensure", None) if inspect.isclass(self._target) else self._target
        parameters = list(inspect.signature(called or self._target).parameters.values())
        if called is not self._target and called is not None:
            parameters = parameters[1:]  # the instance
        context = self._context_name(parameters)
        signature = inspect.Signature([p for p in parameters if p.name != context])
        found: dict[str, Any] = {}
        for name, value in signature.bind(*args, **kwargs).arguments.items():
            if signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD:
                found.update(value)
            else:
                found[name] = value
        return found


class HandlerFunction(Protocol[P, R_co]):
    """A decorated function, called as before."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co: ...

    def spec(self, _options: JobOptions | None = None, *args: P.args, **kwargs: P.kwargs) -> JobSpec:
        """The job of such a call; `_options` by name."""

    @overload
    def enqueue(
        self,
        target: AsyncClient,
        _options: JobOptions | None = None,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> Awaitable[Enqueued]: ...

    @overload
    def enqueue(
        self, target: Any, _options: JobOptions | None = None, *args: P.args, **kwargs: P.kwargs
    ) -> Enqueued: ...


class ContextHandlerFunction(Protocol[P, R_co]):
    """The same for a function whose first parameter is the Context, which no caller gives."""

    def __call__(self, ctx: Any, /, *args: P.args, **kwargs: P.kwargs) -> R_co: ...

    def spec(self, _options: JobOptions | None = None, *args: P.args, **kwargs: P.kwargs) -> JobSpec:
        """The job of such a call; `_options` by name."""

    @overload
    def enqueue(
        self,
        target: AsyncClient,
        _options: JobOptions | None = None,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> Awaitable[Enqueued]: ...

    @overload
    def enqueue(
        self, target: Any, _options: JobOptions | None = None, *args: P.args, **kwargs: P.kwargs
    ) -> Enqueued: ...
