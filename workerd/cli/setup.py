"""`migrate`, `install`, `uninstall`, `demo`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from workerd.cli.faults import Ended
from workerd.cli.opening import configuration
from workerd.cli.options import ConfigPath
from workerd.cli.terminal import plural, put, say

if TYPE_CHECKING:
    from workerd.install import Step

Prefix = Annotated[Path, typer.Option("--prefix", metavar="P", help="Below this folder instead of /.")]


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


def install(prefix: Prefix = Path("/")) -> None:
    """Lay the unit, sysusers and etc/ on this machine.

    Configuration that a person changed is kept; the new one is laid beside it.
    """
    from workerd import install as installing

    steps = installing.install(prefix.absolute())
    _tell(steps)
    warning = installing.unreachable(installing.own_program())
    if warning:
        say(warning)
    if prefix == Path("/"):
        say(
            "Next: edit /etc/workerd/workerd.toml, then `systemd-sysusers`, `systemctl daemon-reload` and "
            "`systemctl enable --now workerd`."
        )


def uninstall(prefix: Prefix = Path("/")) -> None:
    """Take away what `install` laid.

    Configuration that a person changed stays, and so does what the daemon has stored.
    """
    from workerd import install as installing

    _tell(installing.uninstall(prefix.absolute()))


def _tell(steps: list[Step]) -> None:
    for step in steps:
        put(f"{step.what.ljust(7)}  {step.path}")
