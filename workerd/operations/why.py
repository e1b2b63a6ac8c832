"""What a job or a request waits for, or how it ended: sentences for people."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from workerd import documents, duplicates
from workerd.clock import LATEST, SECOND, to_rfc3339
from workerd.config.model import Config
from workerd.config.workflow_config import WAIT_HANDLER
from workerd.document_types import Document
from workerd.errors import InvalidValue
from workerd.job import LIVE, Status, id_text
from workerd.operations import limits
from workerd.operations.requests import document as request_document
from workerd.operations.rules import UNREDACTED, Rules
from workerd.runtime.dead_letters import DeadLetterFile
from workerd.runtime.paths import Paths
from workerd.schedule import Cron
from workerd.store import errors, handlers, links, nodes, queries, requests
from workerd.store.base import Tx
from workerd.store.columns import JobRow, RequestRow
from workerd.store.duplicates import holder_status
from workerd.store.handlers import HandlerRow
from workerd.store.queries import StoredJob
from workerd.text import exit_text, line, plural, seconds_text, size_text, word
from workerd.workflow import ADHOC, RequestStatus, decode, of_cycle

MAX_EARLIER_ATTEMPTS = 5
MAX_COUNTED_JOBS = 1000


def explain(
    tx: Tx, config: Config, job_id: bytes, pools: Mapping[str, Document], rules: Rules = UNREDACTED
) -> tuple[Document, list[str]]:
    """The job, and sentences on why it is in its state, the most important first.

    `pools`: the pools of this node by name, with their workers, as its supervisor reports them. Raises
    NotFound.
    """
    job = queries.get(tx, job_id)
    match job.row.status:
        case Status.SCHEDULED | Status.NEW if job.row.handler == WAIT_HANDLER:
            reasons = [_why_held(tx, job.row) if _is_held(tx, job.row) else _why_wait(tx, job.row)]
        case Status.SCHEDULED if job.row.run_at == LATEST and job.row.request_id is not None:
            reasons = [_why_held(tx, job.row)]
        case Status.SCHEDULED:
            reasons = [_why_scheduled(tx, job.row), *_expires(tx, config, job.row)]
        case Status.NEW:
            reasons = [*_why_waiting(tx, config, job.row, pools), *_expires(tx, config, job.row)]
        case Status.INPROGRESS:
            reasons = [*_why_set_aside(config, job.row), *_why_running(tx, job.row)]
        case _:
            reasons = [f"The job ended as {job.row.status}: attempt {job.row.attempt} {_outcome(job.row)}"]
            reasons += _why_grouped(tx, job.row)
    return documents.job(job, rules.of(tx, job.row.handler)), [*reasons, *_earlier(job)]


MAX_JOBS_NAMED = 5
MAX_WAITS_READ = 50
"""Waits of a request among which those that have begun are looked for; the earliest steps come first."""
_WAITING = (Status.SCHEDULED, Status.NEW)


def _is_held(tx: Tx, row: JobRow) -> bool:
    return row.run_at == LATEST and row.id in links.held(tx, [row.id])


def _why_held(tx: Tx, row: JobRow) -> str:
    """Why a job of a batch or a large graph may not start yet."""
    count, names = links.open_needs(tx, row.id, MAX_JOBS_NAMED)
    if not count:
        request = None if row.request_id is None else requests.find(tx, row.request_id)
        return _why_not_released("fill" if request is None else request.pending)
    more = ", …" if count > len(names) else ""
    return f"The job waits for {plural(count, 'job')} that it needs: {', '.join(map(line, names))}{more}."


def _why_not_released(pending: str | None) -> str:
    """Why a job that needs no other is held; `pending`: what is to be done for its request."""
    if pending == "fill":
        return "The job waits until its batch is complete; `workerd request show` shows its progress."
    if pending == "cancel":
        return "Its request is ending: the job is cancelled with one of the next slices."
    return "Its request starts its jobs in slices; this one starts with one of the next."


def _why_wait(tx: Tx, row: JobRow) -> str:
    """What a wait of a request waits for."""
    request = None if row.request_id is None else requests.find(tx, row.request_id)
    return _what_it_waits_for(tx, "It", row, request)


def _what_it_waits_for(tx: Tx, who: str, row: JobRow, request: RequestRow | None) -> str:
    until = None if row.run_at in (None, LATEST) else _second(row.run_at or 0)
    signal = None if request is None else _signal_of(tx, row, request)
    if not signal:
        return f"{who} waits until {until}."
    shown = id_text(row.request_id or b"")
    return (
        f"{who} waits for the signal {line(signal)}{f', until {until}' if until else ''};"
        f" `workerd request signal {shown} {word(signal)}` sends it."
    )


def _signal_of(tx: Tx, row: JobRow, request: RequestRow) -> str | None:
    try:
        graph = of_cycle(decode(request.steps or b""), request.cycle)
        known = [*graph.all_jobs, *links.waits_of(tx, [row.id]).values()]
    except InvalidValue:
        return None
    return next((job.signal for job in known if job.name == row.name), None)


def _live_jobs(tx: Tx, request: RequestRow, jobs: Sequence[JobRow]) -> list[str]:
    """What its first waits wait for, and which other jobs are live."""
    waits = [job for job in jobs if job.handler == WAIT_HANDLER and job.status in _WAITING]
    held = links.held(tx, [job.id for job in waits[:MAX_WAITS_READ] if job.run_at == LATEST])
    begun = [job for job in waits[:MAX_WAITS_READ] if job.id not in held][:MAX_JOBS_NAMED]
    explained = {job.id for job in begun}
    return [
        *(_what_it_waits_for(tx, f"Its job {line(job.name)}", job, request) for job in begun),
        *_named_jobs([job for job in jobs if job.id not in explained], LIVE),
    ]


def explain_request(
    tx: Tx, config: Config, request_id: bytes, rules: Rules = UNREDACTED
) -> tuple[Document, list[str]]:
    """The request with its jobs, and sentences as of `explain`. Raises NotFound."""
    row, jobs = requests.get(tx, request_id)
    match row.status:
        case RequestStatus.QUEUING:
            reasons = [_why_queuing(config, row)]
        case RequestStatus.INPROGRESS:
            reasons = [
                f"The request of {_title(row)} is in step {row.step}.",
                *_progress(row),
                *_live_jobs(tx, row, jobs),
            ]
        case _:
            error = f": {line(row.error)}" if row.error else "."
            ended = f" at {_second(row.completed_at)}" if row.completed_at is not None else ""
            reasons = [f"The request of {_title(row)} ended as {row.status}{ended}{error}"]
            reasons += _named_jobs(jobs, frozenset({Status.FAILURE}))
    return request_document(tx, row, jobs, rules), reasons


def _title(row: RequestRow) -> str:
    return line(row.name or "its own graph") if row.workflow == ADHOC else line(row.workflow)


def _progress(row: RequestRow) -> list[str]:
    """How many of its jobs have ended, and whether `then` or `finally` has not started."""
    if not row.total:
        return []
    said = f"{row.done} of {row.total} jobs are done, {row.failed} failed."
    waits = row.done + row.failed < row.total and row.steps is not None
    try:
        graph = decode(row.steps or b"") if waits else None
    except InvalidValue:
        graph = None
    if graph is not None and (graph.then or graph.final):
        said += f" {'then' if graph.then else 'finally'} has not started."
    return [said]


def _why_queuing(config: Config, row: RequestRow) -> str:
    name = line(row.workflow)
    if row.pending == "fill":
        return (
            f"The request waits for the rest of its jobs: {row.total} have arrived. It starts when the"
            " submitting program has sent all of them, and fails if that takes more than 1 h."
        )
    if row.workflow not in config.workflows:
        return (
            f"The request waits for a node that has the workflow {name}: it is not configured here. Add "
            f"[workflows.{name}] to the configuration of a node."
        )
    if not config.pickup.enabled:
        return "The request waits for a node that picks up work: here pickup.enabled is false."
    if config.pickup.requests_new:
        return (
            f"The request waits for the next time of pickup.requests_new "
            f"({line(config.pickup.requests_new)}), at which a node picks up new requests."
        )
    return (
        "The request waits for a dispatcher to pick it up, at its next poll. `workerd nodes` shows the nodes."
    )


def _named_jobs(jobs: Sequence[JobRow], states: frozenset[Status]) -> list[str]:
    """A sentence for each of its first jobs in these states, with its id."""
    found = [job for job in jobs if job.status in states]
    sentences = [
        f"Its job {line(job.name or job.handler)} is {job.status}{_error_text(job)}. "
        f"`workerd why {id_text(job.id)}` explains."
        for job in found[:MAX_JOBS_NAMED]
    ]
    if len(found) > MAX_JOBS_NAMED:
        more = plural(len(found) - MAX_JOBS_NAMED, "further job")
        sentences.append(f"The same holds for {more}; `workerd request show` lists all.")
    return sentences


def _error_text(job: JobRow) -> str:
    return f": {line(job.error).rstrip('.')}" if job.error else ""


def _earlier(job: StoredJob) -> list[str]:
    retried = [f"Attempt {a.attempt} {_outcome(a)}" for a in job.attempts if a.status == Status.RETRY]
    return retried[-MAX_EARLIER_ATTEMPTS:]


def _second(us: int) -> str:
    return f"{to_rfc3339(us)[:19]}Z"


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
    "interrupted": "was interrupted when its pool was stopped",
    "cancelled": "was cancelled",
    "expired": "expired before it started",
}


def _outcome(row: JobRow) -> str:
    words = [_OUTCOMES.get(row.reason or "", row.reason or "ended")]
    if row.exit_signal is not None:
        words.append(f"({exit_text(-row.exit_signal)})")
    elif row.exit_code is not None:
        words.append(f"({exit_text(row.exit_code)})")
    if row.node:
        words.append(f"on {line(row.node)}")
    if row.run_us is not None:
        words.append(f"after {seconds_text(row.run_us / SECOND)}")
    if row.reason == "oom" and row.max_rss_kib is not None:
        words.append(f"with {size_text(row.max_rss_kib * 1024)} of memory")
    error = f": {line(row.error)}" if row.error else "."
    return " ".join(words) + error


def _why_grouped(tx: Tx, row: JobRow) -> list[str]:
    """That the failure is one of many."""
    group = None if row.fingerprint is None else errors.find(tx, row.fingerprint)
    if group is None:
        return []
    since = "" if group.first_seen is None else f" since {_second(group.first_seen)}"
    same = (
        f"It is one of {group.count:,} such failures{since}"
        if group.count > 1
        else "It is the first such failure"
    )
    if group.resolved_at is not None:
        by = f" by {line(group.resolved_by)}" if group.resolved_by else ""
        same += f", resolved{by} at {_second(group.resolved_at)}"
    return [f"{same}. `workerd errors show {group.fingerprint.hex()}` shows their group."]


# -- waiting


def _why_scheduled(tx: Tx, row: JobRow) -> str:
    if duplicates.is_follower(row.unique_key):
        return _why_behind(tx, row)
    due = row.run_at or 0
    left_s = (due - tx.now) / SECOND
    if left_s <= 0:
        return f"The job became due at {_second(due)}; a dispatcher makes it new at its next poll."
    retry = " It is a retry." if row.attempt > 1 else ""
    return (
        f"The job is due at {_second(due)}, in {seconds_text(left_s)}.{retry} "
        f"`workerd job retry` makes it due now."
    )


def _why_behind(tx: Tx, row: JobRow) -> str:
    """Which job of its unique key it waits for, or that it is about to be released."""
    key = line(row.given_key)
    status = holder_status(tx, row.handler, row.given_key or "")
    if status is None:
        return (
            f"No other live job has its unique key, {key}, any more (its row may have been deleted): a node "
            "that has the handler releases this job within 30 s."
        )
    other = "running job" if status is Status.INPROGRESS else "waiting job"
    return f"The job waits until the {other} with its unique key, {key}, has ended."


def _expires(tx: Tx, config: Config, row: JobRow) -> list[str]:
    """When it expires: by its own `expires`, else by its handler's."""
    at = row.expires_at
    handler = config.handlers.get(row.handler)
    own = None if handler is None or handler.schedule.cooler is not None else handler.expires
    if at is None and own is not None and row.attempt == 1 and row.run_at is not None:
        at = row.run_at + round(own * SECOND)
    if at is None:
        return []
    left = seconds_text(max(0, at - tx.now) / SECOND)
    return [f"It expires at {_second(at)}, in {left}, if it has not started by then."]


def _why_waiting(tx: Tx, config: Config, row: JobRow, pools: Mapping[str, Document]) -> list[str]:
    known = handlers.find(tx, row.handler)
    name = line(row.handler)
    if known is not None and known.paused_at is not None:
        reason = f" ({line(known.pause_reason)})" if known.pause_reason else ""
        return [
            f"The handler {name} is paused, by {line(known.paused_by)} at {_second(known.paused_at)}"
            f"{reason}. `workerd resume {word(row.handler)}` resumes it."
        ]
    live = _live_nodes(tx, known)
    # A pool that never loaded has not registered its handlers in the store.
    is_here = row.handler in config.handlers if not live else config.node.name in live
    here = _why_pool(row.handler, pools) if is_here else []
    if not live:
        return here or [_why_no_node(tx, name)]
    nodes_text = ", ".join(map(line, sorted(live)))
    if is_here:
        here += _why_not_picked_up(tx, config, alone=len(live) == 1)
    limited = limits.why_waiting(tx, config, row)
    reasons = [*limited, *here, *_ahead(tx, config, row)]
    return reasons or [f"The job waits for a worker of {name} on {nodes_text}."]


def _why_not_picked_up(tx: Tx, config: Config, *, alone: bool) -> list[str]:
    """Whether `[pickup]` keeps this node from taking jobs; `alone`: no other node has the handler."""
    others = "" if alone else " Another node may take the job sooner."
    if not config.pickup.enabled:
        return [f"This node takes no jobs: pickup.enabled is false.{others}"]
    if not config.pickup.jobs:
        return []
    opens_at = Cron(config.pickup.jobs).next(tx.now)
    moment = "never" if opens_at is None else f"at {_second(opens_at)}"
    return [
        f"This node takes jobs only at the times of pickup.jobs ({line(config.pickup.jobs)}), each time "
        f"until none waits; the next one is {moment}.{others}"
    ]


def _live_nodes(tx: Tx, known: HandlerRow | None) -> set[str]:
    """Names of the live nodes that have the handler."""
    if known is None:
        return set()
    return {node.name for node in nodes.list_(tx) if node.lease_until > tx.now} & set(known.nodes)


def _why_no_node(tx: Tx, handler: str) -> str:
    if not any(node.lease_until > tx.now for node in nodes.list_(tx)):
        return "No node is alive. `workerd run` starts one."
    return (
        f"No live node has the handler {handler}: add it to the configuration of one, or start the node "
        f"that has it."
    )


def _ahead(tx: Tx, config: Config, row: JobRow) -> list[str]:
    count = queries.waiting(tx, row.handler, MAX_COUNTED_JOBS)
    if count <= 1:
        return []
    jobs = plural(count, "job") if count < MAX_COUNTED_JOBS else f"{count:,} jobs or more"
    order = "lower priority numbers go first, then jobs that were due earlier"
    if limits.takes_turns(tx, config, row.handler):
        order = (
            "lower priority numbers go first, then the groups take turns;"
            " within a group, jobs due earlier go first"
        )
    return [f"{jobs} of {line(row.handler)} wait; {order}."]


def _why_pool(handler: str, pools: Mapping[str, Document]) -> list[str]:
    """What keeps the handler's pool on this node from taking the job."""
    found = [(line(name), pool) for name, pool in pools.items() if handler in (pool.get("handlers") or ())]
    if not found:
        return []
    name, pool = found[0]
    state, trouble = pool.get("state"), line(pool.get("trouble") or "not ready yet").rstrip(".")
    if pool.get("quarantined") or state == "quarantined":
        return [f"The pool {name} is quarantined here and will be restarted later: {trouble}."]
    if state != "up":
        return [f"The pool {name} is {state} here: {trouble}."]
    workers = pool.get("workers") or []
    busy = [
        f"{line(worker.get('handler'))} for {seconds_text(_runs_s(worker))} (job {worker['job']})"
        for worker in workers
        if worker.get("job")
    ]
    if busy and len(busy) == len(workers):
        return [f"All {plural(len(busy), 'worker')} of the pool {name} here are busy: {'; '.join(busy)}."]
    return []


def _runs_s(worker: Document) -> float:
    """How long its job has been running, by this host's monotonic clock, which the pool used."""
    return max(0.0, time.monotonic() - float(worker["since"]))


# -- running


def _why_set_aside(config: Config, row: JobRow) -> list[str]:
    """That it has ended here, if the store refuses to record it."""
    try:
        letter = DeadLetterFile(Paths(config.node).dead_letters).find(row.ref)
    except OSError:
        return []  # only its owner may read it
    if letter is None:
        return []
    return [
        f"The attempt has ended as {letter.outcome.status}, but the store refused to record it in any form: "
        f"{line(letter.why).rstrip('.')}. Once that is fixed, `workerd dead-letters --retry` on "
        f"{line(row.node)} records it."
    ]


def _why_running(tx: Tx, row: JobRow) -> list[str]:
    since = row.started_at or row.claimed_at or tx.now
    process = f", process id {row.pid}" if row.pid else ""
    runs_s = max(0, tx.now - since) / SECOND
    reasons = [f"The job runs on {line(row.node)}{process}, for {seconds_text(runs_s)}."]
    share = f"{row.progress:.0%}" if row.progress is not None else ""
    progress = ", ".join(filter(None, [share, line(row.note or "")]))
    if progress:
        reasons.append(f"Its progress: {progress}.")
    if row.cancel_requested_at is not None:
        reasons.append(f"Its cancellation was requested at {_second(row.cancel_requested_at)}.")
    owner = next((node for node in nodes.list_(tx) if node.id == row.node_id), None)
    if owner is None or owner.lease_until <= tx.now:
        reasons.append("Its node has not renewed its lease: another node will recover the job.")
    return reasons
