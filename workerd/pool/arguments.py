"""Binds vars to the parameters of a callable, and derives the signature that the store keeps."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple, Union, get_args, get_origin, get_type_hints

import msgspec

from workerd.errors import LoadError
from workerd.handler import Context, is_context
from workerd.pool.annotations import resolved
from workerd.pool.secret_paths import secret_paths, secret_paths_of_others
from workerd.signature import ABSENT, Code, Field, Fields, Param, Signature, code_of

_KEYWORD = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_UNION: Any = Union
_ANY_VARS = Fields([], open=True)


class Arguments:
    """The parameters of one callable, to which vars and the context are bound.

    `signature`: JSON, None for a callable that cannot be inspected. Raises LoadError if no vars can fit.
    """

    def __init__(self, target: Callable[..., Any], *, method: bool = False) -> None:
        """`method`: the callable is an attribute of a class, so its first parameter will be the instance."""
        self.signature: bytes | None = None
        self._fields: Fields | None = None
        self._ctx = ""
        self._positional: tuple[tuple[str, Any], ...] = ()
        self._ctx_by_name = False
        self._optional: tuple[str, ...] = ()
        parameters = _parameters(target, method)
        if parameters is not None:
            self._inspect(parameters)

    def _inspect(self, parameters: list[_Parameter]) -> None:
        self._ctx = _context_of(parameters)
        variadic = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)
        if not variadic and any(p.kind is inspect.Parameter.VAR_POSITIONAL for p in parameters):
            raise LoadError("nothing can fill *args: vars have names; name the parameters or add **kwargs")
        filled = [p for p in parameters if p.kind in (*_KEYWORD, inspect.Parameter.POSITIONAL_ONLY)]
        self._positional = _by_position(filled, self._ctx)
        filled = [p for p in filled if p.name != self._ctx]
        self._fields = Fields([Field(p.name, p.type, p.required) for p in filled], variadic)
        self._ctx_by_name = bool(self._ctx) and all(name != self._ctx for name, _ in self._positional)
        self._optional = tuple(p.name for p in filled if not p.required)
        secret = {p.name: secret_paths(p.name, p.annotation) for p in filled}
        redact = [path for paths in secret.values() for path in paths]
        for others in (p for p in parameters if p.kind is inspect.Parameter.VAR_KEYWORD):
            redact += secret_paths_of_others(others.annotation)
        params = tuple(_describe(p, secret=bool(secret[p.name])) for p in filled)
        self.signature = msgspec.json.encode(Signature(params, variadic, tuple(redact)))

    def bind(self, data: bytes, ctx: Context) -> tuple[list[Any], dict[str, Any]]:
        """The arguments of a call; `data`: vars as JSON text. Raises BadVars."""
        fields = self._fields
        if fields is None:
            return [], _ANY_VARS.decode(data)[1]
        values, keywords = fields.decode(data)
        keywords.update(zip(fields.names, values, strict=True))
        for name in self._optional:
            if keywords[name] is ABSENT:
                del keywords[name]
        if self._ctx_by_name:
            keywords[self._ctx] = ctx
        return [
            ctx if n == self._ctx else keywords.pop(n, default) for n, default in self._positional
        ], keywords


class _Parameter(NamedTuple):
    name: str
    kind: inspect._ParameterKind
    annotation: Any  # the type if it can be resolved, else its text
    type: Any  # what a value is checked against
    code: Code
    required: bool
    default: Any


def _parameters(target: Callable[..., Any], method: bool) -> list[_Parameter] | None:
    """The parameters with their types; None for a callable that cannot be inspected."""
    try:
        found = list(inspect.signature(target).parameters.values())
    except (TypeError, ValueError, NameError):
        return None
    hints = _Hints(target)
    return [_parameter(p, hints) for p in found[1 if method else 0 :]]


def _parameter(parameter: inspect.Parameter, hints: _Hints) -> _Parameter:
    required = parameter.default is inspect.Parameter.empty
    default = None if required else parameter.default
    annotation = hints.of(parameter)
    kind: Any = annotation
    if annotation is inspect.Parameter.empty or isinstance(annotation, str):
        kind = Any
    elif default is None and not required:
        kind = _UNION[annotation, None]  # `width: int = None` accepts None
    code = code_of(kind)
    if code is None:
        kind, code = Any, "any"
    return _Parameter(parameter.name, parameter.kind, annotation, kind, code, required, default)


class _Hints:
    """Annotations of a callable as types; one that cannot be resolved does not affect the others."""

    def __init__(self, target: Callable[..., Any]) -> None:
        function = _function_of(target)
        self._globals = getattr(function, "__globals__", {})
        try:
            self._hints = get_type_hints(function, include_extras=True)
        except Exception:  # evaluating a user's annotation may raise anything
            self._hints = {}

    def of(self, parameter: inspect.Parameter) -> Any:
        found = self._hints.get(parameter.name, parameter.annotation)
        if not isinstance(found, str):
            return found
        return resolved(found, self._globals)


def _function_of(target: Any) -> Any:
    """The innermost function: through partial, methods, wrappers, classes and `__call__`."""
    while True:
        if isinstance(target, functools.partial):
            target = target.func
        elif inspect.ismethod(target):
            target = target.__func__
        elif hasattr(target, "__wrapped__"):
            target = target.__wrapped__
        elif inspect.isclass(target):
            return target.__init__
        elif not inspect.isroutine(target) and hasattr(type(target), "__call__"):  # noqa: B004 -- the method itself is needed
            return inspect.unwrap(type(target).__call__)
        else:
            return target


def _context_of(parameters: list[_Parameter]) -> str:
    """Name of the context's parameter: the one annotated Context, else a first one named ctx; else empty."""
    for p in parameters:
        if p.kind in (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL):
            continue
        if is_context(p.annotation):
            return p.name
    if parameters and parameters[0].name == "ctx" and parameters[0].kind is not inspect.Parameter.VAR_KEYWORD:
        return "ctx"
    return ""


def _by_position(filled: list[_Parameter], ctx: str) -> tuple[tuple[str, Any], ...]:
    """Parameters to pass by position, with their defaults: positional-only ones, and a leading context.

    A wrapper may name its first parameter differently, so a leading context is passed by position.
    """
    count = sum(p.kind is inspect.Parameter.POSITIONAL_ONLY for p in filled)
    first = filled[0] if filled else None
    if not count and first and first.name == ctx and first.kind is not inspect.Parameter.KEYWORD_ONLY:
        count = 1
    return tuple((p.name, p.default) for p in filled[:count])


def _describe(p: _Parameter, *, secret: bool) -> Param:
    return Param(
        name=p.name,
        type=p.annotation if isinstance(p.annotation, str) else _type_text(p.annotation),
        code=p.code,
        required=p.required,
        default=None if secret else _default(p.default),
        is_str=p.code in ("str", ["or", "str", "null"], ["or", "null", "str"]),
        kind="positional" if p.kind is inspect.Parameter.POSITIONAL_ONLY else "keyword",
    )


def _type_text(annotation: Any) -> str:
    """As its author wrote it, without what `Annotated` adds."""
    if annotation is inspect.Parameter.empty:
        return "Any"
    if get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    return inspect.formatannotation(annotation)


def _default(value: Any) -> Any:
    try:
        return msgspec.json.decode(msgspec.json.encode(value))
    except Exception:  # encoding a user's value may raise anything; such a default is not shown
        return None
