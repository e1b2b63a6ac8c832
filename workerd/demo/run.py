"""The demo from its beginning to its end."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from types import FrameType

import msgspec
from rich.console import Console

from workerd.config.model import Config
from workerd.demo import show
from workerd.demo.material import Task, tasks
from workerd.demo.node import DemoFailed, DemoNode
from workerd.demo.results import Progress, progress, results, running
from workerd.errors import Conflict
from workerd.job import new_id
from workerd.process.context import Paths
from workerd.process.sockets import poke
from workerd.store import Store, acts, inserting, open_store

LIMIT = 600.0
"""Seconds after which the demo gives up."""
LOOK_EVERY = 0.1
BULK = 500
"""Jobs of one transaction."""


def demo() -> int:
    """Run the demo; returns 0 if every job that it enqueued has an end in the store."""
    console = Console(stderr=False, highlight=False, emoji=False)
    if not console.is_terminal:
        console = Console(width=150, highlight=False, emoji=False, color_system=None)
    with _interruptible(), DemoNode() as node:
        work = tasks(node.folder)
        config = node.configure(work)
        store = open_store(config.store)
        try:
            return _shown(console, node, config, store, work)
        finally:
            store.close()


def _shown(console: Console, node: DemoNode, config: Config, store: Store, work: Sequence[Task]) -> int:
    total = sum(len(task.vars) for task in work)
    print(f"Starting workerd on an embedded store in {node.folder} …", file=sys.stderr, flush=True)
    store.migrate()
    node.start(config)
    began = time.monotonic()
    expected = enqueue(store, work)
    poke(Paths(config.node).wake)
    print(f"{total:,} jobs of {len(work)} handlers were enqueued; they run now.", file=sys.stderr, flush=True)
    _watch(console, node, config, store, work)
    elapsed = time.monotonic() - began
    found = results(store, expected)
    show.table(console, work, found)
    console.print()
    show.summary(console, found, elapsed)
    status = node.stop()
    found = results(store, expected)
    show.verdict(console, found, total)
    if status != 0:
        raise DemoFailed(f"The demo's daemon ended with exit status {status} instead of 0.")
    return 0 if found.complete else 1


def enqueue(store: Store, work: Sequence[Task]) -> set[bytes]:
    """Enqueue every task's jobs in bulk; their ids."""
    new = [
        inserting.NewJob(handler=task.handler, id=new_id(), vars=msgspec.json.encode(values))
        for task in work
        for values in task.vars
    ]
    ids: set[bytes] = set()
    for start in range(0, len(new), BULK):
        insert = partial(inserting.insert, jobs=new[start : start + BULK])
        ids.update(done.id for done in store.run(insert))
    return ids


def _watch(console: Console, node: DemoNode, config: Config, store: Store, work: Sequence[Task]) -> None:
    """Show progress until all have ended. Raises DemoFailed when that takes too long."""
    totals = {task.handler: len(task.vars) for task in work}
    end = time.monotonic() + LIMIT
    shown = show.show_for(console, work)
    try:
        while True:
            now = progress(store, totals)
            shown.update(now)
            if all(of.ended >= of.total for of in now.values()):
                return
            _cancel_one_that_waits(config, store, now)
            node.check()
            if time.monotonic() > end:
                raise DemoFailed(f"Not all jobs have ended within {LIMIT:g} s.")
            time.sleep(LOOK_EVERY)
    finally:
        shown.close()


def _cancel_one_that_waits(config: Config, store: Store, now: dict[str, Progress]) -> None:
    if now["waits"].running:
        for job_id in running(store, "waits"):
            with suppress(Conflict):  # it has ended since we looked
                store.run(partial(acts.cancel, job_id=job_id))
        poke(Paths(config.node).wake)


@contextmanager
def _interruptible() -> Iterator[None]:
    """SIGTERM and SIGHUP end the demo as Ctrl-C does: with everything cleaned up."""

    def interrupt(signum: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {s: signal.signal(s, interrupt) for s in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
