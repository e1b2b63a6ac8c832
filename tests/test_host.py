"""Processors and limits of the control group that the daemon lives in, as in a container."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.support.own_group import enter, limit_file, own_group
from workerd import host


def in_group(folder: Path, call: Callable[[], Any]) -> Any:
    """What `call` returns in a child inside the group."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        enter(folder)
        os.write(write, msgspec.json.encode(call()))
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        found = pipe.read()
    os.waitpid(pid, 0)
    return msgspec.json.decode(found)


def test_the_memory_limit_is_that_of_its_own_group() -> None:
    """The smallest of the group and of those above it."""
    with own_group("memory", **{limit_file("memory"): str(256 << 20)}) as folder:
        assert in_group(folder, lambda: host.limits().memory_bytes) == 256 << 20


def test_the_limit_of_processes_is_that_of_its_own_group() -> None:
    """As `pids.max` says."""
    with own_group("pids", pids_max="77") as folder:
        assert in_group(folder, lambda: host.limits().processes) == 77


def test_processors_are_those_of_the_affinity() -> None:
    """What `taskset` leaves."""
    pid = os.fork()
    if pid == 0:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        os._exit(host.processors())
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1


@pytest.mark.parametrize(("quota", "processors"), [("150000", 2), ("100000", 1), ("10000", 1)])
def test_processors_are_no_more_than_the_quota_rounded_up(quota: str, processors: int) -> None:
    """A container with half a processor has one worker."""
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("one processor shows no quota")
    found = host._find("cpu")
    two = found is not None and found.version == 2
    files = {"cpu_max": f"{quota} 100000"} if two else {"cpu_cfs_quota_us": quota}
    with own_group("cpu", **files) as folder:
        assert in_group(folder, host.processors) == processors


def test_a_process_killed_for_the_memory_of_the_group_is_counted() -> None:
    """By the kernel, whichever process it chose."""

    def kills() -> int:
        killed = host.OomKills()
        before = killed.count()
        pid = os.fork()
        if pid == 0:
            kept = os.urandom(1 << 20) * 400
            os._exit(len(kept) % 2)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
        return killed.count() - before

    with own_group("memory", **{limit_file("memory"): str(100 << 20)}) as folder:
        assert in_group(folder, kills) == 1
