"""`config` and `completion`: what needs neither a configuration nor a store."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer
from typer._completion_shared import get_completion_script

from workerd.cli.main import COMPLETION_VARIABLE
from workerd.config.reference import workerd_toml


class Shell(StrEnum):
    """Shells that can complete commands and options."""

    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"


ShellName = Annotated[Shell, typer.Argument(metavar="SHELL", help="bash, zsh or fish.")]


def config() -> None:
    """Print the configuration: each key, its default and meaning.

    `workerd config > workerd.toml` starts a configuration of your own.
    """
    print(workerd_toml(), end="")


def completion(shell: ShellName) -> None:
    """Print the script that completes commands in a shell.

    bash: `source <(workerd completion bash)`; zsh the same, after `compinit`; fish: `workerd completion fish
    | source`.
    """
    print(get_completion_script(prog_name="workerd", complete_var=COMPLETION_VARIABLE, shell=shell))
