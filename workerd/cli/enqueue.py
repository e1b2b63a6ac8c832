"""`enqueue`: one job from the shell."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from workerd.cli import values
from workerd.cli.faults import Ended, Failed, UsageFault
from workerd.cli.jobview import death, put_payload
from workerd.cli.opening import opened, wake
from workerd.cli.options import AsJson, ConfigPath, Wait
from workerd.cli.terminal import line, put, put_json, say
from workerd.config.model import Config
from workerd.job import parse_id

if TYPE_CHECKING:
    from workerd.client.spec import Checked, JobSpec
    from workerd.store import Store, Tx

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
    from workerd.client.spec import JobSpec

    texts = values.key_values(words or [])
    whole = {} if vars_ is None else values.json_object(vars_, "--vars")
    patience = values.patience(wait)
    values.moment(run_at, "--run-at")
    spec = JobSpec(
        handler=handler,
        delay=values.seconds(delay, "--delay"),
        run_at=run_at,
        priority=priority,
        unique_key=unique,
        deadline=values.seconds(deadline, "--deadline"),
        max_attempts=max_attempts,
        meta=None if meta is None else values.json_value(meta, "--meta"),
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
    from workerd.client.admission import admit, check_handlers
    from workerd.signature import coerce_texts
    from workerd.store import handlers

    def work(tx: Tx) -> str:
        known = handlers.known(tx)
        check_handlers([spec.handler], known, config)
        given = coerce_texts(known.get(spec.handler), texts)
        checked = _checked(spec, {**whole, **given}, config)
        # What does not fit is the attempt's to say: the signature known here may be an old one.
        return admit(tx, [checked], config, look=False)[0].id

    job_id = store.run(work)
    wake(config)
    return job_id


def _checked(spec: JobSpec, given: dict[str, Any], config: Config) -> Checked:
    from dataclasses import replace

    from workerd.client.spec import check

    try:
        return check(replace(spec, vars=given), config.gateway.max_body)
    except ValueError as error:
        raise UsageFault(f"{str(error)[:1].upper()}{str(error)[1:]}.") from None


def _tell(store: Store, job_id: str, json: bool) -> None:
    if json:
        put_json(store.read(lambda tx: document(tx, job_id)))
    else:
        put(job_id)


def document(tx: Tx, job_id: str) -> dict[str, Any]:
    """The job's document."""
    from workerd.cli.jobs import document_of

    return document_of(tx, parse_id(job_id))


def _wait(store: Store, job_id: str, patience: float | None, json: bool) -> None:
    from workerd.client.waiting import job_over, until

    try:
        until(store.read, job_over(parse_id(job_id)), patience)
    except TimeoutError:
        raise Failed(
            f"The job {job_id} has not ended in time; it goes on. `workerd job show {job_id}` says how it is."
        ) from None
    job = store.read(lambda tx: document(tx, job_id))
    if json:
        put_json(job)
    elif job["status"] == "completed":
        put_payload(job)
    if job["status"] != "completed":
        say(_why_failed(job))
        raise Ended(1)


def _why_failed(job: dict[str, Any]) -> str:
    words = [f"The job {job['id']} ended as {job['status']}, {job['reason']}"]
    how = death(job)
    if how:
        words.append(f"({how})")
    error = f": {line(job['error'])}" if job["error"] else ""
    return f"{' '.join(words)}{error}. `workerd why {job['id']}` tells more."
