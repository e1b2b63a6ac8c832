"""Every command by its name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import typer

from workerd.cli import admin, daemon, handlers, jobs, requests, schedules, status, top, why
from workerd.cli import jobs as cli_jobs
from workerd.cli.options import WaitingCommand


def _app(help_text: str) -> typer.Typer:
    # Plain help and no completion: Rich and the completion's scripts would be imported by every call.
    return typer.Typer(
        help=help_text,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        no_args_is_help=True,
        add_completion=False,
    )


app = _app("Background jobs in the MySQL, MariaDB or SQLite that you already have.")
job = _app("Show, list, cancel and retry jobs.")
request = _app("Submit, show, list and cancel requests, the runs of workflows.")

COMMANDS: dict[str, Callable[..., Any]] = {
    "run": daemon.run,
    "start": daemon.start,
    "stop": daemon.stop,
    "restart": daemon.restart,
    "reload": daemon.reload,
    "status": status.status,
    "check": admin.check,
    "migrate": admin.migrate,
    "enqueue": cli_jobs.enqueue,
    "handlers": handlers.handlers,
    "pause": handlers.pause,
    "resume": handlers.resume,
    "nodes": handlers.nodes,
    "schedules": schedules.schedules,
    "why": why.why,
    "top": top.top,
    "demo": admin.demo,
    "install": admin.install,
    "uninstall": admin.uninstall,
}

for name, command in COMMANDS.items():
    app.command(name, cls=WaitingCommand if name == "enqueue" else None)(command)

app.add_typer(job, name="job")
job.command("show")(jobs.show)
job.command("list")(jobs.list_)
job.command("cancel")(jobs.cancel)
job.command("retry")(jobs.retry)

app.add_typer(request, name="request")
request.command("submit", cls=WaitingCommand)(requests.submit)
request.command("show")(requests.show)
request.command("list")(requests.list_)
request.command("cancel")(requests.cancel)


@app.callback(invoke_without_command=True)
def _top(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        import workerd

        print(workerd.__version__)
        raise typer.Exit
