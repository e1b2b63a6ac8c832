"""`request submit|show|list|cancel`: requests, the runs of workflows."""

from __future__ import annotations

import math
from functools import partial
from typing import Annotated, Any

import typer

from workerd import documents
from workerd.cli.errors import CommandExit, CommandFailed, UsageError
from workerd.cli.options import (
    AsJson,
    ConfigPath,
    Limit,
    SinceFilter,
    Wait,
    parse_identity,
    parse_key_values,
    parse_request_status,
)
from workerd.cli.output import notify, print_json, print_text
from workerd.cli.session import open_session, wake
from workerd.cli.views import print_request, print_request_table
from workerd.client import request_over, until
from workerd.config.model import Config
from workerd.errors import InvalidValue
from workerd.job import id_text
from workerd.job_spec import params_json
from workerd.signature import coerce_texts
from workerd.store import requests
from workerd.store.base import Store
from workerd.store.columns import RequestRow
from workerd.text import line
from workerd.workflow import RequestStatus

DEFAULT_LIMIT = 50
"""Requests that `request list` shows without --limit."""
PAGE_ROWS = 200

WorkflowName = Annotated[str, typer.Argument(metavar="WORKFLOW", help="Name of the workflow.")]
KeyValues = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE ...", help="Parameters: JSON where it parses as JSON, else text."),
]
RequestId = Annotated[bytes, typer.Argument(metavar="ID", help="Id of the request.", parser=parse_identity)]
RequestStatusFilter = Annotated[
    RequestStatus | None,
    typer.Option(
        "--status",
        metavar="S",
        parser=parse_request_status,
        help="Only requests in this state: queuing, inprogress, completed, failed or cancelled.",
    ),
]
WorkflowFilter = Annotated[
    str | None, typer.Option("--workflow", metavar="W", help="Only requests of this workflow.")
]


def submit(
    workflow: WorkflowName,
    key_values: KeyValues = None,
    wait: Wait = None,
    c: ConfigPath = None,
    json: AsJson = False,
) -> None:
    """Submit a request and print its id; with --wait, its end."""
    texts = parse_key_values(key_values or [])
    with open_session(c) as (config, store):
        _check_workflow(config, workflow)
        try:
            params = params_json(coerce_texts(None, texts), config.gateway.max_body)
        except ValueError as error:
            raise InvalidValue(str(error)) from None
        key = store.run(lambda tx: requests.submit(tx, workflow, params)).id
        wake(config)
        if wait is not None:
            _wait(config, store, key, wait, json)
        elif json:
            _print(config, store, key, json)
        else:
            print_text(id_text(key))


def _check_workflow(config: Config, name: str) -> None:
    if name in config.workflows:
        return
    known = ", ".join(sorted(config.workflows))
    hint = f"Known are: {known}." if known else "The configuration has no [workflows.NAME]."
    raise UsageError(f'Unknown workflow "{name}". {hint}')


def _wait(config: Config, store: Store, key: bytes, timeout: float, json: bool) -> None:
    shown = id_text(key)
    try:
        until(store.read, request_over(key), None if timeout == math.inf else timeout)
    except TimeoutError:
        raise CommandFailed(
            f"Request {shown} has not ended in time; it continues. `workerd request show {shown}` shows it."
        ) from None
    except KeyboardInterrupt:
        notify(f"Request {shown} continues; `workerd request cancel {shown}` cancels it.")
        raise
    if _print(config, store, key, json).status != RequestStatus.COMPLETED:
        raise CommandExit(1)


def show(request_id: RequestId, c: ConfigPath = None, json: AsJson = False) -> None:
    """Show a request and the graph of its jobs."""
    with open_session(c) as (config, store):
        _print(config, store, request_id, json)


def _print(config: Config, store: Store, key: bytes, json: bool) -> RequestRow:
    row, jobs = store.read(lambda tx: requests.get(tx, key))
    if json:
        print_json(documents.request(row, jobs))
        return row
    print_request(row, jobs)
    if row.status == RequestStatus.QUEUING and row.workflow not in config.workflows:
        notify(
            f"Workflow {line(row.workflow)} is not configured here: only a node that has it can start "
            f"this request."
        )
    return row


def list_(
    workflow: WorkflowFilter = None,
    status: RequestStatusFilter = None,
    since: SinceFilter = None,
    limit: Limit = None,
    c: ConfigPath = None,
    json: AsJson = False,
) -> None:
    """List requests, newest first."""
    filters = {"workflow": workflow, "status": status, "since": since}
    with open_session(c) as (_, store):
        found, cursor = _newest(store, filters, limit or DEFAULT_LIMIT)
    if json:
        print_json({"requests": [documents.request(row) for row in found], "next": cursor})
        return
    print_request_table(found)
    if cursor is not None and limit is None:
        notify(f"These are the newest {len(found)}; --limit N shows more.")


def _newest(store: Store, filters: dict[str, Any], limit: int) -> tuple[list[RequestRow], str | None]:
    """The newest requests that the filters match, and the cursor of those that follow."""
    found: list[RequestRow] = []
    cursor: str | None = None
    while len(found) < limit:
        size = min(PAGE_ROWS, limit - len(found))
        page = store.read(partial(requests.list_, **filters, limit=size, after=cursor))
        found += page.rows
        cursor = page.next
        if cursor is None:
            break
    return found, cursor


def cancel(request_id: RequestId, c: ConfigPath = None) -> None:
    """Cancel a request.

    Waiting jobs are cancelled, running jobs are asked to stop, no further step starts.
    """
    with open_session(c) as (config, store):
        result = store.run(lambda tx: requests.cancel(tx, request_id))
        wake(config)
    if result == "ended":
        notify("The request is cancelled.")
    else:
        notify("The request was asked to stop: it is cancelled when its running jobs have ended.")
