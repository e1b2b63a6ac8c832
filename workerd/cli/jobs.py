"""`enqueue` and `job show|list|cancel|retry`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from workerd.cli import options
from workerd.cli.errors import CommandExit, CommandFailed, UsageError
from workerd.cli.options import (
    AsJson,
    ConfigPath,
    HandlerFilter,
    Limit,
    SinceFilter,
    StatusFilter,
    Wait,
    identity,
    since,
    status,
)
from workerd.cli.output import put, put_json, say
from workerd.cli.session import opened, wake
from workerd.cli.views import death, put_payload, show_job, table_of_jobs
from workerd.clock import now_us
from workerd.config.model import Config
from workerd.errors import Conflict, NotFound
from workerd.job import Status, id_text, parse_id
from workerd.text import line

if TYPE_CHECKING:
    from workerd.job_spec import JobSpec, NewJob
    from workerd.store.base import Store, Tx
    from workerd.store.columns import JobRow


Handler = Annotated[str, typer.Argument(metavar="HANDLER", help="The handler's name.")]
Words = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Arguments: JSON where it parses as JSON, else text."),
]
Vars = Annotated[str | None, typer.Option("--vars", metavar="JSON", help="Arguments as one JSON object.")]
Delay = Annotated[str | None, typer.Option("--delay", metavar="D", help="Start that much later: 90s, 5m.")]
RunAt = Annotated[
    str | None, typer.Option("--run-at", metavar="T", help="Start then: 2026-01-31T12:00:00+01:00.")
]
Priority = Annotated[int, typer.Option("--priority", metavar="N", help="Smaller first.")]
Unique = Annotated[
    str | None,
    typer.Option("--unique", metavar="KEY", help="At most one live job of the handler has this key."),
]
Deadline = Annotated[
    str | None, typer.Option("--deadline", metavar="D", help="Instead of the handler's own.")
]
MaxAttempts = Annotated[
    int | None, typer.Option("--max-attempts", metavar="N", help="Instead of the handler's own.")
]
Meta = Annotated[
    str | None, typer.Option("--meta", metavar="JSON", help="Any JSON of your own; it stays with the job.")
]


def enqueue(
    handler: Handler,
    words: Words = None,
    vars_: Vars = None,
    delay: Delay = None,
    run_at: RunAt = None,
    priority: Priority = 0,
    unique: Unique = None,
    deadline: Deadline = None,
    max_attempts: MaxAttempts = None,
    meta: Meta = None,
    wait: Wait = None,
    c: ConfigPath = None,
    json: AsJson = False,
) -> None:
    """Enqueue a job and print its id; with --wait what it returned."""
    from workerd.job_spec import JobSpec

    texts = options.key_values(words or [])
    whole = {} if vars_ is None else options.json_object(vars_, "--vars")
    patience = options.patience(wait)
    options.moment(run_at, "--run-at")
    spec = JobSpec(
        handler=handler,
        delay=options.seconds(delay, "--delay"),
        run_at=run_at,
        priority=priority,
        unique_key=unique,
        deadline=options.seconds(deadline, "--deadline"),
        max_attempts=max_attempts,
        meta=None if meta is None else options.json_value(meta, "--meta"),
    )
    job_id = ""
    with opened(c) as (config, store):
        try:
            job_id = _enqueue(config, store, spec, whole, texts)
            if wait is None:
                _tell(store, job_id, json)
            else:
                _wait(store, job_id, patience, json)
        except KeyboardInterrupt:
            if job_id:
                say(f"The job {job_id} goes on; `workerd job cancel {job_id}` ends it.")
            raise


def _enqueue(
    config: Config, store: Store, spec: JobSpec, whole: dict[str, Any], texts: dict[str, str]
) -> str:
    from workerd.operations.enqueue import admit, check_handlers
    from workerd.signature import coerce_texts
    from workerd.store import handlers

    def work(tx: Tx) -> str:
        known = handlers.known(tx)
        check_handlers([spec.handler], known, config)
        given = coerce_texts(known.get(spec.handler), texts)
        checked = _checked(spec, {**whole, **given}, config)
        # What does not fit is the attempt's to say: the signature known here may be an old one.
        return admit(tx, [checked], config, check_signatures=False)[0].id

    job_id = store.run(work)
    wake(config)
    return job_id


def _checked(spec: JobSpec, given: dict[str, Any], config: Config) -> NewJob:
    from dataclasses import replace

    from workerd.job_spec import check

    try:
        return check(replace(spec, vars=given), config.gateway.max_body)
    except ValueError as error:
        raise UsageError(f"{str(error)[:1].upper()}{str(error)[1:]}.") from None


def _tell(store: Store, job_id: str, json: bool) -> None:
    if json:
        put_json(store.read(lambda tx: document(tx, job_id)))
    else:
        put(job_id)


def document(tx: Tx, job_id: str) -> dict[str, Any]:
    """The job's document."""

    return document_of(tx, parse_id(job_id))


def _wait(store: Store, job_id: str, patience: float | None, json: bool) -> None:
    from workerd.operations import jobs
    from workerd.operations.waiting import until

    try:
        until(store.read, lambda tx: jobs.ended(tx, parse_id(job_id)), patience)
    except TimeoutError:
        raise CommandFailed(
            f"The job {job_id} has not ended in time; it goes on. `workerd job show {job_id}` says how it is."
        ) from None
    job = store.read(lambda tx: document(tx, job_id))
    if json:
        put_json(job)
    elif job["status"] == "completed":
        put_payload(job)
    if job["status"] != "completed":
        say(_why_failed(job))
        raise CommandExit(1)


def _why_failed(job: dict[str, Any]) -> str:
    words = [f"The job {job['id']} ended as {job['status']}, {job['reason']}"]
    how = death(job)
    if how:
        words.append(f"({how})")
    error = f": {line(job['error'])}" if job["error"] else ""
    return f"{' '.join(words)}{error}. `workerd why {job['id']}` tells more."


SHOWN = 50
"""Jobs that `job list` shows unless told otherwise."""
PAGE = 200

JobId = Annotated[str, typer.Argument(metavar="ID", help="The job's id.")]
JobIds = Annotated[list[str] | None, typer.Argument(metavar="ID", help="The jobs' ids.")]


def show(job_id: JobId, c: ConfigPath = None, json: AsJson = False) -> None:
    """Show a job and its attempts."""
    key = identity(job_id)
    with opened(c) as (_, store):
        document = store.read(lambda tx: document_of(tx, key))
    if json:
        put_json(document)
    else:
        show_job(document)


def document_of(tx: Tx, key: bytes) -> dict[str, Any]:
    """The job's document of section "HTTP", with attempts and payload. Raises NotFound."""
    from workerd import documents
    from workerd.store import queries

    return documents.job(queries.get(tx, key))


def list_(
    handler: HandlerFilter = None,
    status_: StatusFilter = None,
    since_: SinceFilter = None,
    limit: Limit = None,
    c: ConfigPath = None,
    json: AsJson = False,
) -> None:
    """List jobs, newest first."""
    wanted = _filters(handler, status_, since_)
    from workerd import documents

    with opened(c) as (_, store):
        rows, more = _listed(store, wanted, limit or SHOWN)
    found = [documents.job(row) for row in rows]
    if json:
        put_json({"jobs": found, "next": more})
        return
    table_of_jobs(found)
    if more is not None and limit is None:
        say(f"There are more: these are the newest {len(found)}; --limit shows as many as you say.")


def _filters(handler: str | None, status_: str | None, since_: str | None) -> dict[str, Any]:
    # The store's clock and this machine's may differ by a little; a filter for people bears that.
    given = {"handler": handler, "status": status(status_), "since": since(since_, now_us())}
    return {name: value for name, value in given.items() if value is not None}


def _listed(store: Store, wanted: dict[str, Any], limit: int) -> tuple[list[JobRow], str | None]:
    """The newest jobs that the filters name, and the cursor of what follows them."""
    found: list[JobRow] = []
    after: str | None = None
    while len(found) < limit:
        rows, after = _page(store, wanted, min(PAGE, limit - len(found)), after)
        found += rows
        if after is None:
            break
    return found, after


def _page(
    store: Store, wanted: dict[str, Any], size: int, after: str | None
) -> tuple[list[JobRow], str | None]:
    from workerd.store import queries

    page = store.read(partial(queries.list_, **wanted, limit=size, after=after))
    return page.rows, page.next


# -- cancel and retry --------------------------------------------------------------------------


def cancel(
    ids: JobIds = None,
    handler: HandlerFilter = None,
    status_: StatusFilter = None,
    since_: SinceFilter = None,
    limit: Limit = None,
    c: ConfigPath = None,
    json: AsJson = False,
) -> None:
    """Cancel jobs by id, or live ones by filters.

    The filters are those of `job list`.
    """
    from workerd.store import job_control

    def one(tx: Tx, key: bytes) -> str:
        return "cancelled" if job_control.cancel(tx, key) == "ended" else "asked to end"

    live = (Status.SCHEDULED, Status.NEW, Status.INPROGRESS)
    _each(c, json, _chosen(ids, _filters(handler, status_, since_), limit), live, one)


def retry(
    ids: JobIds = None,
    handler: HandlerFilter = None,
    status_: StatusFilter = None,
    since_: SinceFilter = None,
    limit: Limit = None,
    c: ConfigPath = None,
    json: AsJson = False,
) -> None:
    """Run ended jobs again, by id or by filters.

    The filters are those of `job list`; without --status they mean failed jobs.
    """
    from workerd.store import job_control

    def one(tx: Tx, key: bytes) -> str:
        return f"attempt {job_control.retry(tx, key)}"

    _each(c, json, _chosen(ids, _filters(handler, status_, since_), limit), (Status.FAILURE,), one)


Chosen = list[bytes] | dict[str, Any]


def _chosen(ids: list[str] | None, wanted: dict[str, Any], limit: int | None) -> Chosen:
    """Ids, or filters; one of both and not both. Raises UsageFault."""
    if ids:
        if wanted or limit:
            raise UsageError("Give either ids or filters, not both: it is not clear which jobs you mean.")
        return [identity(text) for text in ids]
    if not wanted:
        raise UsageError("Name the jobs: by id, or by --handler, --status, --since.")
    return {**wanted, **({"limit": limit} if limit else {})}


def _each(
    path: Path | None, json: bool, chosen: Chosen, states: tuple[Status, ...], one: Callable[..., str]
) -> None:
    """Do `one` to each job, each in a transaction of its own; tell what came of it."""
    told: list[dict[str, str]] = []
    failed = False
    with opened(path) as (config, store):
        for key in _keys(store, chosen, states):
            try:
                result = store.run(partial(one, key=key))
            except (NotFound, Conflict) as error:
                # A job that ended meanwhile is what a filter's author wanted anyway.
                failed = failed or isinstance(chosen, list)
                result = str(error)
            told.append({"id": id_text(key), "result": result})
        wake(config)
    if json:
        put_json({"jobs": told})
    else:
        for job in told:
            put(f"{job['id']}  {job['result']}")
        if not told:
            say("No job is as the filters say; `workerd job list` shows what is there.")
    if failed:
        raise CommandExit(1)


def _keys(store: Store, chosen: Chosen, states: tuple[Status, ...]) -> Iterator[bytes]:
    """The ids, read to the end before the first of them is changed: pages move under what changes."""
    if isinstance(chosen, list):
        yield from chosen
        return
    limit = chosen.pop("limit", None)
    asked = chosen.pop("status", None)
    found: list[bytes] = []
    for state in (asked,) if asked is not None else states:
        after: str | None = None
        while limit is None or len(found) < limit:
            rows, after = _page(store, {**chosen, "status": state}, PAGE, after)
            found += [row.id for row in rows]
            if after is None:
                break
    yield from found[:limit]
