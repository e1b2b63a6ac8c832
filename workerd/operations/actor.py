"""Who performs an operation, and through which interface."""

from __future__ import annotations

import os
import pwd
import sys
from pathlib import Path
from typing import Literal, NamedTuple

from workerd.config.token_file import Role as Role


class Actor(NamedTuple):
    """A person or program; `name` is stored as `paused_by`. `address`: where an HTTP request came from."""

    name: str
    via: Literal["http", "ui", "cli", "client"]
    role: Role = Role.OPERATOR
    address: str | None = None


def of_command() -> Actor:
    """The user who runs a command on this host: who can read the store's password is an operator.

    As the kernel knows the user: the environment says what its owner wants.
    """
    user = os.getuid()
    try:
        name = pwd.getpwuid(user).pw_name
    except KeyError:
        name = str(user)
    return Actor(f"cli:{name}@{os.uname().nodename}", "cli")


def of_client(name: str | None = None) -> Actor:
    """The program that uses a client; None: named by its file."""
    if name is None:
        name = Path(sys.argv[0]).name if sys.argv else ""
    return Actor(f"client:{name or 'python'}", "client")
