"""`migrate`, `install`, `uninstall`, `demo`."""

from __future__ import annotations

from workerd.cli.faults import Ended
from workerd.cli.opening import configuration
from workerd.cli.options import ConfigPath
from workerd.cli.terminal import plural, put, say


def migrate(c: ConfigPath = None) -> None:
    """Bring the store to this version."""
    from workerd.store import open_store

    config = configuration(c)
    store = open_store(config.store, state_dir=config.node.state_dir)
    try:
        applied = store.migrate()
    finally:
        store.close()
    for name in applied:
        put(name)
    if applied:
        say(f"{plural(len(applied), 'migration')} applied; the store is ready for this version.")
    else:
        say("The store is of this version already; nothing was changed.")


def demo() -> None:
    """Run everything once, in a temporary folder, on real input."""
    from workerd.demo.run import demo as run_demo

    status = run_demo()
    if status:
        raise Ended(status)
