"""The one module that knows every role: what is imported before the first fork, and what each child runs."""

from __future__ import annotations

import gc

from workerd import dispatcher, gateway, ingester, log, messages, metrics, pool, store
from workerd.process.cgroup import Delegation
from workerd.process.context import RoleContext
from workerd.process.systemd import ServiceManager
from workerd.supervisor import Supervisor
from workerd.supervisor.reading import Reader
from workerd.supervisor.tree import Mains


def _pool(ctx: RoleContext, name: str, life: int) -> int:
    # A handler may speak to a database of its own.
    store.unprepare()
    return pool.main(ctx, name, life)


# Starting order: who receives is there before who sends.
MAINS = Mains(
    roles={"ingester": ingester.main, "dispatcher": dispatcher.main, "gateway": gateway.main},
    pool=_pool,
)


def run(reader: Reader) -> int:
    """Run the node in the foreground until it is told to stop; returns the exit status.

    Raises ConfigError, BootError.
    """
    first = reader.read()
    log.configure(first.config.log)
    delegation = Delegation.find()
    if delegation is not None:
        delegation.prepare()
    metrics.install()
    messages.prepare()
    store.prepare(first.scheme)
    # What was imported so far is shared by all processes; a collector that touched it would copy it.
    gc.collect()
    gc.freeze()
    return Supervisor(first, MAINS, reader.read, ServiceManager.take().notify).run()
