"""`enqueue` and `job show|list|edit`."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Unpack

import typer

from workerd.cli.audit import print_acts
from workerd.cli.errors import CommandExit, CommandFailed
from workerd.cli.filters import with_filters
from workerd.cli.options import (
    AsJson,
    ConfigPath,
    HandlerName,
    JobId,
    Limit,
    Reveal,
    Wait,
    parse_json_object,
    parse_key_values,
    with_job_options,
)
from workerd.cli.output import Document, notify, print_json, print_text
from workerd.cli.session import CommandSession, open_session
from workerd.cli.streams import saying_if_unprinted
from workerd.cli.views import exit_of, print_job, print_job_table, print_log, print_payload
from workerd.document_types import Enqueued
from workerd.job import Status, id_text, parse_id
from workerd.job_filter import JobFilter
from workerd.job_spec import JobOptions, JobSpec
from workerd.operations import audit, jobs, logs
from workerd.operations.access import Tx
from workerd.operations.edit import Edit, values_of
from workerd.operations.edit import edit as edit_job
from workerd.operations.enqueue import admit, known_handlers, with_texts
from workerd.operations.rules import Rules
from workerd.operations.waiting import wait_until
from workerd.text import line
from workerd.tracing import switch as tracing
from workerd.tracing.context import of_environment

DEFAULT_LIMIT = 50
"""Jobs that `job list` shows without --limit, and `--dry-run` of those that match."""

KeyValues = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE ...", help="Arguments: JSON where it parses as JSON, else text."),
]
Vars = Annotated[
    Document | None,
    typer.Option("--vars", metavar="JSON", parser=parse_json_object, help="Arguments as one JSON object."),
]


@with_job_options
def enqueue(
    handler: HandlerName,
    key_values: KeyValues = None,
    vars_: Vars = None,
    wait: Wait = None,
    reveal: Reveal = False,
    c: ConfigPath = None,
    json: AsJson = False,
    **options: Unpack[JobOptions],
) -> None:
    """Enqueue a job and print its id; with --wait, its result."""
    texts = parse_key_values(key_values or [])
    spec = JobSpec(handler=handler, vars=vars_ or {}, **options)
    with open_session(c) as session:
        done = _enqueue(session, spec, texts)
        job_id = done.id
        try:
            with saying_if_unprinted(f"It is job {job_id}."):
                if wait is not None:
                    _wait(session, done, wait, json, reveal)
                elif json:
                    print_json(_answer(look_up(session, parse_id(job_id), reveal), done))
                else:
                    print_text(job_id)
        except KeyboardInterrupt:
            notify(f"Job {job_id} continues; `workerd job cancel {job_id}` cancels it.")
            raise


def _enqueue(session: CommandSession, spec: JobSpec, texts: dict[str, str]) -> Enqueued:
    config = session.config
    traced = tracing.of_enqueues(None, config.otel, "workerd")
    known = session.read(known_handlers)
    new = with_texts(spec, texts, known, config)
    with tracing.sending(traced, [new], of_environment()) as sending:
        sending.enqueued = session.run(lambda tx: admit(tx, sending.jobs, config, known=known))
        done: Enqueued = sending.enqueued[0]
    return done


def look_up(session: CommandSession, job_id: bytes, reveal: bool) -> Document:
    return session.look_up(lambda tx, rules: jobs.get(tx, job_id, rules), id_text(job_id), reveal=reveal)


def _answer(job: Document, done: Enqueued) -> Document:
    return job | {"created": done.created, "replaced": done.replaced}


def _wait(session: CommandSession, done: Enqueued, timeout_s: float, json: bool, reveal: bool) -> None:
    job_id = done.id
    key = parse_id(job_id)
    try:
        wait_until(session.read, partial(jobs.ended, job_id=key), timeout_s)
    except TimeoutError:
        raise CommandFailed(
            f"Job {job_id} has not ended in time; it continues. `workerd job show {job_id}` shows it."
        ) from None
    job = look_up(session, key, reveal)
    if json:
        print_json(_answer(job, done))
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
        f"Job {job['id']} ended as {job['status']}, {job['reason']}{exit_}{error.removesuffix('.')}. "
        f"`workerd why {job['id']}` explains."
    )


def show(job_id: JobId, reveal: Reveal = False, c: ConfigPath = None, json: AsJson = False) -> None:
    """Show a job and its attempts."""
    with open_session(c) as session:
        job, acts = session.look_up(
            lambda tx, rules: _with_acts(tx, job_id, rules), id_text(job_id), reveal=reveal
        )
        log = session.read(partial(logs.tail, job_id=job_id))
    if json:
        print_json(job)
        return
    print_job(job)
    print_log(log)
    print_acts(acts)


def _with_acts(tx: Tx, job_id: bytes, rules: Rules) -> tuple[Document, list[Document]]:
    job = jobs.get(tx, job_id, rules)
    return job, audit.of_job(tx, job)


@with_filters
def list_(
    wanted: JobFilter,
    limit: Limit = None,
    reveal: Reveal = False,
    c: ConfigPath = None,
    json: AsJson = False,
) -> None:
    """List jobs, most recently created or ended first."""
    with open_session(c) as session:
        rules = session.revealing(wanted.handler, wanted.document()) if reveal else session.rules
        pages = list(session.pages(jobs.list_, limit or DEFAULT_LIMIT, **wanted._asdict(), rules=rules))
    found = [job for rows, _ in pages for job in rows]
    cursor = pages[-1][1]
    if json:
        print_json({"jobs": found, "next": cursor})
        return
    print_job_table(found)
    if cursor is not None and limit is None:
        notify(f"These are the newest {len(found)}; --limit N shows more.")


def edit(
    job_id: JobId,
    key_values: KeyValues = None,
    priority: Annotated[
        int | None, typer.Option("--priority", metavar="N", help="Smaller runs first.")
    ] = None,
    run_at: Annotated[str | None, typer.Option("--run-at", metavar="T", help="When it is due.")] = None,
    group: Annotated[str | None, typer.Option("--group", metavar="G", help='Its group; "": none.')] = None,
    c: ConfigPath = None,
) -> None:
    """Change a job that waits; KEY=null removes one of its arguments."""
    texts = parse_key_values(key_values or [])
    with open_session(c) as session:

        def change(tx: Tx) -> None:
            wanted = Edit(values_of(tx, job_id, texts), priority, run_at, group or None, group is not None)
            edit_job(tx, session.actor, session.config, job_id, wanted)

        session.run(change)
    notify("The job is changed.")
