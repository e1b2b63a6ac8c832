"""`request submit|show|list|cancel|signal`: requests, the runs of workflows."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from workerd.cli.errors import CommandExit, CommandFailed, UsageError
from workerd.cli.options import (
    AsJson,
    ConfigPath,
    Limit,
    Reveal,
    SinceFilter,
    Wait,
    parse_identity,
    parse_key_values,
    parse_request_status,
)
from workerd.cli.output import notify, print_json, print_text
from workerd.cli.session import CommandSession, open_session
from workerd.cli.streams import saying_if_unprinted
from workerd.cli.views import print_request, print_request_table, print_results
from workerd.job import id_text, parse_id
from workerd.operations import request_graphs, requests
from workerd.operations.waiting import wait_until
from workerd.signature import coerce_texts
from workerd.text import line
from workerd.tracing import switch as tracing
from workerd.tracing.context import of_environment
from workerd.workflow import ADHOC, RequestStatus

DEFAULT_LIMIT = 50
"""Requests that `request list` shows without --limit."""

WorkflowName = Annotated[str | None, typer.Argument(metavar="[WORKFLOW]", help="Name of the workflow.")]
GraphFile = Annotated[
    Path | None,
    typer.Option("--graph", metavar="FILE", help="Submit the graph of this JSON file instead of a workflow."),
]
SignalName = Annotated[str, typer.Argument(metavar="NAME", help="Name of the signal.")]
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
    workflow: WorkflowName = None,
    key_values: KeyValues = None,
    graph: GraphFile = None,
    wait: Wait = None,
    reveal: Reveal = False,
    c: ConfigPath = None,
    json: AsJson = False,
) -> None:
    """Submit a request and print its id; with --wait, its result.

    The result is what the last jobs returned, by their names, below the request. With --json it is the
    `result` of the request's document.
    """
    if (workflow is None) == (graph is None):
        raise UsageError("Expected the name of a workflow, or --graph FILE.")
    texts = parse_key_values(key_values or [])
    with open_session(c) as session:
        if graph is not None:
            key = _submit_graph(session, graph)
        else:
            key = _submit_workflow(session, workflow or "", texts)
        with saying_if_unprinted(f"It is request {id_text(key)}."):
            if wait is not None:
                _wait(session, key, wait, json, reveal)
            elif json:
                _print(session, key, json, reveal)
            else:
                print_text(id_text(key))


def _submit_workflow(session: CommandSession, workflow: str, texts: dict[str, str]) -> bytes:
    requests.check_workflow(session.config, workflow)
    params = requests.checked_params(session.config, coerce_texts(None, texts))
    with _tracing(session, workflow) as submitting:
        traceparent = tracing.traceparent_of(submitting)
        done = session.run(lambda tx: requests.submit(tx, workflow, params, None, traceparent))
        submitting.enqueued = [done]
    return parse_id(done.id)


def _tracing(session: CommandSession, workflow: str) -> Any:
    traced = tracing.of_enqueues(None, session.config.otel, "workerd")
    return tracing.submitting(traced, workflow, of_environment())


def _submit_graph(session: CommandSession, file: Path) -> bytes:
    """Submit the graph of a file, a large batch in slices."""
    try:
        document = msgspec.json.decode(file.read_bytes(), type=dict[str, Any])
    except OSError as error:
        raise UsageError(f"{file}: {error.strerror}") from None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"{file}: expected a JSON object ({error}).") from None
    plan = session.read(lambda tx: request_graphs.checked(tx, session.config, document))
    with _tracing(session, ADHOC) as submitting:
        plan = request_graphs.traced(plan, tracing.context_of(submitting))
        done = request_graphs.submit_in_slices(session.run, plan)
        submitting.enqueued = [done]
    return parse_id(done.id)


def signal(
    request_id: RequestId,
    name: SignalName,
    key_values: KeyValues = None,
    c: ConfigPath = None,
) -> None:
    """Send a signal to a request: the job that waits for it ends.

    Its payload, which later jobs find in `ctx.needs`, is an object of the KEY=VALUE words, null without any.
    """
    texts = parse_key_values(key_values or [])
    payload = coerce_texts(None, texts) or None
    with open_session(c) as session:
        session.run(lambda tx: requests.signal(tx, session.actor, session.config, request_id, name, payload))
    notify(f"Signal {line(name)} sent.")


def _wait(session: CommandSession, key: bytes, timeout_s: float, json: bool, reveal: bool) -> None:
    shown = id_text(key)
    try:
        wait_until(session.read, partial(requests.ended, request_id=key), timeout_s)
    except TimeoutError:
        raise CommandFailed(
            f"Request {shown} has not ended in time; it continues. `workerd request show {shown}` shows it."
        ) from None
    except KeyboardInterrupt:
        notify(f"Request {shown} continues; `workerd request cancel {shown}` cancels it.")
        raise
    (request, graph), result = session.look_up(
        lambda tx, rules: (requests.get_with_graph(tx, key, rules), requests.results(tx, key, rules)),
        shown,
        reveal=reveal,
    )
    completed = request["status"] == RequestStatus.COMPLETED
    if json:
        print_json({**request, "result": result})
    else:
        print_request(request, graph)
        print_results(result)
    if not completed:
        notify(f"Request {shown} ended as {request['status']}. `workerd why {shown}` explains.")
        raise CommandExit(1)


def show(request_id: RequestId, reveal: Reveal = False, c: ConfigPath = None, json: AsJson = False) -> None:
    """Show a request and the graph of its jobs."""
    with open_session(c) as session:
        _print(session, request_id, json, reveal)


def _print(session: CommandSession, key: bytes, json: bool, reveal: bool) -> None:
    request, graph = session.look_up(
        lambda tx, rules: requests.get_with_graph(tx, key, rules), id_text(key), reveal=reveal
    )
    if json:
        print_json(request)
        return
    print_request(request, graph)
    workflow = request["workflow"]
    if (
        request["status"] == RequestStatus.QUEUING
        and workflow is not None
        and workflow not in session.config.workflows
    ):
        notify(
            f"Workflow {line(workflow)} is not configured here: only a node that has it can start "
            f"this request."
        )


def list_(
    workflow: WorkflowFilter = None,
    status: RequestStatusFilter = None,
    since: SinceFilter = None,
    limit: Limit = None,
    c: ConfigPath = None,
    json: AsJson = False,
) -> None:
    """List requests, newest first."""
    with open_session(c) as session:
        pages = list(
            session.pages(
                requests.list_,
                limit or DEFAULT_LIMIT,
                workflow=workflow,
                status=status,
                since=since,
                rules=session.rules,
            )
        )
    found = [request for rows, _ in pages for request in rows]
    cursor = pages[-1][1]
    if json:
        print_json({"requests": found, "next": cursor})
        return
    print_request_table(found)
    if cursor is not None and limit is None:
        notify(f"These are the newest {len(found)}; --limit N shows more.")


def cancel(request_id: RequestId, c: ConfigPath = None) -> None:
    """Cancel a request.

    Waiting jobs are cancelled, running jobs are asked to stop, no further step starts.
    """
    with open_session(c) as session:
        result = session.run(lambda tx: requests.cancel(tx, session.actor, request_id))
    if result == "ended":
        notify("The request is cancelled.")
    else:
        notify("The request was asked to stop: it is cancelled when its running jobs have ended.")
