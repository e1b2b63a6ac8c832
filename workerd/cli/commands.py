"""The table of commands; a command's module is imported only when that command is called."""

from __future__ import annotations

import importlib
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup, TyperOption

import workerd
from workerd.cli.options import Command

# Words, `module:function` below `workerd`, and the first line of the function's docstring: the overview shows
# it without importing every module.
COMMANDS = (
    ("run", "cli.daemon:run", "Run the daemon in the foreground; it logs to standard error."),
    ("start", "cli.daemon:start", "Start the daemon in the background, without systemd."),
    ("stop", "cli.daemon:stop", "Stop the daemon after its running jobs have finished."),
    ("restart", "cli.daemon:restart", "Restart the daemon in the background, or only POOL."),
    ("reload", "cli.daemon:reload", "Make the daemon read its configuration again."),
    ("status", "cli.status:status", "Show the state of the daemon on this host."),
    ("config", "cli.help:config", "Print the configuration: each key, its default and meaning."),
    ("check", "cli.admin:check", "Validate the configuration and load every handler."),
    ("migrate", "cli.admin:migrate", "Migrate the store to this version's schema."),
    ("enqueue", "cli.jobs:enqueue", "Enqueue a job and print its id; with --wait, its result."),
    ("job show", "cli.jobs:show", "Show a job and its attempts."),
    ("job log", "cli.job_log:log", "Print what an attempt printed and logged; with --follow, live."),
    ("job run", "cli.run_job:run", "Run a job's attempt here, without the daemon and the store."),
    ("job list", "cli.jobs:list_", "List jobs, most recently created or ended first."),
    ("job cancel", "cli.job_acts:cancel", "Cancel jobs by id, or live jobs by filters."),
    ("job edit", "cli.jobs:edit", "Change a job that waits; KEY=null removes one of its arguments."),
    ("job retry", "cli.job_acts:retry", "Run ended jobs again, by id or by filters."),
    ("request submit", "cli.requests:submit", "Submit a request and print its id; with --wait, its result."),
    ("request show", "cli.requests:show", "Show a request and the graph of its jobs."),
    ("request list", "cli.requests:list_", "List requests, newest first."),
    ("request signal", "cli.requests:signal", "Send a signal to a request: the job that waits for it ends."),
    ("request cancel", "cli.requests:cancel", "Cancel a request."),
    ("errors list", "cli.error_groups:list_", "List groups of failures, the one that failed last first."),
    ("errors show", "cli.error_groups:show", "Show a group of failures and its newest one."),
    ("errors resolve", "cli.error_groups:resolve", "Close a group of failures until it recurs."),
    ("errors mute", "cli.error_groups:mute", "Leave a group out of lists and alerts for some time."),
    ("handlers", "cli.handlers:handlers", "List handlers, their arguments and their state."),
    ("pause", "cli.handlers:pause", "Pause a handler: no job of it starts until `resume`."),
    ("resume", "cli.handlers:resume", "Resume a paused handler."),
    ("stats", "cli.stats:stats", "Show waiting and running jobs, workers and rates by handler."),
    ("limits", "cli.limits:limits", "List limits, their use and their handlers; or end a hold."),
    ("nodes", "cli.handlers:nodes", "List the nodes that share the store."),
    ("schedules", "cli.schedules:schedules", "List schedules, or set, remove, pause, resume or run one."),
    ("audit", "cli.audit:audit", "List what people and programs changed, newest first."),
    ("why", "cli.why:why", "Explain what a job or request waits for, or how it ended."),
    ("dead-letters", "cli.dead_letters:dead_letters", "List outcomes that the store refused in any form."),
    ("top", "cli.top:top", "Show pools, workers, running jobs, rates and queues, live."),
    ("demo", "demo.demo:demo", "Run real jobs on a temporary daemon and show how they end."),
    ("completion", "cli.help:completion", "Print the script that completes commands in a shell."),
    ("install", "cli.admin:install", "Install the systemd units, their user and /etc/workerd."),
    ("uninstall", "cli.admin:uninstall", "Remove what `install` installed."),
)
GROUPS = {
    "errors": "List groups of failures (without a word); show, resolve, mute one.",
    "job": "Show, list, change, cancel and retry jobs; print their logs; run one here.",
    "request": "Submit, show, list and cancel requests, the runs of workflows.",
}


DEFAULT_COMMANDS = {"errors": "list"}
"""What a group does without the word of a command."""


class LazyCommand(TyperCommand):
    """A command as the overview shows it, which is loaded when it is called."""

    def __init__(self, name: str, target: str, summary: str) -> None:
        super().__init__(name, help=summary)
        self.target = target

    def load(self) -> Any:
        """The command with its options, as Typer reads them from the function's signature."""
        module, _, function = self.target.partition(":")
        app = typer.Typer(rich_markup_mode=None, add_completion=False)
        app.command(self.name, cls=Command)(getattr(importlib.import_module(f"workerd.{module}"), function))
        return typer.main.get_command(app)


class LazyGroup(TyperGroup):
    """Commands that are loaded when they are called or asked for their help."""

    def __init__(self, name: str, summary: str, **more: Any) -> None:
        super().__init__(name=name, help=summary, no_args_is_help=True, rich_markup_mode=None, **more)
        self._default = DEFAULT_COMMANDS.get(name)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments into the context; those of the default command may come without its name."""
        if self._default is not None and (not args or args[0].startswith("-")) and "--help" not in args[:1]:
            args = [self._default, *args]
        return super().parse_args(ctx, args)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The name and the command that `args` begin with, and the other arguments."""
        name, command, rest = super().resolve_command(ctx, args)
        return name, command.load() if isinstance(command, LazyCommand) else command, rest


def _print_version(ctx: typer.Context, option: Any, wanted: bool) -> None:
    if wanted:
        print(workerd.__version__)
        ctx.exit()


def build() -> LazyGroup:
    """The command `workerd` with all others below it."""
    version = TyperOption(
        param_decls=["--version"],
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=_print_version,
        help="Print the version and exit.",
    )
    # `main` moves it behind the command's words; here it is for the help alone.
    path = TyperOption(
        param_decls=["-c"],
        metavar="PATH",
        expose_value=False,
        help="Configuration, before or after the command: a TOML file or a folder of them. Without it: "
        "$WORKERD_CONFIG, else /etc/workerd.",
    )
    summary = "Background jobs in the MySQL, MariaDB or SQLite that you already have."
    root = LazyGroup("workerd", summary, params=[path, version])
    groups = {"": root}
    for words, target, summary in COMMANDS:
        group, _, name = words.rpartition(" ")
        if group not in groups:
            groups[group] = LazyGroup(group, GROUPS[group])
            root.add_command(groups[group])
        groups[group].add_command(LazyCommand(name, target, summary))
    return root
