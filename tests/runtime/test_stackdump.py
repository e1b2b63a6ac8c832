"""Stacks of a process that had to be killed."""

from __future__ import annotations

import faulthandler
import os
import time

from tests.support.eventually import eventually
from workerd.runtime.child import fork
from workerd.runtime.stackdump import DUMP_TIMEOUT_S, StackDump, kernel_view


def test_a_dump_that_a_child_wrote_is_read_by_its_parent() -> None:
    """Each `begin` starts a new one, for both."""
    dump = StackDump()
    for _ in range(2):
        dump.begin()
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


def test_a_dump_has_ended_when_nothing_is_added() -> None:
    """Or when nothing comes at all for DUMP_TIMEOUT_S."""
    dump = StackDump()
    dump.begin()
    assert not dump.has_ended()
    os.write(dump.fd, b"File one")
    assert not dump.has_ended()
    assert dump.has_ended()
    dump.begin()
    began = time.monotonic()
    while not dump.has_ended():
        time.sleep(0.001)
    assert time.monotonic() - began >= DUMP_TIMEOUT_S
    dump.close()
