"""What each child of the daemon runs, and what is imported before the first fork: knows every role."""

from __future__ import annotations

from workerd import log, messages
from workerd.dispatcher import dispatcher
from workerd.ingester import ingester
from workerd.metrics import values
from workerd.pool import pool, worker_messages
from workerd.runtime.cgroup import Delegation
from workerd.runtime.child import allow_inspection, forbid_inspection, share_memory
from workerd.runtime.paths import RoleContext
from workerd.runtime.systemd import ServiceManager
from workerd.store import engines
from workerd.supervisor.children import Mains
from workerd.supervisor.sealed_config import SealedConfigReader
from workerd.supervisor.supervisor import Supervisor


def _pool(ctx: RoleContext, name: str, life: int) -> int:
    allow_inspection()
    # Handlers may use the database driver for a database of their own.
    engines.unprepare()
    return pool.main(ctx, name, life)


def _gateway(ctx: RoleContext) -> int:
    # Not before the fork: no other process needs its 14 MiB, and the supervisor starts without it.
    from workerd.gateway import server

    return server.main(ctx)


# In starting order: receivers before senders.
MAINS = Mains(
    roles={"ingester": ingester.main, "dispatcher": dispatcher.main, "gateway": _gateway},
    pool=_pool,
)


def run(reader: SealedConfigReader) -> int:
    """Run the node in the foreground until it is stopped; returns the exit status.

    Raises ConfigError, BootError.
    """
    forbid_inspection()  # before the store's credentials are read
    first = reader.read()
    log.configure(first.config.log)
    delegation = Delegation.find()
    if delegation is not None:
        delegation.prepare()
    values.install()
    messages.prepare()
    worker_messages.prepare()
    engines.prepare(first.scheme, encrypted=first.encrypted)
    share_memory()
    manager = ServiceManager.take()
    return Supervisor(first, MAINS, reader.read, manager.notify if manager.listens else None).run()
