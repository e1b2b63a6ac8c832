"""Exceptions that come in the middle of a call, as those of a signal handler do: at every place in turn."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any


class Interrupted(Exception):
    """What a handler of signals raises, such as that of a timeout."""


def interrupt(call: Callable[[], object], place: int, handle: Callable[[], object] = int) -> bool:
    """Run `call` and raise Interrupted at its place of this number, from 1; false if it has fewer.

    A place is where CPython runs handlers of signals: the begin of a function, the end of one written in C.
    `handle` is called while the exception is handled.
    """
    left = place

    def count(frame: FrameType, event: str, arg: Any) -> None:
        nonlocal left
        if event in ("call", "c_return"):
            left -= 1
            if left == 0:
                raise Interrupted

    sys.setprofile(count)
    try:
        call()
    except Interrupted:
        handle()
    finally:
        sys.setprofile(None)
    return left <= 0
