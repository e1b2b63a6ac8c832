"""Flags in memory that a pool shares with its worker."""

from __future__ import annotations

import os

from tests.support.eventually import eventually
from workerd.pool.shared import SharedFlags
from workerd.runtime.child import fork


def test_flags_are_shared_with_a_forked_child() -> None:
    """The child reads what the parent writes after the fork."""
    page = SharedFlags()
    reading, writing = os.pipe()

    def wait() -> int:
        os.read(reading, 1)
        return (
            0
            if (page.serial, page.soft_deadline_ns, page.cancel, page.stopping) == (7, 99, True, True)
            else 1
        )

    child = fork(wait, keep=[reading])
    page.begin(7, 99)
    page.request_cancel()
    page.set_stopping(True)
    os.write(writing, b"x")
    assert eventually(lambda: child.reap() is not None)
    assert child.status == 0
    page.begin(8, 0)
    assert (page.cancel, page.stopping) == (False, True)
    for fd in (reading, writing):
        os.close(fd)
    child.close()
    page.close()
