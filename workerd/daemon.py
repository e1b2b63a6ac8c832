"""The one module that knows every role: what is imported before the first fork, and what each child runs."""

from __future__ import annotations

import gc

from workerd import dispatcher, gateway, ingester, log, metrics, pool
from workerd.process.cgroup import Delegation
from workerd.process.systemd import ServiceManager
from workerd.supervisor import Supervisor
from workerd.supervisor.reading import Reader
from workerd.supervisor.tree import Mains

# Starting order: who receives is there before who sends.
MAINS = Mains(
    roles={"ingester": ingester.main, "dispatcher": dispatcher.main, "gateway": gateway.main},
    pool=pool.main,
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
    # What was imported so far is shared by all processes; a collector that touched it would copy it.
    gc.collect()
    gc.freeze()
    return Supervisor(first, MAINS, reader.read, ServiceManager.take().notify).run()
