"""What a role shows of its progress."""

from __future__ import annotations

import socket
import time

from tests.support.eventually import eventually
from workerd.messages import Beat, FromChild
from workerd.runtime.channel import Channel
from workerd.runtime.child import fork
from workerd.runtime.loop import Loop
from workerd.runtime.service import Service

WATCHDOG_S = 0.4


class _Busy(Service):
    """A service whose first turn lasts until it has sent several Beats from within it."""

    def start(self) -> None:
        self.state = "up"
        self.loop.call_later(0, self._work)

    def _work(self) -> None:
        end = time.monotonic() + 5 * WATCHDOG_S
        while time.monotonic() < end:
            self.progressed()
            time.sleep(0.001)
        self.become("draining")


def test_a_long_turn_that_moves_on_is_seen_by_the_supervisor() -> None:
    """Beats leave from within the turn, no more often than they otherwise would."""
    ours, theirs = socket.socketpair()
    child = fork(lambda: _Busy(theirs, WATCHDOG_S).run(), keep=[theirs.fileno()])
    theirs.close()
    loop = Loop()
    beats: list[tuple[float, Beat]] = []
    channel: Channel[FromChild] = Channel(
        loop, ours, FromChild, lambda beat: beats.append((time.monotonic(), beat)), lambda: None
    )
    try:

        def turned() -> bool:
            loop.turn(0.01)
            return bool(beats) and beats[-1][1].state == "draining"

        eventually(turned)
    finally:
        channel.close()  # which ends the orphan
        eventually(lambda: child.reap() is not None)
        child.close()
        loop.close()
    during = [beat for _, beat in beats if beat.state == "up"]
    assert 10 <= len(during) <= 25, "a Beat in each quarter of the watchdog"
