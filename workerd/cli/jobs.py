"""`enqueue` and `job show|list|cancel|retry`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from workerd.cli.errors import CommandExit, CommandFailed, UsageError
from workerd.cli.options import (
    AsJson,
    ConfigPath,
    HandlerFilter,
    HandlerName,
    JobId,
    Limit,
    SinceFilter,
    StatusFilter,
    Wait,
    parse_duration,
    parse_identity,
    parse_json,
    parse_json_object,
    parse_key_values,
)
from workerd.cli.output import Document, notify, print_json, print_text
from workerd.cli.session import CommandSession, open_session
from workerd.cli.views import exit_of, print_job, print_job_table, print_payload
from workerd.errors import Conflict, NotFound
from workerd.job import LIVE, Status, id_text, parse_id
from workerd.job_spec import JobSpec
from workerd.operations import jobs
from workerd.operations.enqueue import admit_texts
from workerd.operations.waiting import wait_until
from workerd.text import line

DEFAULT_LIMIT = 50
"""Jobs that `job list` shows without --limit."""

KeyValues = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE ...", help="Arguments: JSON where it parses as JSON, else text."),
]
Vars = Annotated[
    Document | None,
    typer.Option("--vars", metavar="JSON", parser=parse_json_object, help="Arguments as one JSON object."),
]
Delay = Annotated[
    float | None,
    typer.Option("--delay", metavar="D", parser=parse_duration, help="Start this much later: 90s, 5m."),
]
RunAt = Annotated[
    str | None, typer.Option("--run-at", metavar="T", help="Start at this time: 2026-01-31T12:00:00+01:00.")
]
Priority = Annotated[int, typer.Option("--priority", metavar="N", help="Smaller runs first.")]
UniqueKey = Annotated[
    str | None,
    typer.Option("--unique", metavar="KEY", help="At most one live job of the handler has this key."),
]
Deadline = Annotated[
    float | None,
    typer.Option("--deadline", metavar="D", parser=parse_duration, help="Overrides the handler's deadline."),
]
MaxAttempts = Annotated[
    int | None, typer.Option("--max-attempts", metavar="N", help="Overrides the handler's max_attempts.")
]
Meta = Annotated[
    Any,
    typer.Option("--meta", metavar="JSON", parser=parse_json, help="Any JSON of yours, kept with the job."),
]
JobIds = Annotated[
    list[bytes] | None, typer.Argument(metavar="ID ...", help="Ids of jobs.", parser=parse_identity)
]


def enqueue(
    handler: HandlerName,
    key_values: KeyValues = None,
    vars_: Vars = None,
    delay: Delay = None,
    run_at: RunAt = None,
    priority: Priority = 0,
    unique: UniqueKey = None,
    deadline: Deadline = None,
    max_attempts: MaxAttempts = None,
    meta: Meta = None,
    wait: Wait = None,
    c: ConfigPath = None,
    json: AsJson = False,
) -> None:
    """Enqueue a job and print its id; with --wait, its result."""
    texts = parse_key_values(key_values or [])
    spec = JobSpec(
        handler=handler,
        vars=vars_ or {},
        delay=delay,
        run_at=run_at,
        priority=priority,
        unique_key=unique,
        deadline=deadline,
        max_attempts=max_attempts,
        meta=meta,
    )
    with open_session(c) as session:
        job_id = session.run(lambda tx: admit_texts(tx, spec, texts, session.config)).id
        try:
            if wait is not None:
                _wait(session, job_id, wait, json)
            elif json:
                print_json(session.read(partial(jobs.get, job_id=parse_id(job_id))))
            else:
                print_text(job_id)
        except KeyboardInterrupt:
            notify(f"Job {job_id} continues; `workerd job cancel {job_id}` cancels it.")
            raise


def _wait(session: CommandSession, job_id: str, timeout_s: float, json: bool) -> None:
    key = parse_id(job_id)
    try:
        wait_until(session.read, partial(jobs.ended, job_id=key), timeout_s)
    except TimeoutError:
        raise CommandFailed(
            f"Job {job_id} has not ended in time; it continues. `workerd job show {job_id}` shows it."
        ) from None
    job = session.read(partial(jobs.get, job_id=key))
    if json:
        print_json(job)
    elif job["status"] == Status.COMPLETED:
        print_payload(job)
    if job["status"] != Status.COMPLETED:
        notify(_failure_text(job))
        raise CommandExit(1)


def _failure_text(job: Document) -> str:
    how = exit_of(job)
    exit_ = f" ({how})" if how else ""
    error = f": {line(job['error'])}" if job["error"] else ""
    return (
        f"Job {job['id']} ended as {job['status']}, {job['reason']}{exit_}{error}. "
        f"`workerd why {job['id']}` explains."
    )


def show(job_id: JobId, c: ConfigPath = None, json: AsJson = False) -> None:
    """Show a job and its attempts."""
    with open_session(c) as session:
        job = session.read(partial(jobs.get, job_id=job_id))
    if json:
        print_json(job)
    else:
        print_job(job)


# -- lists and filters


def list_(
    handler: HandlerFilter = None,
    status: StatusFilter = None,
    since: SinceFilter = None,
    limit: Limit = None,
    c: ConfigPath = None,
    json: AsJson = False,
) -> None:
    """List jobs, newest first."""
    with open_session(c) as session:
        pages = list(session.pages(jobs.list_, limit or DEFAULT_LIMIT, **_filters(handler, status, since)))
    found = [job for rows, _ in pages for job in rows]
    cursor = pages[-1][1]
    if json:
        print_json({"jobs": found, "next": cursor})
        return
    print_job_table(found)
    if cursor is not None and limit is None:
        notify(f"These are the newest {len(found)}; --limit N shows more.")


Filters = dict[str, Any]


def _filters(handler: str | None, status: Status | None, since: int | None) -> Filters:
    given = {"handler": handler, "status": status, "since": since}
    return {name: value for name, value in given.items() if value is not None}


# -- cancel and retry


def cancel(
    ids: JobIds = None,
    handler: HandlerFilter = None,
    status: StatusFilter = None,
    since: SinceFilter = None,
    limit: Limit = None,
    c: ConfigPath = None,
    json: AsJson = False,
) -> None:
    """Cancel jobs by id, or live jobs by filters.

    The filters are those of `job list`.
    """
    filters = _filters(handler, status, since)

    def cancel_one(session: CommandSession, key: bytes) -> str:
        result = session.run(lambda tx: jobs.cancel(tx, session.actor, key))
        return "cancelled" if result == "ended" else "asked to stop"

    _apply(cancel_one, ids, filters, sorted(LIVE), limit, c, json)


def retry(
    ids: JobIds = None,
    handler: HandlerFilter = None,
    status: StatusFilter = None,
    since: SinceFilter = None,
    limit: Limit = None,
    c: ConfigPath = None,
    json: AsJson = False,
) -> None:
    """Run ended jobs again, by id or by filters.

    The filters are those of `job list`; without --status they match failed jobs.
    """
    filters = _filters(handler, status, since)

    def retry_one(session: CommandSession, key: bytes) -> str:
        return f"attempt {session.run(lambda tx: jobs.retry(tx, session.actor, key))}"

    _apply(retry_one, ids, filters, [Status.FAILURE], limit, c, json)


def _apply(
    action: Callable[[CommandSession, bytes], str],
    ids: list[bytes] | None,
    filters: Filters,
    default_states: Sequence[Status],
    limit: int | None,
    path: Path | None,
    json: bool,
) -> None:
    """Apply `action` to each job, in a transaction of its own, and print each result."""
    if ids and (filters or limit):
        raise UsageError("Give ids or filters, not both.")
    if not ids and not filters:
        raise UsageError("Name the jobs: by id, or with --handler, --status, --since.")
    done: list[dict[str, str]] = []
    failed = False
    with open_session(path) as session:
        for key in ids or _matching(session, filters, default_states, limit):
            try:
                result = action(session, key)
            except (NotFound, Conflict) as error:
                # A job that ended after a filter matched it is what the caller wanted anyway.
                failed = failed or bool(ids)
                result = str(error)
            done.append({"id": id_text(key), "result": result})
    if json:
        print_json({"jobs": done})
    else:
        for job in done:
            print_text(f"{job['id']}  {job['result']}")
        if not done:
            notify("No job matches the filters. `workerd job list` lists existing jobs.")
    if failed:
        raise CommandExit(1)


def _matching(
    session: CommandSession, filters: Filters, default_states: Sequence[Status], limit: int | None
) -> list[bytes]:
    """Ids of the jobs that the filters match, all read before the first is changed: changes move pages."""
    states = [filters["status"]] if "status" in filters else default_states
    found: list[bytes] = []
    for state in states:
        room = math.inf if limit is None else limit - len(found)
        for rows, _ in session.pages(jobs.list_, room, **{**filters, "status": state}):
            found += [parse_id(job["id"]) for job in rows]
    return found
