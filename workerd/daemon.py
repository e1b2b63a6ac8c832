"""The one module that knows every role: what is imported before the first fork, and what each child runs."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable

from workerd import dispatcher, gateway, ingester, log, metrics, pool
from workerd.config.model import Config
from workerd.process.cgroup import Delegation
from workerd.process.systemd import ServiceManager
from workerd.supervisor import Supervisor
from workerd.supervisor.tree import Mains

# Starting order: who receives is there before who sends.
MAINS = Mains(
    roles={"ingester": ingester.main, "dispatcher": dispatcher.main, "gateway": gateway.main},
    pool=pool.main,
)


def run(config: Config, load: Callable[[], Config]) -> int:
    """Run the node in the foreground until it is told to stop; returns the exit status.

    `load` reads the configuration again at reload. Raises BootError.
    """
    log.configure(config.log)
    for name in [name for name in os.environ if name.startswith("WORKERD_")]:
        del os.environ[name]  # they may hold a password, and pools inherit the environment
    delegation = Delegation.find()
    if delegation is not None:
        delegation.prepare()
    metrics.install()
    # What was imported so far is shared by all processes; a collector that touched it would copy it.
    gc.collect()
    gc.freeze()
    return Supervisor(config, MAINS, load, ServiceManager.take().notify).run()
