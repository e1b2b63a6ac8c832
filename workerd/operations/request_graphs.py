"""Requests that bring their own graph: checked as a whole, then written at once or in slices."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import msgspec

from workerd import workflow as wf
from workerd.config import text_validators as texts
from workerd.config import validators as v
from workerd.config.graph import NAME_OF_LATER_RUN, depths, final_clash, shortened
from workerd.config.graph import cycle as find_cycle
from workerd.config.model import Config
from workerd.config.workflow_config import WAIT_HANDLER, WorkflowJob
from workerd.config.workflow_jobs import JOB_KEYS, job_of
from workerd.document_types import Enqueued
from workerd.documents import json_value
from workerd.errors import CommitUnknown, Conflict, InvalidValue, StoreAway
from workerd.job import id_text, parse_id
from workerd.job_spec import JobSpec, NewJob, check, params_json
from workerd.operations.enqueue import check_spec_vars, check_waiting
from workerd.operations.repeats import KEY_USED
from workerd.store import batches, handlers, requests, workflows
from workerd.store.base import Tx
from workerd.tracing.context import TraceContext, into_meta

SLICE_JOBS = 1000
"""Jobs of a batch that one transaction writes."""
MAX_MEMBERS = 1_000_000
MAX_STAGE_JOBS = 1000
KEYS = ("jobs", "then", "finally", "params", "name", "max_failures")


class Plan(NamedTuple):
    """A checked request; `members`: the jobs of a batch, whose graph has only `then` and `finally`.

    `traceparent`: of the span that its jobs come from.
    `nodes`: of a large graph, what each of the members needs.
    """

    graph: wf.Graph
    members: list[NewJob]
    params: bytes
    name: str | None
    traceparent: str | None = None
    nodes: Sequence[WorkflowJob] = ()


class _Item(NamedTuple):
    """A job as it was given; `options`: of a JobSpec, what only a batch can keep."""

    keys: dict[str, Any]
    options: NewJob | None


def checked(tx: Tx, config: Config, body: Mapping[str, Any]) -> Plan:
    """The request that this document describes. Raises InvalidValue, which names the place or the cycle.

    Raises TooManyWaiting where its jobs would exceed the `max_waiting` of a handler. Jobs that need others in
    a graph that is not large are no rows yet, and do not count; nor do `then` and `finally`.
    """
    unknown = sorted(body.keys() - set(KEYS))
    if unknown:
        raise InvalidValue(f"{unknown[0][:60]}: expected one of {', '.join(KEYS)}")
    known = handlers.known(tx)
    name, most = body.get("name"), body.get("max_failures")
    items = _items("jobs", body.get("jobs"), config)
    jobs = _jobs("jobs", items, known, config, "continue" if most is not None else "fail")
    names = dict.fromkeys(job.name for job in jobs)
    if not jobs and not body.get("then") and not body.get("finally"):
        raise InvalidValue("jobs: expected at least one job, got none")
    if len(jobs) > MAX_MEMBERS:
        raise InvalidValue(f"jobs: expected at most {MAX_MEMBERS} jobs, got {len(jobs)}")
    batch = _is_batch(jobs)
    if not batch and any(item.options is not None for item in items):
        raise InvalidValue(
            "jobs: a JobSpec cannot be combined with jobs that need others, wait, or differ in on_error"
        )
    stages: dict[str, tuple[WorkflowJob, ...]] = {}
    ordered = () if batch else _ordered("jobs", jobs, {}, 0)
    linked = len(ordered) > wf.MAX_INLINE_JOBS
    first = 1 + max((job.step for job in ordered), default=0 if jobs else -1)
    for key in ("then", "finally"):
        stage = _jobs(key, _items(key, body.get(key), config, MAX_STAGE_JOBS), known, config, "fail")
        _refuse_taken(key, stage, names)
        stages[key] = _ordered(key, stage, names, first)
        names |= dict.fromkeys(job.name for job in stage)
        first += 1 + max((job.step for job in stage), default=0)
    _refuse_later_runs({"jobs": jobs, **stages})
    graph = wf.Graph(
        name=_checked("name", texts.name, name) if name is not None else "",
        jobs=() if batch or linked else ordered,
        then=stages["then"],
        final=stages["finally"],
        max_failures=None if most is None else _checked("max_failures", v.integer(0, 2**31 - 1), most),
        members=batch or linked,
        linked=linked,
        on_error="continue" if linked else jobs[0].on_error if batch and jobs else "fail",
        digest=_digest(items) if batch or linked else "",
    )
    if linked:
        rows = [_member(job, None) for job in ordered]
    else:
        rows = [_member(job, item.options) for job, item in zip(jobs, items, strict=True)] if batch else []
    begins = jobs if batch or linked else [job for job in jobs if not job.needs]
    check_waiting(tx, (job.handler for job in begins), config)
    params = params_json(body.get("params") or {}, config.gateway.max_body)
    return Plan(graph, rows, params, graph.name or None, nodes=ordered if linked else ())


def _checked(key: str, validator: Any, value: object) -> Any:
    try:
        return validator(value)
    except InvalidValue as error:
        raise InvalidValue(f"{key}: {error}") from None


def _items(key: str, given: object, config: Config, most: int | None = None) -> list[_Item]:
    if given is None:
        return []
    if not isinstance(given, list | tuple):
        raise InvalidValue(f"{key}: expected a list of jobs")
    if most is not None and len(given) > most:
        raise InvalidValue(f"{key}: expected at most {most} jobs, got {len(given)}")
    prefix = "" if key == "jobs" else f"{key}-"
    return [
        _item(f"{key}[{number}]", f"{prefix}{number + 1}", item, config) for number, item in enumerate(given)
    ]


def _item(place: str, spec_name: str, item: object, config: Config) -> _Item:
    """A job as it is checked; a JobSpec has no name of its own."""
    if isinstance(item, JobSpec):
        try:
            options = check(item, config.gateway.max_body)
        except InvalidValue as error:
            raise InvalidValue(f"{place}.{error}") from None
        if not options.plain:
            raise InvalidValue(f"{place}: expected no id, unique_key, delay, run_at or expires in a batch")
        keys = {"name": spec_name, "handler": item.handler, "vars": json_value(options.vars)}
        return _Item(keys, options)
    if not isinstance(item, Mapping):
        raise InvalidValue(f"{place}: expected a job")
    for key in item:
        if key not in JOB_KEYS:
            raise InvalidValue(f"{place}.{str(key)[:60]}: expected one of {', '.join(JOB_KEYS)}")
    given = {
        key: _checked(f"{place}.{key}", JOB_KEYS[key], list(value) if isinstance(value, tuple) else value)
        for key, value in item.items()
        if value is not None
    }
    if "name" not in given:
        raise InvalidValue(f"{place}.name: expected a name, got none")
    return _Item(given, None)


def _jobs(
    key: str, items: Sequence[_Item], known: Mapping[str, bytes | None], config: Config, on_error: str
) -> list[WorkflowJob]:
    """The jobs of one list, whose handlers are known and whose names are their own."""
    made: list[WorkflowJob] = []
    names: set[str] = set()
    configured = config.handlers
    for number, item in enumerate(items):
        place = f"{key}[{number}]"
        keys = dict(item.keys)
        if "handler" in keys:
            keys.setdefault("on_error", on_error)
        try:
            job = job_of(keys)
        except InvalidValue as error:
            raise InvalidValue(f"{place}: {error}") from None
        if job.name in names:
            raise InvalidValue(f'{place}.name: another job has the name "{job.name}"')
        names.add(job.name)
        if job.handler != WAIT_HANDLER:
            if job.handler not in known and job.handler not in configured:
                raise InvalidValue(f'{place}.handler: handler "{job.handler}" not found')
            try:
                check_spec_vars(job.handler, job.vars, known.get(job.handler))
            except InvalidValue as error:
                raise InvalidValue(f"{place}.vars: {error}") from None
        made.append(job)
    return made


def _digest(items: Iterable[_Item]) -> str:
    """Of the jobs as they were given: what is made of them may differ between versions."""
    found = hashlib.blake2b(digest_size=16)
    encode = msgspec.json.Encoder(order="deterministic").encode
    for item in items:
        found.update(encode(item))
    return found.hexdigest()


def _is_batch(jobs: Sequence[WorkflowJob]) -> bool:
    """Whether no job needs another or waits, and all treat a failure alike."""
    if any(job.needs or job.handler == WAIT_HANDLER for job in jobs):
        return False
    return len({job.on_error for job in jobs}) <= 1


def _refuse_taken(key: str, stage: Sequence[WorkflowJob], names: Mapping[str, None]) -> None:
    for number, job in enumerate(stage):
        if job.name in names:
            raise InvalidValue(f'{key}[{number}].name: another job has the name "{job.name}"')


def _refuse_later_runs(lists: Mapping[str, Sequence[WorkflowJob]]) -> None:
    """Raises InvalidValue for a name that a later run of `finally`, after a retry by hand, would have."""
    clash = final_clash(
        (job.name for jobs in lists.values() for job in jobs), [job.name for job in lists["finally"]]
    )
    if clash is None:
        return
    name, other = clash
    place = next(
        f"{key}[{n}]" for key, jobs in lists.items() for n, job in enumerate(jobs) if job.name == name
    )
    raise InvalidValue(f'{place}.name: {NAME_OF_LATER_RUN}, got "{name}" beside "{other}"')


def _ordered(
    key: str, jobs: Sequence[WorkflowJob], before: Mapping[str, None], first: int
) -> tuple[WorkflowJob, ...]:
    """The jobs after everything that they need. Raises InvalidValue for a cycle, or a need that is no job."""
    names = {job.name for job in jobs}
    for number, job in enumerate(jobs):
        for place, need in enumerate(job.needs):
            if need not in names and need not in before:
                raise InvalidValue(f'{key}[{number}].needs[{place}]: no job has the name "{need[:60]}"')
    needs = {job.name: job.needs for job in jobs}
    depth = depths(needs)
    if waiting := {name: of for name, of in needs.items() if name not in depth}:
        raise InvalidValue(f"{key}: expected no cycle, got {' -> '.join(shortened(find_cycle(waiting)))}")
    made = [msgspec.structs.replace(job, step=first + depth[job.name]) for job in jobs]
    return tuple(sorted(made, key=lambda job: job.step))


def _member(job: WorkflowJob, options: NewJob | None) -> NewJob:
    plain = options or NewJob(handler=job.handler, vars=msgspec.json.encode(job.vars), step=job.step)
    return msgspec.structs.replace(plain, name=job.name)


# -- writing ---------------------------------------------------------------------------------------


def submit(tx: Tx, plan: Plan, request_id: bytes | None = None) -> Enqueued:
    """Write the whole request in this transaction. One that exists under this id is left as it is."""
    done = begin(tx, plan, request_id)
    if done.created and plan.graph.members:
        for part, nodes in slices(plan):
            batches.add(tx, parse_id(done.id), part, nodes)
        batches.seal(tx, parse_id(done.id))
    return done


def traced(plan: Plan, context: TraceContext | None) -> Plan:
    """The plan of a request whose jobs come from a span, None for none."""
    if context is None:
        return plan
    members = [
        msgspec.structs.replace(job, meta=into_meta(job.meta, context) or job.meta) for job in plan.members
    ]
    return plan._replace(members=members, traceparent=context.traceparent)


def begin(tx: Tx, plan: Plan, request_id: bytes | None = None) -> Enqueued:
    """Write the request, without the jobs of a batch: `add` them slice by slice, then `seal` it."""
    done = requests.submit_graph(tx, plan.graph, plan.params, plan.name, request_id, plan.traceparent)
    return Enqueued(id_text(done.id), done.created)


def submit_in_slices(
    run: Callable[[Callable[[Tx], Any]], Any], plan: Plan, request_id: bytes | None = None
) -> Enqueued:
    """Write the request in as many transactions as it takes; `run` does one.

    One that exists under this id is completed if it is not. What is not completed, because this program dies,
    fails after an hour. Raises CommitUnknown with the request's id if the store is away after it has begun.
    """
    done: Enqueued = run(lambda tx: begin(tx, plan, request_id))
    key = parse_id(done.id)
    try:
        if not done.created and not run(lambda tx: check_repeat(tx, key, plan)):
            return done
        if plan.graph.members:
            _fill(run, plan, key)
    except StoreAway as error:
        raise CommitUnknown(str(error), error.code, answered=error.answered, ids=(done.id,)) from None
    return done


def _fill(run: Callable[[Callable[[Tx], Any]], Any], plan: Plan, request_id: bytes) -> None:
    """Add the jobs of a batch, and begin it; a repeat of the call may do the same meanwhile."""
    try:
        for part, nodes in slices(plan):
            run(partial(add, request_id=request_id, part=part, nodes=nodes))
    except Conflict:
        if not run(lambda tx: _is_complete(tx, request_id, plan)):
            raise
        return
    run(partial(seal, request_id=request_id))


def _is_complete(tx: Tx, request_id: bytes, plan: Plan) -> bool:
    row = requests.row_of(tx, request_id)
    return row.pending != "fill" and row.total >= len(plan.members)


def slices(plan: Plan) -> Iterable[tuple[Sequence[NewJob], Sequence[WorkflowJob]]]:
    """The jobs of a batch, as many as one transaction writes, and in a large graph what they need."""
    for n in range(0, len(plan.members), SLICE_JOBS):
        yield plan.members[n : n + SLICE_JOBS], plan.nodes[n : n + SLICE_JOBS]


def add(tx: Tx, request_id: bytes, part: Sequence[NewJob], nodes: Sequence[WorkflowJob]) -> None:
    """Add jobs to a batch. Raises Conflict if it takes no more."""
    batches.add(tx, request_id, part, nodes)


def seal(tx: Tx, request_id: bytes) -> None:
    """Begin a batch: all its jobs are there."""
    batches.seal(tx, request_id)


def check_repeat(tx: Tx, request_id: bytes, plan: Plan) -> bool:
    """See that the request whose id is derived from a key is that of the first call. Raises InvalidValue.

    Returns whether jobs of its batch are still to be added.
    """
    row = requests.row_of(tx, request_id)
    total, incomplete = len(plan.members) or len(plan.graph.jobs), row.pending == "fill"
    graph = workflows.graph(row.steps or b"")
    if not graph.digest:
        graph = msgspec.structs.replace(graph, digest=plan.graph.digest)
    if graph != plan.graph or row.params != plan.params or (row.total < total and not incomplete):
        raise InvalidValue(KEY_USED)
    return incomplete
