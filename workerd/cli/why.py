"""`why ID`: what a job waits for, or how it ended."""

from __future__ import annotations

from typing import Any

from workerd import documents
from workerd.cli.errors import CommandFailed
from workerd.cli.options import AsJson, ConfigPath, JobId
from workerd.cli.output import print_heading, print_json, print_text
from workerd.cli.session import open_session
from workerd.cli.status import Document, ask_supervisor, running, runs_for
from workerd.cli.views import exit_of, print_attempts, progress_text, run_time, second_of
from workerd.clock import SECOND
from workerd.config.model import Config
from workerd.job import Status
from workerd.store import handlers, nodes, queries
from workerd.store.base import Tx
from workerd.store.columns import JobRow
from workerd.store.handlers import HandlerRow
from workerd.store.queries import StoredJob
from workerd.text import line, plural, seconds_text, size_text

MAX_STACK_LINES = 40
MAX_EARLIER_ATTEMPTS = 5
MAX_COUNTED_JOBS = 1000


def why(job_id: JobId, c: ConfigPath = None, json: AsJson = False) -> None:
    """Explain what a job waits for, or how it ended."""
    with open_session(c) as (config, store):
        job = store.read(lambda tx: queries.get(tx, job_id))
        reasons = store.read(lambda tx: _reasons(tx, config, job))
    document = documents.job(job)
    if json:
        print_json({"id": document["id"], "status": document["status"], "why": reasons, "job": document})
        return
    for reason in reasons:
        print_text(reason)
    print_attempts(document["attempts"])
    stack = next((a["stack"] for a in reversed(document["attempts"]) if a["stack"]), None)
    if stack is not None and document["status"] != Status.COMPLETED:
        print_heading("Its stack:")
        for text in str(stack).rstrip().splitlines()[-MAX_STACK_LINES:]:
            print_text(text)


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
            reasons = [f"The job ended as {row.status}: attempt {row.attempt} {_outcome(row)}"]
    earlier = [f"Attempt {a.attempt} {_outcome(a)}" for a in job.attempts if a.status == Status.RETRY]
    return reasons + earlier[-MAX_EARLIER_ATTEMPTS:]


# -- ended


_OUTCOMES = {
    "ok": "returned",
    "ignored": "raised an error that its policy ignores",
    "skipped": "was skipped: active() was false",
    "retry": "asked for a retry",
    "error": "raised an error",
    "failure": "failed permanently",
    "refused": "finished, but the store rejected its outcome",
    "deadline": "exceeded its deadline",
    "crashed": "lost its process",
    "oom": "was killed for exceeding its memory limit",
    "lost": "was lost with its pool or node",
    "interrupted": "was interrupted by a shutdown",
    "cancelled": "was cancelled",
}


def _outcome(row: JobRow) -> str:
    words = [_OUTCOMES.get(row.reason or "", row.reason or "ended")]
    how = exit_of({"exit_signal": row.exit_signal, "exit_code": row.exit_code})
    if how:
        words.append(f"({how})")
    if row.node:
        words.append(f"on {line(row.node)}")
    if row.run_us is not None:
        words.append(f"after {run_time(row.run_us)}")
    if row.reason == "oom" and row.max_rss_kib is not None:
        words.append(f"with {size_text(row.max_rss_kib * 1024)} of memory")
    error = f": {line(row.error)}" if row.error else "."
    return " ".join(words) + error


# -- waiting


def _why_scheduled(tx: Tx, job: StoredJob) -> list[str]:
    row = job.row
    due = row.run_at or 0
    left = (due - tx.now) / SECOND
    when = second_of(due)
    if left <= 0:
        return [f"The job became due at {when}; a dispatcher makes it new at its next poll."]
    retry = " It is a retry." if row.attempt > 1 else ""
    return [
        f"The job is due at {when}, in {seconds_text(left)}.{retry} `workerd job retry` makes it due now."
    ]


def _why_waiting(tx: Tx, config: Config, row: JobRow) -> list[str]:
    known = handlers.find(tx, row.handler)
    name = line(row.handler)
    if known is not None and known.paused_at is not None:
        reason = f" ({line(known.pause_reason)})" if known.pause_reason else ""
        since = second_of(known.paused_at)
        return [
            f"The handler {name} is paused since {since} by {line(known.paused_by)}{reason}: "
            f"`workerd resume {name}` resumes it."
        ]
    live = _live(tx, known)
    if not live:
        # A pool that never loaded has not registered its handlers in the store.
        return (_why_here(config, row) if row.handler in config.handlers else []) or _why_no_node(tx, name)
    here = _why_here(config, row) if config.node.name in live else []
    ahead = _ahead(tx, row)
    return here + ahead or [f"The job waits for a worker of {name} on {', '.join(map(line, sorted(live)))}."]


def _live(tx: Tx, known: HandlerRow | None) -> set[str]:
    """The live nodes that have the handler."""
    if known is None:
        return set()
    return {node.name for node in nodes.list_(tx) if node.lease_until > tx.now} & set(known.nodes)


def _why_no_node(tx: Tx, handler: str) -> list[str]:
    if not any(node.lease_until > tx.now for node in nodes.list_(tx)):
        return ["No node is alive. `workerd run` starts one."]
    return [
        f"No live node has the handler {handler}: add it to the configuration of one, or start the node "
        f"that has it."
    ]


def _ahead(tx: Tx, row: JobRow) -> list[str]:
    count = queries.waiting(tx, row.handler, MAX_COUNTED_JOBS)
    if count <= 1:
        return []
    many = "a thousand jobs or more" if count == MAX_COUNTED_JOBS else plural(count, "job")
    return [f"{many} of {line(row.handler)} wait; smaller priorities, then older jobs, are taken first."]


def _why_here(config: Config, row: JobRow) -> list[str]:
    """What the daemon on this host reports of the handler's pool, if it answers."""
    try:
        document = ask_supervisor(config)
    except CommandFailed:
        return []
    for name, pool in (document.get("pools") or {}).items():
        if row.handler in (pool.get("handlers") or ()):
            return _why_pool(line(name), pool)
    return []


def _why_pool(name: str, pool: Document) -> list[str]:
    if pool.get("quarantined") or pool.get("state") == "quarantined":
        return [
            f"The pool {name} is quarantined here and will be restarted later: {line(pool.get('trouble'))}."
        ]
    if pool.get("state") != "up":
        return [
            f"The pool {name} is {pool.get('state')} here: {line(pool.get('trouble') or 'not ready yet')}."
        ]
    busy = [worker for _, worker in running([(name, pool)])]
    workers = pool.get("workers") or []
    if busy and len(busy) == len(workers):
        doing = "; ".join(
            f"{line(w.get('handler'))} for {seconds_text(runs_for(w))} (job {w['job']})" for w in busy
        )
        return [f"All {plural(len(busy), 'worker')} of the pool {name} here are busy: {doing}."]
    return []


# -- running


def _why_running(tx: Tx, row: JobRow) -> list[str]:
    since = row.started_at or row.claimed_at or tx.now
    where = f"on {line(row.node)}" + (f", process id {row.pid}" if row.pid else "")
    reasons = [f"The job runs {where}, for {seconds_text(max(0, tx.now - since) / SECOND)}."]
    progress = progress_text(row.progress, row.note)
    if progress:
        reasons.append(f"Its progress: {line(progress)}.")
    if row.cancel_requested_at is not None:
        reasons.append(f"It was asked to stop at {second_of(row.cancel_requested_at)}.")
    owner: Any = next((node for node in nodes.list_(tx) if node.id == row.node_id), None)
    if owner is None or owner.lease_until <= tx.now:
        reasons.append("Its node has not renewed its lease: another node will recover the job.")
    return reasons
