"""`job show|list|cancel|retry`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from workerd.cli.faults import Ended, UsageFault
from workerd.cli.jobview import show_job, table_of_jobs
from workerd.cli.opening import opened, wake
from workerd.cli.options import AsJson, ConfigPath, HandlerFilter, Limit, SinceFilter, StatusFilter
from workerd.cli.terminal import put, put_json, say
from workerd.cli.values import identity, since, status
from workerd.clock import now_us
from workerd.errors import Conflict, NotFound
from workerd.job import Status, id_text

if TYPE_CHECKING:
    from workerd.store import Store, Tx
    from workerd.store.rows import JobRow

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
    from workerd.store import queries, views

    return views.job(queries.get(tx, key))


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
    from workerd.store import views

    with opened(c) as (_, store):
        rows, more = _listed(store, wanted, limit or SHOWN)
    found = [views.job(row) for row in rows]
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
    from workerd.store import acts

    def one(tx: Tx, key: bytes) -> str:
        return "cancelled" if acts.cancel(tx, key) == "ended" else "asked to end"

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
    from workerd.store import acts

    def one(tx: Tx, key: bytes) -> str:
        return f"attempt {acts.retry(tx, key)}"

    _each(c, json, _chosen(ids, _filters(handler, status_, since_), limit), (Status.FAILURE,), one)


Chosen = list[bytes] | dict[str, Any]


def _chosen(ids: list[str] | None, wanted: dict[str, Any], limit: int | None) -> Chosen:
    """Ids, or filters; one of both and not both. Raises UsageFault."""
    if ids:
        if wanted or limit:
            raise UsageFault("Give either ids or filters, not both: it is not clear which jobs you mean.")
        return [identity(text) for text in ids]
    if not wanted:
        raise UsageFault("Name the jobs: by id, or by --handler, --status, --since.")
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
        raise Ended(1)


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
