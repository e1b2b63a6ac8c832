"""The headers of a request, by one look-up each."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.types import Scope

_HEADERS = "workerd.headers"
"""Key of the ASGI scope."""


def headers_of(scope: Scope) -> Mapping[str, str]:
    """By lower-case name, of several with one name the first, as Starlette's, which search a list."""
    headers: dict[str, str] | None = scope.get(_HEADERS)
    if headers is None:
        raw = reversed(scope["headers"])
        headers = scope[_HEADERS] = {name.decode("latin-1"): value.decode("latin-1") for name, value in raw}
    return headers
