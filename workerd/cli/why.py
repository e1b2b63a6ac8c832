"""`why ID`: what a job waits for, or why it died."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from workerd.cli.errors import CommandFailed
from workerd.cli.options import AsJson, ConfigPath, identity
from workerd.cli.output import bold, put, put_json
from workerd.cli.session import opened
from workerd.cli.status import Document, asked, running, runs_for
from workerd.cli.views import death, microseconds, second, show_attempts
from workerd.clock import SECOND, to_rfc3339
from workerd.config.model import Config
from workerd.job import Status
from workerd.text import line, plural, seconds_text, size_text

if TYPE_CHECKING:
    from workerd.store.base import Tx
    from workerd.store.columns import JobRow
    from workerd.store.handlers import HandlerRow
    from workerd.store.queries import StoredJob


JobId = Annotated[str, typer.Argument(metavar="ID", help="The job's id.")]
STACK_SHOWN = 40


def why(job_id: JobId, c: ConfigPath = None, json: AsJson = False) -> None:
    """Say what a job waits for, or why it died."""
    from workerd import documents
    from workerd.store import queries

    key = identity(job_id)
    with opened(c) as (config, store):
        job = store.read(lambda tx: queries.get(tx, key))
        reasons = store.read(lambda tx: _reasons(tx, config, job))
    document = documents.job(job)
    if json:
        put_json({"id": document["id"], "status": document["status"], "why": reasons, "job": document})
        return
    for reason in reasons:
        put(reason)
    show_attempts(document["attempts"])
    _show_stack(document)


def _show_stack(job: Document) -> None:
    stack = next((a["stack"] for a in reversed(job["attempts"]) if a["stack"]), None)
    if stack is None or job["status"] == Status.COMPLETED:
        return
    lines = str(stack).rstrip().splitlines()
    put()
    print(bold("Where it was:"))
    for text in lines[-STACK_SHOWN:]:
        put(text)


def _reasons(tx: Tx, config: Config, job: StoredJob) -> list[str]:
    """Sentences, the most important first."""
    row = job.row
    match row.status:
        case Status.SCHEDULED:
            reasons = _why_scheduled(tx, job)
        case Status.NEW:
            reasons = _why_waiting(tx, config, row)
        case Status.INPROGRESS:
            reasons = _why_running(tx, row)
        case _:
            reasons = [_why_ended(row)]
    earlier = [f"Attempt {a.attempt} {_ending(a)}" for a in job.attempts if a.status == Status.RETRY]
    return reasons + earlier[-5:]


# -- ended -------------------------------------------------------------------------------------


def _why_ended(row: JobRow) -> str:
    return f"The job has ended as {row.status}: attempt {row.attempt} {_ending(row)}"


_WORDS = {
    "ok": "returned",
    "ignored": "raised an error that its policy ignores",
    "skipped": "was skipped: active() was false",
    "retry": "asked for another try",
    "error": "raised an error",
    "failure": "failed for good",
    "refused": "did its work, but the store refused to take its outcome",
    "deadline": "ran over its deadline",
    "crashed": "lost its process",
    "oom": "was killed because it went over its memory limit",
    "lost": "was lost with its pool or node",
    "interrupted": "was interrupted by a shutdown",
    "cancelled": "was cancelled",
}


def _ending(row: JobRow) -> str:
    words = [_WORDS.get(row.reason or "", row.reason or "ended")]
    how = death({"exit_signal": row.exit_signal, "exit_code": row.exit_code})
    if how:
        words.append(f"({how})")
    if row.node:
        words.append(f"on {line(row.node)}")
    if row.run_us is not None:
        words.append(f"after {microseconds(row.run_us)}")
    if row.reason == "oom" and row.max_rss_kib is not None:
        words.append(f"with {size_text(row.max_rss_kib * 1024)} of memory")
    error = f": {line(row.error)}" if row.error else "."
    return " ".join(words) + error


# -- waiting -----------------------------------------------------------------------------------


def _why_scheduled(tx: Tx, job: StoredJob) -> list[str]:
    row = job.row
    due = row.run_at or 0
    left = (due - tx.now) / SECOND
    when = second(to_rfc3339(due))
    if left <= 0:
        return [f"The job became due at {when}: the next dispatcher that looks makes it new."]
    again = " It is a retry." if row.attempt > 1 else ""
    return [
        f"The job is due at {when}, in {seconds_text(left)}.{again} `workerd job retry` makes it due now."
    ]


def _why_waiting(tx: Tx, config: Config, row: JobRow) -> list[str]:
    from workerd.store import handlers

    known = handlers.find(tx, row.handler)
    name = line(row.handler)
    if known is not None and known.paused_at is not None:
        reason = f" ({line(known.pause_reason)})" if known.pause_reason else ""
        since = second(to_rfc3339(known.paused_at))
        return [
            f"The handler {name} is paused since {since} by {line(known.paused_by)}{reason}: "
            f"`workerd resume {name}` lets it go on."
        ]
    live = _live(tx, known)
    if not live:
        # A pool that never loaded has told the store nothing of its handlers.
        return (_why_here(config, row) if row.handler in config.handlers else []) or _why_no_node(tx, name)
    here = _why_here(config, row) if config.node.name in live else []
    ahead = _ahead(tx, row)
    return here + ahead or [f"The job waits for a worker of {name} on {', '.join(map(line, sorted(live)))}."]


def _live(tx: Tx, known: HandlerRow | None) -> set[str]:
    """The live nodes that have the handler."""
    from workerd.store import nodes

    if known is None:
        return set()
    return {node.name for node in nodes.list_(tx) if node.lease_until > tx.now} & set(known.nodes)


def _why_no_node(tx: Tx, handler: str) -> list[str]:
    from workerd.store import nodes

    if not any(node.lease_until > tx.now for node in nodes.list_(tx)):
        return ["No node is alive: start one with `workerd run`."]
    return [
        f"No live node has the handler {handler}: name it in the configuration of one, or start the node "
        f"that has it."
    ]


def _ahead(tx: Tx, row: JobRow) -> list[str]:
    from workerd.store import queries

    count = queries.waiting(tx, row.handler, 1000)
    if count <= 1:
        return []
    many = "a thousand jobs or more" if count == 1000 else plural(count, "job")
    return [f"{many} of {line(row.handler)} wait; smaller priorities and older ones are taken first."]


def _why_here(config: Config, row: JobRow) -> list[str]:
    """What this machine's own daemon says of the handler's pool, if it can be asked."""
    try:
        document = asked(config)
    except CommandFailed:
        return []
    for name, pool in (document.get("pools") or {}).items():
        if row.handler in (pool.get("handlers") or ()):
            return _why_pool(line(name), pool)
    return []


def _why_pool(name: str, pool: Document) -> list[str]:
    if pool.get("quarantined") or pool.get("state") == "quarantined":
        return [f"The pool {name} is quarantined here and tried again later: {line(pool.get('trouble'))}."]
    if pool.get("state") != "up":
        return [
            f"The pool {name} is {pool.get('state')} here: {line(pool.get('trouble') or 'it is on its way')}."
        ]
    busy = [worker for _, worker in running([(name, pool)])]
    workers = pool.get("workers") or []
    if busy and len(busy) == len(workers):
        doing = "; ".join(
            f"{line(w.get('handler'))} for {seconds_text(runs_for(w))} (job {w['job']})" for w in busy
        )
        return [f"All {plural(len(busy), 'worker')} of the pool {name} here are busy: {doing}."]
    return []


# -- running -----------------------------------------------------------------------------------


def _why_running(tx: Tx, row: JobRow) -> list[str]:
    from workerd.store import nodes

    since = row.started_at or row.claimed_at or tx.now
    where = f"on {line(row.node)}" + (f", process id {row.pid}" if row.pid else "")
    reasons = [f"The job runs {where}, for {seconds_text(max(0, tx.now - since) / SECOND)}."]
    if row.note or row.progress is not None:
        share = f"{row.progress:.0%}" if row.progress is not None else ""
        reasons.append("It says of itself: " + ", ".join(filter(None, [share, line(row.note or "")])) + ".")
    if row.cancel_requested_at is not None:
        reasons.append(f"It was asked to end at {second(to_rfc3339(row.cancel_requested_at))}.")
    owner: Any = next((node for node in nodes.list_(tx) if node.id == row.node_id), None)
    if owner is None or owner.lease_until <= tx.now:
        reasons.append("Its node has not renewed its lease: another node will take the job over.")
    return reasons
