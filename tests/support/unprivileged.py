"""What a call finds that has no privileges of root: permissions of files hold for it, as for any user."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable

from tests.support.eventually import eventually
from workerd.runtime.child import fork

_CAPABILITIES_VERSION_3 = 0x20080522


def unprivileged(call: Callable[[], object]) -> str:
    """The text of what `call` returns or raises in a process that has given up its capabilities."""
    result, end = os.pipe()

    def main() -> int:
        _drop_capabilities()
        try:
            text = str(call())
        except Exception as error:
            text = f"{type(error).__name__}: {error}"
        os.write(end, text.encode())
        return 0

    child = fork(main, keep=(end,))
    os.close(end)
    with os.fdopen(result, "rb") as stream:
        text = stream.read().decode()
    eventually(lambda: child.reap() is not None)
    child.close()
    return text


def _drop_capabilities() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(_CAPABILITIES_VERSION_3, 0)
    if libc.capset(header, (ctypes.c_uint32 * 6)()) != 0:
        raise OSError(ctypes.get_errno(), "capset")
