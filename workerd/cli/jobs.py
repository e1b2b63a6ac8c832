"""`enqueue` and `job show|list|cancel|retry`."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Unpack

import typer

from workerd.cli.audit import print_acts
from workerd.cli.errors import CommandExit, CommandFailed, UsageError
from workerd.cli.options import (
    AsJson,
    ConfigPath,
    ErrorFilter,
    GroupFilter,
    HandlerFilter,
    HandlerName,
    JobId,
    Limit,
    MetaFilter,
    ReasonFilter,
    RequestFilter,
    Reveal,
    SinceFilter,
    StatusFilter,
    UntilFilter,
    Wait,
    parse_identity,
    parse_json_object,
    parse_key_values,
    with_job_options,
)
from workerd.cli.output import Document, confirm, notify, print_json, print_text
from workerd.cli.session import CommandSession, open_session
from workerd.cli.views import exit_of, print_job, print_job_table, print_log, print_payload
from workerd.errors import Conflict, NotFound
from workerd.job import LIVE, Status, id_text, parse_id
from workerd.job_spec import JobOptions, JobSpec
from workerd.operations import audit, jobs, logs
from workerd.operations.access import Tx
from workerd.operations.edit import Edit, values_of
from workerd.operations.edit import edit as edit_job
from workerd.operations.enqueue import admit_texts
from workerd.operations.requests import reopening_note
from workerd.operations.rules import Rules
from workerd.operations.waiting import wait_until
from workerd.outcome import Reason
from workerd.text import line, plural

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
MATCHED_ROWS = 1000
"""Ids that match filters, read in one transaction."""

Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only show which jobs match.")]
Fresh = Annotated[bool, typer.Option("--fresh", help="Without what earlier attempts have saved.")]
RetryWords = Annotated[
    list[str] | None,
    typer.Argument(metavar="ID ... [KEY=VALUE ...]", help="Ids of jobs, and other arguments for one."),
]
JobIds = Annotated[
    list[bytes] | None, typer.Argument(metavar="ID ...", help="Ids of jobs.", parser=parse_identity)
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
        done = session.run(lambda tx: admit_texts(tx, spec, texts, session.config))
        job_id = done.id
        try:
            if wait is not None:
                _wait(session, job_id, wait, json, reveal)
            elif json:
                job = _look_up(session, parse_id(job_id), reveal)
                print_json(job | {"created": done.created, "replaced": done.replaced})
            else:
                print_text(job_id)
        except KeyboardInterrupt:
            notify(f"Job {job_id} continues; `workerd job cancel {job_id}` cancels it.")
            raise


def _look_up(session: CommandSession, job_id: bytes, reveal: bool) -> Document:
    return session.look_up(lambda tx, rules: jobs.get(tx, job_id, rules), id_text(job_id), reveal=reveal)


def _wait(session: CommandSession, job_id: str, timeout_s: float, json: bool, reveal: bool) -> None:
    key = parse_id(job_id)
    try:
        wait_until(session.read, partial(jobs.ended, job_id=key), timeout_s)
    except TimeoutError:
        raise CommandFailed(
            f"Job {job_id} has not ended in time; it continues. `workerd job show {job_id}` shows it."
        ) from None
    job = _look_up(session, key, reveal)
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


# -- lists and filters


def list_(
    handler: HandlerFilter = None,
    status: StatusFilter = None,
    since: SinceFilter = None,
    until: UntilFilter = None,
    reason: ReasonFilter = None,
    error: ErrorFilter = None,
    group: GroupFilter = None,
    request: RequestFilter = None,
    meta: MetaFilter = None,
    limit: Limit = None,
    reveal: Reveal = False,
    c: ConfigPath = None,
    json: AsJson = False,
) -> None:
    """List jobs, newest made or ended first."""
    filters = _filters(handler, status, since, until, reason, error, group, request, meta)
    with open_session(c) as session:
        rules = session.revealing(handler, _named(filters)) if reveal else session.rules
        pages = list(session.pages(jobs.list_, limit or DEFAULT_LIMIT, **filters, rules=rules))
    found = [job for rows, _ in pages for job in rows]
    cursor = pages[-1][1]
    if json:
        print_json({"jobs": found, "next": cursor})
        return
    print_job_table(found)
    if cursor is not None and limit is None:
        notify(f"These are the newest {len(found)}; --limit N shows more.")


Filters = dict[str, Any]


def _filters(
    handler: str | None,
    status: Status | None,
    since: int | None,
    until: int | None,
    reason: Reason | None,
    error: bytes | None,
    group: str | None,
    request: bytes | None,
    meta: list[tuple[str, str]] | None,
) -> Filters:
    given = {
        "handler": handler, "status": status, "since": since, "until": until, "reason": reason,
        "error": error, "group": group, "request": request, "meta": dict(meta or []) or None,
    }  # fmt: skip
    return {name: value for name, value in given.items() if value is not None}


def _named(filters: Filters) -> Filters:
    """The filters as the audit has them: bytes in hex."""
    return {name: value.hex() if isinstance(value, bytes) else value for name, value in filters.items()}


# -- cancel and retry


def cancel(
    ids: JobIds = None,
    handler: HandlerFilter = None,
    status: StatusFilter = None,
    since: SinceFilter = None,
    until: UntilFilter = None,
    reason: ReasonFilter = None,
    error: ErrorFilter = None,
    group: GroupFilter = None,
    request: RequestFilter = None,
    meta: MetaFilter = None,
    limit: Limit = None,
    yes: Yes = False,
    dry_run: DryRun = False,
    c: ConfigPath = None,
    json: AsJson = False,
) -> None:
    """Cancel jobs by id, or live jobs by filters.

    The filters are those of `job list`. How many jobs match is shown and confirmed before any is cancelled.
    """

    def cancel_one(session: CommandSession, key: bytes) -> str:
        result = session.run(lambda tx: jobs.cancel(tx, session.actor, key))
        return "cancelled" if result == "ended" else "asked to stop"

    selection = Selection(
        ids or [],
        _filters(handler, status, since, until, reason, error, group, request, meta),
        sorted(LIVE),
        limit,
    )
    _apply(BulkAction("Cancel", cancel_one), selection, c, Answer(yes, dry_run, json))


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


def retry(
    words: RetryWords = None,
    handler: HandlerFilter = None,
    status: StatusFilter = None,
    since: SinceFilter = None,
    until: UntilFilter = None,
    reason: ReasonFilter = None,
    error: ErrorFilter = None,
    group: GroupFilter = None,
    request: RequestFilter = None,
    meta: MetaFilter = None,
    limit: Limit = None,
    yes: Yes = False,
    dry_run: DryRun = False,
    fresh: Fresh = False,
    c: ConfigPath = None,
    json: AsJson = False,
) -> None:
    """Run ended jobs again, by id or by filters.

    One job may be given other arguments: `job retry ID key=value`, null removes one. The filters are those
    of `job list`; without --status they match failed jobs. How many jobs match is shown and confirmed before
    any is retried.
    """
    ids = [parse_identity(word) for word in words or [] if "=" not in word]
    texts = parse_key_values(word for word in words or [] if "=" in word)
    if texts and len(ids) != 1:
        raise UsageError("Name the one job that gets these arguments: job retry ID key=value.")

    def retry_one(session: CommandSession, key: bytes) -> str:
        if note := session.read(lambda tx: reopening_note(tx, key)):
            notify(note)

        def work(tx: Tx) -> int:
            values = values_of(tx, key, texts) if texts else None
            return jobs.retry(tx, session.actor, key, fresh=fresh, config=session.config, vars_=values)

        return f"attempt {session.run(work)}"

    selection = Selection(
        ids,
        _filters(handler, status, since, until, reason, error, group, request, meta),
        [Status.FAILURE],
        limit,
    )
    _apply(BulkAction("Retry", retry_one), selection, c, Answer(yes, dry_run, json))


class BulkAction(NamedTuple):
    """What is done with each job; `verb` as it begins a question."""

    verb: str
    run: Callable[[CommandSession, bytes], str]


class Selection(NamedTuple):
    """The jobs that are meant: by id, or by filters, which match `default_states` unless they name one."""

    ids: list[bytes]
    filters: Filters
    default_states: Sequence[Status]
    limit: int | None

    def check(self) -> None:
        """Raises UsageError unless there are either ids or filters."""
        if self.ids and (self.filters or self.limit):
            raise UsageError("Give ids or filters, not both.")
        if not self.ids and not self.filters:
            raise UsageError("Name the jobs: by id, or with a filter such as --handler, --status or --error.")

    def find(self, session: CommandSession) -> list[bytes]:
        """All of them, read before the first is changed: changes move pages."""
        if self.ids:
            return self.ids
        found: list[bytes] = []
        for state in [self.filters["status"]] if "status" in self.filters else self.default_states:
            for keys, _ in session.pages(
                jobs.matching,
                math.inf,
                page_rows=MATCHED_ROWS,
                rules=session.rules,
                **{**self.filters, "status": state},
            ):
                found += keys
        return found


class Answer(NamedTuple):
    """How the command was told to behave."""

    yes: bool
    dry_run: bool
    json: bool


def _apply(action: BulkAction, selection: Selection, path: Path | None, answer: Answer) -> None:
    """Apply the action to each job, in a transaction of its own, and print each result."""
    selection.check()
    with open_session(path) as session:
        matched = selection.find(session)
        keys = matched[: selection.limit]
        if answer.dry_run:
            _print_matches(session, matched, keys, answer.json)
            return
        if not selection.ids:
            _confirm(action.verb, len(matched), len(keys), answer)
        done, failed = _run_each(action, session, keys, quiet=answer.json)
    if answer.json:
        print_json({"matched": len(matched), "done": len(done) - failed, "jobs": done})
    if failed and selection.ids:
        # A job that ended after a filter matched it is what the caller wanted anyway.
        raise CommandExit(1)


def _run_each(
    action: BulkAction, session: CommandSession, keys: Sequence[bytes], *, quiet: bool
) -> tuple[list[dict[str, str]], int]:
    """The result for each job, and how many of them were refused."""
    done: list[dict[str, str]] = []
    failed = 0
    for key in keys:
        try:
            result = action.run(session, key)
        except (NotFound, Conflict) as error:
            failed += 1
            result = str(error)
        done.append({"id": id_text(key), "result": result})
        if not quiet:
            print_text(f"{done[-1]['id']}  {result}")
    return done, failed


def _matches_text(matched: int, chosen: int) -> str:
    """`3 jobs match`, with what --limit makes of it."""
    text = f"{plural(matched, 'job')} {'matches' if matched == 1 else 'match'}"
    return text if chosen == matched else f"{text}, of which --limit leaves {chosen:,}"


def _confirm(verb: str, matched: int, chosen: int, answer: Answer) -> None:
    """Ask whether to go on. Raises CommandExit for a no, UsageError if nobody can be asked."""
    text = _matches_text(matched, chosen)
    if not answer.yes and not sys.stdin.isatty():
        raise UsageError(
            f"{text}; nothing was done. Without a terminal to ask, expected --yes (or --dry-run to only show "
            f"them)."
        )
    if not matched:
        notify("No job matches the filters. `workerd job list` lists existing jobs.")
    elif answer.yes:
        notify(f"{text}.")
    elif not confirm(f"{text}. {verb} {'it' if chosen == 1 else 'them'}?"):
        notify("Nothing was done.")
        raise CommandExit(1)


def _print_matches(session: CommandSession, matched: list[bytes], keys: list[bytes], json: bool) -> None:
    """What --dry-run shows."""
    if json:
        matches = [{"id": id_text(key), "result": "matches"} for key in keys]
        print_json({"matched": len(matched), "done": 0, "jobs": matches})
        return
    shown = [_look_up(session, key, False) for key in keys[:DEFAULT_LIMIT]]
    print_job_table(shown)
    more = f" The first {DEFAULT_LIMIT} are shown." if len(keys) > DEFAULT_LIMIT else ""
    notify(f"{_matches_text(len(matched), len(keys))}; nothing was done.{more}")
