"""A worker's process as it is forked: its channel, memory and descriptors that the pool shares with it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from contextlib import ExitStack, closing

from workerd.pool.assignment_queue import AssignmentQueue
from workerd.pool.shared import SharedFlags, WorkerFds
from workerd.pool.worker_messages import FromWorker
from workerd.runtime.child import ManagedChild
from workerd.runtime.loop import Loop
from workerd.runtime.stackdump import StackDump


class ForkedWorker:
    """Forks a worker, which runs `main` and exits with what that returns.

    `keep`: descriptors of user code that it inherits; `null`: one of /dev/null. `output`: the reading end of
    the pipe that it prints to. Raises OSError when it cannot be forked, and has left nothing open then: the
    fork is tried again and again.
    """

    def __init__(
        self,
        loop: Loop,
        main: Callable[[WorkerFds], int],
        null: int,
        keep: Iterable[int],
        *,
        on_message: Callable[[FromWorker], None],
        on_eof: Callable[[], None],
        on_death: Callable[[], None],
    ) -> None:
        with ExitStack() as opened:
            flags = self.flags = opened.enter_context(closing(SharedFlags()))
            self.assignments = opened.enter_context(closing(AssignmentQueue()))
            self.dump = opened.enter_context(closing(StackDump()))
            self.output, writing = os.pipe()
            opened.callback(os.close, self.output)
            assignments, dump = self.assignments.fileno(), self.dump.fd
            try:
                self.child: ManagedChild[FromWorker] = ManagedChild(
                    loop,
                    lambda channel: main(
                        WorkerFds(
                            channel.fileno(), assignments, output=writing, null=null, flags=flags, dump=dump
                        )
                    ),
                    keep=(assignments, writing, null, dump, *keep),
                    incoming=FromWorker,
                    on_message=on_message,
                    on_eof=on_eof,
                    on_death=on_death,
                )
            finally:
                os.close(writing)
            opened.pop_all()

    def close(self) -> None:
        """Give back what was shared, but for `output`, which its reader closes."""
        self.assignments.close()
        self.dump.close()
        self.flags.close()
