"""Stacks of a process that had to be killed."""

from __future__ import annotations

import faulthandler
import os

from tests.support.eventually import eventually
from workerd.runtime.child import fork
from workerd.runtime.stackdump import StackDump, kernel_view


def test_a_dump_that_a_child_wrote_is_read_by_its_parent() -> None:
    """Each `clear` starts a new one, for both."""
    dump = StackDump()
    for _ in range(2):
        dump.clear()
        child = fork(lambda: faulthandler.dump_traceback(dump.fd) or 0, keep=[dump.fd])
        assert eventually(lambda child=child: child.reap() is not None)
        child.close()
        assert dump.text().startswith("Current thread")
        assert dump.size() == len(dump.text().encode())
    dump.close()


def test_the_kernels_view_exists_of_any_process() -> None:
    """Without a Python stack there is at least a state."""
    assert "State:" in kernel_view(os.getpid())
    assert "nothing" in kernel_view(2**22 + 1)
