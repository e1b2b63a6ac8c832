"""The only waiting primitive of the tests: a fact, a limit, and a look at the state when it never came."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def eventually(
    fact: Callable[[], T],
    *,
    within: float = 30.0,
    every: float = 0.01,
    state: Callable[[], object] | None = None,
) -> T:
    """The first true value of `fact`, asked every `every` seconds for `within` seconds.

    An AssertionError inside `fact` counts as not yet. `state` is shown when the fact never came.
    """
    end = time.monotonic() + within
    while True:
        last: object = None
        try:
            value = fact()
            if value:
                return value
            last = value
        except AssertionError as error:
            last = error
        if time.monotonic() >= end:
            shown = f"; state: {state()}" if state is not None else ""
            raise AssertionError(
                f"not within {within} s: {getattr(fact, '__name__', fact)!s}, last {last!r}{shown}"
            )
        time.sleep(every)
