"""`check`, `migrate`, `install`, `uninstall`: what an administrator does with a host and its store."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec
import typer

from workerd import install as installer
from workerd.check import CheckReport, ServerPlan, check_config
from workerd.cli.errors import CommandExit
from workerd.cli.handover import HandOver, forget_drop_ins
from workerd.cli.options import AsJson, ConfigPath
from workerd.cli.output import notify, print_json, print_table, print_text
from workerd.cli.session import load_config
from workerd.config import token_file
from workerd.operations.access import inspect_store, migration_sql, server_states
from workerd.operations.access import migrate as migrate_store
from workerd.operations.limits import differing
from workerd.text import plural

AskStore = Annotated[
    bool,
    typer.Option("--store", help="Also ask the store: servers, database, schema, privileges of its user."),
]
PrintSql = Annotated[
    bool, typer.Option("--sql", help="Print the statements that would be run, and change nothing.")
]
Handover = Annotated[
    bool, typer.Option("--handover", help="Let this version take over from the daemon that systemd runs.")
]
Prefix = Annotated[Path, typer.Option("--prefix", metavar="P", help="Below this folder instead of /.")]


def check(c: ConfigPath = None, json: AsJson = False, store: AskStore = False) -> None:
    """Validate the configuration and load every handler.

    Shows what would be started, and what is degraded on this host.
    """
    config = load_config(c)
    token_file.check(config)
    report = check_config(config)
    if store:
        schema, faults = inspect_store(config)
        report = msgspec.structs.replace(
            report,
            not_checked=[],
            store=[ServerPlan(*state) for state in server_states(config)],
            schema=schema,
            store_faults=faults,
            notes=[*report.notes, *differing(config)],
        )
    if json:
        print_json(report)
    else:
        _print_report(report)
    failed = sum(1 for handler in report.handlers if handler.error)
    if failed:
        notify(
            f"{plural(failed, 'handler')} of {len(report.handlers)} cannot be loaded. Fix what is listed: "
            f"workerd would quarantine these pools, and their jobs would wait."
        )
        raise CommandExit(1)
    if report.store and not any(server.role == "writable" for server in report.store):
        notify(
            "No server of the store can be written now: fix the reason that the table shows, or start or "
            "promote a server. Jobs wait until then."
        )
        raise CommandExit(1)
    if report.store_faults:
        notify("The store cannot be used as it is: correct what is listed, then check again.")
        raise CommandExit(1)


def _print_report(report: CheckReport) -> None:
    print_text(
        f"The configuration of node {report.node} is valid. "
        f"It starts {', '.join(report.roles)} and {plural(len(report.pools), 'pool')}."
    )
    if report.pools:
        print_text()
        print_table(
            ["pool", "workers", "handlers", "limits"],
            [(p.name, p.workers, ", ".join(p.handlers), p.limits) for p in report.pools],
        )
        print_text()
        print_table(
            ["handler", "call", "recurs", "loads"],
            [(h.name, h.call, h.recurs, f"NO: {h.error}" if h.error else "yes") for h in report.handlers],
        )
    if report.store:
        print_text()
        print_table(
            ["store", "version", "role", "reason"],
            [(server.host, server.version, server.role, server.reason) for server in report.store],
        )
    for title, sentences in (
        ("Workflows", report.workflows),
        ("Degraded on this host", report.degraded),
        ("Set without effect", report.without_effect),
        ("Notes", report.notes),
        ("Store", _store_sentences(report)),
        ("Not checked", report.not_checked),
    ):
        if sentences:
            print_text(f"\n{title}:")
            for sentence in sentences:
                print_text(f"  {sentence}")


def _store_sentences(report: CheckReport) -> list[str]:
    if not report.store:
        return []
    schema = [report.schema] if report.schema else []
    return [*schema, *(fault for fault in report.store_faults or () if fault != report.schema)]


def migrate(c: ConfigPath = None, sql: PrintSql = False) -> None:
    """Migrate the store to this version's schema.

    The folder and the file of an embedded store are created. The user of the store needs CREATE, ALTER and
    INDEX for this, and SELECT, INSERT, UPDATE and DELETE for everything else.
    """
    config = load_config(c)
    if sql:
        statements = migration_sql(config)
        for statement in statements:
            print_text(f"{statement};")
        if not statements:
            notify("The store has this version's schema already; there is nothing to run.")
        return
    applied = migrate_store(config)
    for name in applied:
        print_text(name)
    if applied:
        notify(f"{plural(len(applied), 'migration')} applied; the store is ready for this version.")
    else:
        notify("The store has this version's schema already; nothing was changed.")


def install(prefix: Prefix = Path("/"), handover: Handover = False) -> None:
    """Install the systemd units, their user and /etc/workerd.

    A configuration file that was edited is kept; the new one is written beside it. With --handover this
    version replaces the running daemon without interrupting a job: it starts beside the former one and takes
    over, and that one ends when its running jobs have ended.
    """
    hand_over = HandOver(prefix) if handover else None
    _print_steps(installer.install(prefix.absolute()))
    warning = installer.unreachable(installer.own_program())
    if warning:
        notify(warning)
    if hand_over is not None:
        hand_over.run()
    elif prefix == Path("/"):
        notify(
            "Next: edit /etc/workerd/workerd.toml, then run `systemd-sysusers`, `systemctl daemon-reload` "
            "and `systemctl enable --now workerd`."
        )


def uninstall(prefix: Prefix = Path("/")) -> None:
    """Remove what `install` installed.

    Configuration files that were edited are kept, and so is everything that the daemon stored.
    """
    _print_steps(installer.uninstall(prefix.absolute()))
    if prefix == Path("/"):
        forget_drop_ins()


def _print_steps(steps: list[installer.Step]) -> None:
    for step in steps:
        print_text(f"{step.what.ljust(9)}  {step.path}")
