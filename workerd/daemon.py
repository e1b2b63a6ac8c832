"""The one module that knows every role: what is imported before the first fork, and what each child runs."""

from __future__ import annotations

import gc

from workerd import log, messages
from workerd.dispatcher import dispatcher
from workerd.gateway import server
from workerd.ingester import ingester
from workerd.metrics import values
from workerd.pool import pool
from workerd.runtime.cgroup import Delegation
from workerd.runtime.paths import RoleContext
from workerd.runtime.systemd import ServiceManager
from workerd.store import engines
from workerd.supervisor.children import Mains
from workerd.supervisor.sealed_config import Reader
from workerd.supervisor.supervisor import Supervisor


def _pool(ctx: RoleContext, name: str, life: int) -> int:
    # A handler may speak to a database of its own.
    engines.unprepare()
    return pool.main(ctx, name, life)


# Starting order: who receives is there before who sends.
MAINS = Mains(
    roles={"ingester": ingester.main, "dispatcher": dispatcher.main, "gateway": server.main},
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
    values.install()
    messages.prepare()
    engines.prepare(first.scheme)
    # What was imported so far is shared by all processes; a collector that touched it would copy it.
    gc.collect()
    gc.freeze()
    return Supervisor(first, MAINS, reader.read, ServiceManager.take().notify).run()
