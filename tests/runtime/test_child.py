"""Managed children: channel, death, descriptors; and when a dead one is started again."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest

from tests.support.descriptors import open_descriptors, spare_descriptors
from workerd.config.handler_config import RestartConfig
from workerd.messages import Beat, FromChild, Stop, ToChild
from workerd.runtime import child
from workerd.runtime.channel import Channel
from workerd.runtime.child import MAX_PAUSE_S, CrashLoopPolicy, ManagedChild, children_of
from workerd.runtime.loop import Loop

LIVED = 0.5
"""Seconds: died soon after its start."""


def pauses(policy: CrashLoopPolicy, times: int, *, blameless: bool = False) -> list[float]:
    """The pauses after so many quick deaths in a row."""
    return [policy.record_death(0.0, LIVED, blameless=blameless) for _ in range(times)]


def test_a_child_that_lived_long_is_restarted_at_once() -> None:
    """A death after more than two seconds costs no pause and ends a row of quick ones."""
    policy = CrashLoopPolicy()
    pauses(policy, 3)
    assert policy.record_death(0.0, 2.5) == 0.0
    assert policy.record_death(0.0, LIVED) == 0.1


def test_pauses_of_a_crash_loop_grow() -> None:
    """A child that dies at once by its own fault waits twice as long each time, at most MAX_PAUSE_S."""
    assert pauses(CrashLoopPolicy(), 8) == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, MAX_PAUSE_S, MAX_PAUSE_S]


def test_pauses_of_a_child_that_is_killed_at_work_do_not_grow() -> None:
    """It is back soon, however often something else kills it."""
    assert max(pauses(CrashLoopPolicy(), 20, blameless=True)) <= 0.2


def test_a_kill_at_work_forgives_a_crash_loop() -> None:
    """A process that got to its work has shown that the loop is over."""
    policy = CrashLoopPolicy()
    pauses(policy, 8)
    assert policy.record_death(0.0, LIVED, blameless=True) <= 0.2
    assert policy.record_death(0.0, LIVED) < MAX_PAUSE_S


def test_kills_at_work_count_for_quarantine() -> None:
    """A pool that dies more often than `restart` allows is quarantined, whatever kills it."""
    policy = CrashLoopPolicy(RestartConfig(intensity=3, period=60.0))
    pauses(policy, 3, blameless=True)
    assert not policy.exceeded
    pauses(policy, 1, blameless=True)
    assert policy.exceeded


class Parent:
    """A loop with one managed child, and the events received from it."""

    def __init__(self, main: Callable[[socket.socket], int], keep: tuple[int, ...] = ()) -> None:
        self.loop = Loop()
        self.heard: list[Beat] = []
        self.status: int | None = None
        self.eof = False
        self.child: ManagedChild[FromChild] = ManagedChild(
            self.loop,
            main,
            keep=keep,
            incoming=FromChild,
            on_message=self.heard.append,
            on_eof=self._on_eof,
            on_death=self._on_death,
        )

    def _on_eof(self) -> None:
        self.eof = True

    def _on_death(self) -> None:
        self.status = self.child.reap()

    def until(self, condition: Callable[[], bool]) -> None:
        end = time.monotonic() + 10
        while not condition():
            assert time.monotonic() < end
            self.loop.turn(0.1)


@pytest.fixture
def parents() -> Iterator[list[Parent]]:
    made: list[Parent] = []
    yield made
    for parent in made:
        parent.child.kill()
        parent.until(lambda parent=parent: parent.status is not None)  # type: ignore[misc]
        parent.loop.close()


def serve(control: socket.socket) -> int:
    """Send one Beat, then end with status 3 at the first message."""
    loop = Loop()
    channel: Channel[ToChild] = Channel(loop, control, ToChild, lambda message: loop.stop(), loop.stop)
    channel.send(Beat(state="up"))
    loop.run()
    channel.send(Beat(state="draining"))
    channel.flush()
    return 3


def test_every_message_of_a_dead_child_is_read(parents: list[Parent]) -> None:
    """Messages written just before its death are read before the death counts (law 3)."""
    parent = Parent(serve)
    parents.append(parent)
    parent.until(lambda: len(parent.heard) == 1)
    parent.child.send(Stop())
    parent.child.channel.flush()
    os.waitid(os.P_PID, parent.child.pid, os.WEXITED | os.WNOWAIT)  # dead before anything is read
    parent.until(lambda: parent.status is not None)
    assert parent.status == 3
    assert [beat.state for beat in parent.heard] == ["up", "draining"]


def test_a_reaped_child_leaves_no_descriptor(parents: list[Parent]) -> None:
    """Children are restarted for months."""
    before = open_descriptors()
    for _ in range(3):
        parent = Parent(serve)
        parent.child.kill(signal.SIGKILL)
        parent.until(lambda parent=parent: parent.status is not None)  # type: ignore[misc]
        assert parent.status == -signal.SIGKILL
        parent.child.kill()  # nothing happens
        parent.loop.close()
    assert open_descriptors() == before


def test_the_channel_may_end_before_the_child_does(parents: list[Parent]) -> None:
    """That alone is no death: the owner decides what to do with such a child."""

    def close_and_wait(control: socket.socket) -> int:
        control.close()
        signal.pause()
        return 0

    parent = Parent(close_and_wait)
    parents.append(parent)
    parent.until(lambda: parent.eof)
    assert parent.status is None


def _pause() -> int:
    signal.pause()
    return 0


def test_a_child_that_gets_no_pidfd_is_not_left_behind() -> None:
    """With all descriptors in use the child could neither be watched nor killed later."""
    before = children_of(os.getpid())
    with spare_descriptors(0), pytest.raises(OSError, match="Too many open files"):
        child.fork(_pause)
    assert children_of(os.getpid()) == before


def test_a_fork_that_fails_leaves_nothing_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker or role is restarted later, without limit."""

    def fail(main: object, keep: object) -> None:
        raise OSError("no process left")

    monkeypatch.setattr(child, "fork", fail)
    loop = Loop()
    before = open_descriptors()
    with pytest.raises(OSError, match="no process left"):
        ManagedChild(
            loop, serve, keep=(), incoming=FromChild,
            on_message=print, on_eof=loop.stop, on_death=loop.stop,
        )  # fmt: skip
    assert open_descriptors() == before
    loop.close()


FORKS_WITH_UNWRITTEN_OUTPUT = """
import os
from workerd.runtime.child import fork

def main():
    os.dup2(2, 1)  # as a worker, whose standard output is its pipe to the pool
    print("of the child")
    return 0

print("of the parent")
child = fork(main)
os.waitid(os.P_PIDFD, child.pidfd, os.WEXITED | os.WNOWAIT)
os._exit(child.reap())
"""


@pytest.mark.parametrize("output", ["full disk", "no reader"])
def test_output_that_cannot_be_written_keeps_no_child_from_being_forked(output: str) -> None:
    """Nor does the child write what its parent could not."""
    if output == "full disk":
        stdout = os.open("/dev/full", os.O_WRONLY)
    else:
        reader, stdout = os.pipe()
        os.close(reader)
    ended = subprocess.run(
        [sys.executable, "-c", FORKS_WITH_UNWRITTEN_OUTPUT],
        env={name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"},
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(stdout)
    assert (ended.returncode, ended.stderr) == (0, "of the child\n")
