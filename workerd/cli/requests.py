"""`request submit|show|list|cancel`: runs of workflows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from workerd.cli.errors import CommandExit, CommandFailed, UsageError
from workerd.cli.options import (
    AsJson,
    ConfigPath,
    Limit,
    SinceFilter,
    Wait,
    identity,
    key_values,
    patience,
    since,
)
from workerd.cli.output import put, put_json, say
from workerd.cli.session import opened, wake
from workerd.cli.views import show_request, table_of_requests
from workerd.clock import now_us
from workerd.config.model import Config
from workerd.job import id_text
from workerd.text import line

if TYPE_CHECKING:
    from workerd.store.base import Store, Tx


SHOWN = 50
PAGE = 200

Workflow = Annotated[str, typer.Argument(metavar="WORKFLOW", help="The workflow's name.")]
Words = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Parameters: JSON where it parses as JSON, else text."),
]
RequestId = Annotated[str, typer.Argument(metavar="ID", help="The request's id.")]
RequestStatusFilter = Annotated[
    str | None,
    typer.Option(
        "--status",
        metavar="S",
        help="Only requests in this state: queuing, inprogress, completed, failed or cancelled.",
    ),
]
WorkflowFilter = Annotated[
    str | None, typer.Option("--workflow", metavar="W", help="Only requests of this workflow.")
]


def submit(
    workflow: Workflow, words: Words = None, wait: Wait = None, c: ConfigPath = None, json: AsJson = False
) -> None:
    """Begin a request and print its id; with --wait show how it ended."""
    from workerd.job_spec import params_json
    from workerd.signature import coerce_texts
    from workerd.store import requests

    texts = key_values(words or [])
    limit = patience(wait)
    with opened(c) as (config, store):
        _check_workflow(config, workflow)
        try:
            params = params_json(coerce_texts(None, texts), config.gateway.max_body)
        except ValueError as error:
            raise UsageError(f"{error}.") from None
        key = store.run(lambda tx: requests.submit(tx, workflow, params)).id
        wake(config)
        if wait is not None:
            _wait(config, store, key, limit, json)
        elif json:
            put_json(store.read(lambda tx: document_of(tx, key)))
        else:
            put(id_text(key))


def _check_workflow(config: Config, name: str) -> None:
    if name in config.workflows:
        return
    known = ", ".join(sorted(config.workflows))
    hint = f"known are: {known}." if known else "the configuration has no [workflows.NAME]."
    raise UsageError(f'There is no workflow "{name}"; {hint}')


def _wait(config: Config, store: Store, key: bytes, limit: float | None, json: bool) -> None:
    from workerd.operations import requests as operations
    from workerd.operations.waiting import until

    shown = id_text(key)
    try:
        until(store.read, lambda tx: operations.ended(tx, key), limit)
    except TimeoutError:
        raise CommandFailed(
            f"The request {shown} has not ended in time; it goes on. "
            f"`workerd request show {shown}` says how it is."
        ) from None
    except KeyboardInterrupt:
        say(f"The request {shown} goes on; `workerd request cancel {shown}` ends it.")
        raise
    _show(config, store, key, json)
    if store.read(lambda tx: document_of(tx, key))["status"] != "completed":
        raise CommandExit(1)


def show(request_id: RequestId, c: ConfigPath = None, json: AsJson = False) -> None:
    """Show a request and the graph of its jobs."""
    key = identity(request_id)
    with opened(c) as (config, store):
        _show(config, store, key, json)


def _show(config: Config, store: Store, key: bytes, json: bool) -> None:
    from workerd.store import requests

    if json:
        put_json(store.read(lambda tx: document_of(tx, key)))
        return
    row, jobs = store.read(lambda tx: requests.get(tx, key))
    show_request(row, jobs)
    if row.status == "queuing" and row.workflow not in config.workflows:
        say(f"No workflow {line(row.workflow)} is configured here: only a node that has it can begin this.")


def document_of(tx: Tx, key: bytes) -> dict[str, Any]:
    """The request's document, with its jobs. Raises NotFound."""
    from workerd import documents
    from workerd.store import requests

    row, jobs = requests.get(tx, key)
    return documents.request(row, jobs)


def list_(
    workflow: WorkflowFilter = None,
    status: RequestStatusFilter = None,
    since_: SinceFilter = None,
    limit: Limit = None,
    c: ConfigPath = None,
    json: AsJson = False,
) -> None:
    """List requests, newest first."""
    from workerd import documents
    from workerd.store import requests
    from workerd.workflow import RequestStatus

    if status is not None and status not in list(RequestStatus):
        known = ", ".join(RequestStatus)
        raise UsageError(f'--status: expected one of {known}, got "{line(status)}".')
    moment = since(since_, now_us())
    found: list[Any] = []
    after: str | None = None
    most = limit or SHOWN
    with opened(c) as (_, store):
        while len(found) < most:
            size = min(PAGE, most - len(found))

            def page(tx: Tx, size: int = size, after: str | None = after) -> Any:
                return requests.list_(
                    tx, status=status, workflow=workflow, since=moment, limit=size, after=after
                )

            got = store.read(page)
            found += got.rows
            after = got.next
            if after is None:
                break
    if json:
        put_json({"requests": [documents.request(row) for row in found], "next": after})
        return
    table_of_requests(found)
    if after is not None and limit is None:
        say(f"There are more: these are the newest {len(found)}; --limit shows as many as you say.")


def cancel(request_id: RequestId, c: ConfigPath = None) -> None:
    """Cancel a request.

    What waits is cancelled, what runs is asked to end, no further step begins.
    """
    from workerd.store import requests

    key = identity(request_id)
    with opened(c) as (config, store):
        result = store.run(lambda tx: requests.cancel(tx, key))
        wake(config)
    if result == "ended":
        say("The request is cancelled.")
    else:
        say("The request was asked to end: it is cancelled when its running jobs have ended.")
