"""`install` and `uninstall`: unit, system user and configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from workerd import install as installation
from workerd.cli.terminal import put, say

Prefix = Annotated[
    Path, typer.Option("--prefix", metavar="P", help="The root of the file system to lay the files into.")
]
ROOT = Path("/")


def install(prefix: Prefix = ROOT) -> None:
    """Lay down unit, system user and configuration; changed configuration is kept."""
    program = installation.own_program()
    for step in installation.install(prefix, program):
        if step.what == "kept":
            put(f"kept     {step.path} (it was changed; the new one is {step.path.name}.new)")
        else:
            put(f"{step.what:<8} {step.path}")
    if trouble := installation.unreachable(program):
        say(trouble)
    if prefix == ROOT:
        say(
            "Now say in /etc/workerd/workerd.toml which handlers there are, then run: systemd-sysusers; "
            "systemd-tmpfiles --create; systemctl daemon-reload; workerd check; "
            "systemctl enable --now workerd."
        )


def uninstall(prefix: Prefix = ROOT) -> None:
    """Take away what `install` laid; changed configuration and stored jobs stay."""
    for step in installation.uninstall(prefix):
        put(f"{step.what:<8} {step.path}" + (" (it was changed)" if step.what == "kept" else ""))
    if prefix == ROOT:
        say("If the service still runs: systemctl disable --now workerd; systemctl daemon-reload.")
