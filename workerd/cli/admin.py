"""`check`, `migrate`, `install`, `uninstall`, `demo`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from workerd.cli.errors import CommandExit
from workerd.cli.options import AsJson, ConfigPath
from workerd.cli.output import put, put_json, say, table
from workerd.cli.session import configuration
from workerd.text import plural

if TYPE_CHECKING:
    from workerd.check import CheckReport
    from workerd.install import Step


def check(c: ConfigPath = None, json: AsJson = False) -> None:
    """Validate the configuration and load every handler.

    What would be started is shown, and what is weaker on this machine.
    """
    from workerd.check import report

    made = report(configuration(c))
    if json:
        put_json(made)
    else:
        _show(made)
    if not made.loads:
        count = sum(1 for handler in made.handlers if handler.fault)
        say(
            f"{plural(count, 'handler')} of {len(made.handlers)} cannot be loaded. Correct what is listed; "
            "started as it is, these pools would be quarantined and their jobs would wait."
        )
        raise CommandExit(1)


def _show(made: CheckReport) -> None:
    put(
        f"The configuration of node {made.node} is valid. "
        f"It starts {', '.join(made.roles)} and {plural(len(made.pools), 'pool')}."
    )
    if made.pools:
        put()
        table(
            ["pool", "workers", "handlers", "limits"],
            [(p.name, p.workers, ", ".join(p.handlers), p.limits) for p in made.pools],
        )
        put()
        table(
            ["handler", "call", "recurs", "loads"],
            [(h.name, h.call, h.recurs, f"NO: {h.fault}" if h.fault else "yes") for h in made.handlers],
        )
    for title, sentences in (
        ("Workflows", made.workflows),
        ("Weaker here", made.weaker),
        ("Set, without effect here", made.without_effect),
        ("Note", made.notes),
    ):
        if sentences:
            put(f"\n{title}:")
            for sentence in sentences:
                put(f"  {sentence}")


Prefix = Annotated[Path, typer.Option("--prefix", metavar="P", help="Below this folder instead of /.")]


def migrate(c: ConfigPath = None) -> None:
    """Bring the store to this version."""
    from workerd.store.engines import open_store

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
    from workerd.demo.demo import demo as run_demo

    status = run_demo()
    if status:
        raise CommandExit(status)


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
