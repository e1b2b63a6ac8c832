"""Every command by its name."""

from __future__ import annotations

import typer

from workerd.cli import daemon


def _version(wanted: bool) -> None:
    if wanted:
        import workerd

        print(workerd.__version__)
        raise typer.Exit


def _group(help_text: str) -> typer.Typer:
    return typer.Typer(help=help_text, rich_markup_mode=None, no_args_is_help=True, add_completion=False)


app = typer.Typer(
    help="Background jobs in the MySQL, MariaDB or SQLite that you already have.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    # Completion scripts are for terminals; its import costs what a shell script would pay for nothing.
    add_completion=False,
)

for command in (daemon.run, daemon.start, daemon.stop, daemon.restart, daemon.reload):
    app.command()(command)
