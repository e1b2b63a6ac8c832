"""The Python client: enqueue, look up, wait, cancel, retry, pause.

One class although it is long: callers see one flat list of methods, each a few lines over `operations`, and
bases for its parts would scatter that list in `help(Client)`.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from functools import partial
from types import TracebackType
from typing import Any, Literal, TypeVar, Unpack

import msgspec

from workerd import job_filter
from workerd.client_arguments import (
    BeforeEnqueue,
    Jobs,
    Source,
    configuration,
    job_list,
    moment_or_none,
    seconds_or_none,
)
from workerd.document_types import Act, Changed, Enqueued, ErrorGroup, Job, Request, Schedule
from workerd.errors import InvalidValue
from workerd.fingerprint import parse as parse_fingerprint
from workerd.job import id_bytes, parse_id
from workerd.job_filter import GivenFilter
from workerd.job_spec import Duration, JobOptions, JobSpec, NewJob, checked_name, seconds
from workerd.operations import (
    audit,
    bulk,
    errors,
    handlers,
    jobs,
    limits,
    logs,
    request_graphs,
    requests,
    schedules,
    waiting,
)
from workerd.operations.access import ConnectionPool, Store, Tx, open_checked
from workerd.operations.actor import of_client
from workerd.operations.edit import Edit
from workerd.operations.edit import edit as edit_job
from workerd.operations.enqueue import KnownHandlers, admit, checked, insert_alone, is_plain
from workerd.runtime.paths import Paths
from workerd.runtime.wake_ups import Waker, new_row, new_rows
from workerd.tracing import switch as tracing
from workerd.workflow import ADHOC

T = TypeVar("T")
MAX_PAGE_ROWS = 500
"""Jobs that are read at once."""


class Client:
    """Enqueues and looks up jobs; thread-safe, and usable after a fork.

    `source`: a store URL such as "mysql://user:password@host/database", the path of a configuration (None:
    /etc/workerd), or a Config. With a URL alone, `max_waiting` and the names of workflows are not checked.
    `timeout`: limit for one statement. `connections`: how many threads may use the store at the same time.
    `name`: of this program in the audit, after `client:`; None: the name of its file.
    `before_enqueue`: functions that each job passes through, in order; jobs of plain SQL and HTTP do not.
    `otel`: whether each enqueue is a span; None: as the configuration, or WORKERD_OTEL__ENABLED, says.

    A signal handler may raise in the middle of a method, as timeouts and Ctrl-C do. What that call has
    changed is unknown then; later calls are not affected.

    Raises ConfigError. Every method raises StoreAway while the store is unavailable, and WrongVersion if its
    schema has another version.
    """

    def __init__(
        self,
        source: Source = None,
        *,
        timeout: Duration = 5.0,
        connections: int = 4,
        name: str | None = None,
        before_enqueue: Iterable[BeforeEnqueue] = (),
        otel: bool | None = None,
    ) -> None:
        self._config = configuration(source)
        self._timeout_s = seconds("timeout", timeout)
        self._connections = ConnectionPool(self._open, connections, self._timeout_s)
        self._before_enqueue = tuple(before_enqueue)
        self._tracing = tracing.of_enqueues(otel, self._config.otel)
        self._known = KnownHandlers()
        self._waker = Waker(Paths(self._config.node).wake)
        self._actor = of_client(name)

    def _open(self) -> Store:
        return open_checked(self._config, self._timeout_s)

    def close(self) -> None:
        """Close the connections; what is left of traces is exported first, for 2 s at most."""
        if self._tracing is not None:
            self._tracing.flush()
        self._connections.close()
        self._waker.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- jobs

    def enqueue(
        self, handler: str, vars: Mapping[str, Any] | None = None, **options: Unpack[JobOptions]
    ) -> Enqueued:
        """Enqueue one job; `options` are the other fields of JobSpec.

        Raises HandlerNotFound, TooManyWaiting, and InvalidValue if an option is wrong or vars do not fit the
        handler's known signature.
        """
        checked_job = self._check(JobSpec(handler=handler, vars=vars or {}, **options))
        with tracing.sending(self._tracing, [checked_job]) as sending:
            [job] = sending.jobs
            enqueued = self._enqueue_alone(job) if is_plain(job, self._config) else None
            if enqueued is not None:
                news = new_row(job.handler, parse_id(enqueued.id))
            else:
                enqueued = self._run(lambda tx: self._admit(tx, [job]))[0]
                # Not by its id: it may be that of a job which was claimed before, and waits again.
                news = new_rows([job.handler])
            sending.enqueued = [enqueued]
        self._waker.wake(news)
        return enqueued

    def enqueue_many(self, specs: Iterable[JobSpec]) -> list[Enqueued]:
        """Enqueue all of them or none, in one transaction; results in the same order. Raises as `enqueue`."""
        new = [self._check(spec) for spec in specs]
        if not new:
            return []
        with tracing.sending(self._tracing, new) as sending:
            sending.enqueued = enqueued = self._run(lambda tx: self._admit(tx, sending.jobs))
        self._waker.wake(new_rows(job.handler for job in new))
        return enqueued

    def get(self, job_id: str | uuid.UUID) -> Job:
        """A job with its attempts. Raises NotFound, InvalidValue for a malformed id."""
        key = id_bytes(job_id)
        return msgspec.convert(self._read(lambda tx: jobs.get(tx, key)), Job)

    def jobs(self, *, limit: int = 50, **wanted: Unpack[GivenFilter]) -> list[Job]:
        """Jobs that a filter means (none: all), newest made or ended first, without payloads and attempts.

        Raises InvalidValue for a wrong value.
        """
        filters = job_filter.parse(wanted)._asdict()
        found: list[Job] = []
        after = None
        while len(found) < limit:
            rows = min(limit - len(found), MAX_PAGE_ROWS)
            page = self._read(partial(jobs.list_, limit=rows, after=after, **filters))
            found += msgspec.convert(page.jobs, list[Job])
            after = page.next
            if after is None:
                break
        return found

    def log(self, job_id: str | uuid.UUID, attempt: int | None = None) -> str:
        """What an attempt printed and logged, None: the newest one that has a log.

        Raises NotFound, which says why there is none: one that runs has its log on its node.
        """
        key = id_bytes(job_id)
        return self._read(lambda tx: logs.get(tx, key, attempt)).text

    def edit(
        self,
        job_id: str | uuid.UUID,
        *,
        vars: Mapping[str, Any] | None = None,
        priority: int | None = None,
        run_at: datetime | str | None = None,
        group: str | msgspec.UnsetType | None = msgspec.UNSET,
    ) -> Job:
        """Change a job that waits; `vars` are merged key by key, None removes one. `group`: None removes it.

        Raises NotFound, Conflict if it does not wait, InvalidValue for what does not fit.
        """
        key = id_bytes(job_id)
        change = Edit(
            vars=vars or {},
            priority=priority,
            run_at=run_at.isoformat() if isinstance(run_at, datetime) else run_at,
            group=None if group is msgspec.UNSET else group,
            group_given=group is not msgspec.UNSET,
        )
        self._run(lambda tx: edit_job(tx, self._actor, self._config, key, change))
        self.wake()
        return self.get(job_id)

    def wait(self, job_id: str | uuid.UUID, timeout: Duration | None = None) -> Job:
        """The job once it has ended. Raises NotFound, TimeoutError after `timeout` (None: never)."""
        key = id_bytes(job_id)
        waiting.wait_until(self._read, lambda tx: jobs.ended(tx, key), seconds_or_none("timeout", timeout))
        return self.get(job_id)

    def has_ended(self, job_id: str | uuid.UUID) -> bool:
        """Whether a job has ended. Raises NotFound."""
        key = id_bytes(job_id)
        return self._read(lambda tx: jobs.ended(tx, key))

    def cancel(self, job_id: str | uuid.UUID) -> bool:
        """Cancel a job: true if it has ended, false if it is running and was asked to stop.

        Raises NotFound, Conflict if it had already ended.
        """
        key = id_bytes(job_id)
        result = self._run(lambda tx: jobs.cancel(tx, self._actor, key))
        self.wake()
        return result == "ended"

    def retry(
        self, job_id: str | uuid.UUID, *, fresh: bool = False, vars: Mapping[str, Any] | None = None
    ) -> int:
        """Run an ended job again, or a scheduled one now; returns the number of the new attempt.

        `fresh`: without what earlier attempts have saved with `ctx.save` and `ctx.step`. `vars`: merged with
        those of the last attempt, as by `edit`. Raises NotFound, InvalidValue for vars that do not fit,
        Conflict while it is live or its unique key is taken.
        """
        key = id_bytes(job_id)
        attempt = self._run(
            lambda tx: jobs.retry(tx, self._actor, key, fresh=fresh, config=self._config, vars_=vars)
        )
        self.wake()
        return attempt

    def cancel_many(
        self, *, limit: int | None = None, dry_run: bool = False, **wanted: Unpack[GivenFilter]
    ) -> Changed:
        """Cancel all jobs that a filter means, newest due first, in transactions of 500 each.

        `limit`: at most so many; `dry_run`: only count them. Without `status` those that have not ended.
        Raises InvalidValue for a filter without any key, or with a wrong value.
        """
        return self._change_many(bulk.Act.CANCEL, wanted, limit, dry_run)

    def retry_many(
        self,
        *,
        limit: int | None = None,
        dry_run: bool = False,
        fresh: bool = False,
        **wanted: Unpack[GivenFilter],
    ) -> Changed:
        """Run all jobs that a filter means again, as `cancel_many`. Without `status` those that failed.

        `fresh`: without what earlier attempts have saved.
        """
        return self._change_many(bulk.Act.RETRY, wanted, limit, dry_run, fresh=fresh)

    def _change_many(
        self, act: bulk.Act, wanted: GivenFilter, limit: int | None, dry_run: bool, *, fresh: bool = False
    ) -> Changed:
        if limit is not None and limit < 1:
            raise InvalidValue(f"limit: expected at least 1, got {limit}")
        search = bulk.Search(act, job_filter.parse(wanted), limit=limit)
        search.finish(self._read)
        done = 0
        if not dry_run and search.found:
            *_, done = bulk.change_all(self._run, self._actor, search, fresh=fresh)
            self.wake()
        return Changed(search.matched, done)

    # -- requests

    def submit(
        self, workflow: str, params: Mapping[str, Any] | None = None, *, id: str | uuid.UUID | None = None
    ) -> Enqueued:
        """Start a request, a run of a workflow. `id`: a UUID of the caller; a repeat changes nothing.

        Raises InvalidValue for wrong params, a name that ends in a space, and for an unknown workflow
        if any is configured.
        """
        checked_name("workflow", workflow)
        if self._config.workflows:
            requests.check_workflow(self._config, workflow)
        checked = requests.checked_params(self._config, params)
        key = None if id is None else id_bytes(id)
        with tracing.submitting(self._tracing, workflow) as submitting:
            traceparent = tracing.traceparent_of(submitting)
            submitted = self._run(lambda tx: requests.submit(tx, workflow, checked, key, traceparent))
            submitting.enqueued = [submitted]
        self.wake()
        return submitted

    def batch(
        self,
        specs: Iterable[JobSpec | Mapping[str, Any]],
        *,
        then: Jobs = (),
        finally_: Jobs = (),
        max_failures: int | None = None,
        params: Mapping[str, Any] | None = None,
        name: str | None = None,
    ) -> Enqueued:
        """Submit a request with its own graph: jobs as in `POST /requests`, or JobSpecs, in slices.

        `then` runs when all have succeeded, `finally_` after it in every case. More than `max_failures`
        failures fail it; with it, jobs that do not say otherwise continue after a failure.

        Raises InvalidValue, which names the place of what is wrong, or the cycle.
        """
        body = {
            "jobs": job_list(specs), "then": job_list(then), "finally": job_list(finally_),
            "max_failures": max_failures, "params": params, "name": name,
        }  # fmt: skip
        plan = self._read(lambda tx: request_graphs.checked(tx, self._config, body))
        with tracing.submitting(self._tracing, ADHOC) as submitting:
            plan = request_graphs.traced(plan, tracing.context_of(submitting))
            submitted = request_graphs.submit_in_slices(self._run, plan)
            submitting.enqueued = [submitted]
        self.wake()
        return submitted

    def signal(self, request_id: str | uuid.UUID, name: str, payload: Any = None) -> None:
        """Give a signal to a request; later jobs find the payload, any JSON value, in `ctx.needs`.

        Raises NotFound, Conflict if the request has ended or the signal was given before, InvalidValue for a
        name that no job of it waits for.
        """
        key = id_bytes(request_id)
        self._run(lambda tx: requests.signal(tx, self._actor, self._config, key, name, payload))
        self.wake()

    def get_request(self, request_id: str | uuid.UUID) -> Request:
        """A request with its jobs. Raises NotFound, InvalidValue for a malformed id."""
        key = id_bytes(request_id)
        return msgspec.convert(self._read(lambda tx: requests.get(tx, key)), Request)

    def wait_request(self, request_id: str | uuid.UUID, timeout: Duration | None = None) -> Request:
        """The request once it has ended. Raises NotFound, TimeoutError after `timeout` (None: never)."""
        key = id_bytes(request_id)
        waiting.wait_until(
            self._read, lambda tx: requests.ended(tx, key), seconds_or_none("timeout", timeout)
        )
        return self.get_request(request_id)

    def request_has_ended(self, request_id: str | uuid.UUID) -> bool:
        """Whether a request has ended. Raises NotFound."""
        key = id_bytes(request_id)
        return self._read(lambda tx: requests.ended(tx, key))

    def cancel_request(self, request_id: str | uuid.UUID) -> bool:
        """Cancel a request: true if it has ended, false if it ends with its running jobs.

        Raises NotFound, Conflict if it had already ended.
        """
        key = id_bytes(request_id)
        result = self._run(lambda tx: requests.cancel(tx, self._actor, key))
        self.wake()
        return result == "ended"

    # -- error groups

    def errors(
        self, handler: str | None = None, *, since: datetime | None = None, all: bool = False, limit: int = 50
    ) -> list[ErrorGroup]:
        """Open groups of failures, the one that failed last first; with `all`, resolved and muted ones too.

        `since`: a time with its offset after which they failed. Raises InvalidValue for one without.
        """
        moment = moment_or_none(since)
        page = self._read(
            lambda tx: errors.list_(tx, handler=handler, since=moment, everything=all, limit=limit)
        )
        return msgspec.convert(page.errors, list[ErrorGroup])

    def error(self, fingerprint: str) -> ErrorGroup:
        """One group of failures. Raises NotFound, InvalidValue for what is no fingerprint."""
        key = parse_fingerprint(fingerprint)
        return msgspec.convert(self._read(lambda tx: errors.get(tx, key)), ErrorGroup)

    def resolve_error(self, fingerprint: str) -> ErrorGroup:
        """Close a group of failures until it comes back. Raises as `error`."""
        key = parse_fingerprint(fingerprint)
        return msgspec.convert(self._run(lambda tx: errors.resolve(tx, self._actor, key)), ErrorGroup)

    def mute_error(self, fingerprint: str, duration: Duration) -> ErrorGroup:
        """Leave a group of failures out of lists and alerts for so long. Raises as `error`."""
        key, for_s = parse_fingerprint(fingerprint), seconds("duration", duration)
        return msgspec.convert(self._run(lambda tx: errors.mute(tx, self._actor, key, for_s)), ErrorGroup)

    # -- the audit

    def audit(
        self,
        *,
        actor: str | None = None,
        target: str | None = None,
        since: datetime | None = None,
        limit: int = 50,
    ) -> list[Act]:
        """What people and programs changed, newest first. `target`: an id, a name or a fingerprint."""
        moment = moment_or_none(since)
        page = self._read(lambda tx: audit.list_(tx, actor=actor, target=target, since=moment, limit=limit))
        return msgspec.convert(page.audit, list[Act])

    # -- handlers

    def pause(self, handler: str, reason: str = "", by: str = "") -> None:
        """Pause a handler: no node claims its jobs once this has returned. Raises HandlerNotFound.

        `by`: who pauses it, instead of this client's name.
        """
        actor = of_client(by) if by else self._actor
        self._run(lambda tx: handlers.pause(tx, actor, self._config, handler, reason or None))
        self.wake()

    def resume(self, handler: str) -> bool:
        """Resume a handler; false if it was not paused. Raises HandlerNotFound."""
        was_paused = self._run(lambda tx: handlers.resume(tx, self._actor, self._config, handler))
        self.wake()
        return was_paused

    def unhold(self, limit: str, group: str | None = None) -> bool:
        """End a hold of a limit, or of one of its groups, that a job asked for; false if it is not held.

        Raises NotFound, InvalidValue for what cannot be a group.
        """
        _, was_held = self._run(lambda tx: limits.unhold(tx, self._actor, self._config, limit, group))
        self.wake()
        return was_held

    # -- schedules

    def schedule(
        self,
        name: str,
        *,
        handler: str | None = None,
        workflow: str | None = None,
        cron: str | None = None,
        cooler: Duration | None = None,
        vars: Mapping[str, Any] | None = None,
        params: Mapping[str, Any] | None = None,
        timezone: str = "UTC",
        misfire: Literal["skip", "once", "all"] = "once",
        overlap: Literal["allow", "skip", "queue"] = "allow",
        jitter: Duration | None = None,
        priority: int = 0,
        group: str | None = None,
        enabled: bool = True,
    ) -> Schedule:
        """Create or replace a schedule: `handler` or `workflow`, by `cron` or `cooler`.

        The same again changes nothing. Every node goes by it within one `dispatcher.poll`. Raises
        InvalidValue, and Conflict for the name of a configured one.
        """
        given = {
            "handler": handler, "workflow": workflow, "cron": cron,
            "cooler": seconds_or_none("cooler", cooler),
            "vars": vars and dict(vars), "params": params and dict(params), "timezone": timezone,
            "misfire": misfire, "overlap": overlap, "jitter": seconds_or_none("jitter", jitter),
            "priority": priority, "group": group, "enabled": enabled,
        }  # fmt: skip
        values = {key: value for key, value in given.items() if value is not None}
        document, _ = self._run(lambda tx: schedules.set_(tx, self._actor, self._config, name, values))
        return msgspec.convert(document, Schedule)

    def get_schedule(self, name: str) -> Schedule:
        """A schedule with its last ticks. Raises NotFound."""
        found = self._read(lambda tx: schedules.find(tx, self._config, name))
        return msgspec.convert(found[0], Schedule)

    def remove_schedule(self, name: str) -> None:
        """Remove a schedule that was set at run time. Raises NotFound, Conflict for a configured one."""
        self._run(lambda tx: schedules.remove(tx, self._actor, self._config, name))

    def wake(self) -> None:
        """Wake the dispatcher of this host, if there is one."""
        self._waker.wake()

    def _check(self, spec: JobSpec) -> NewJob:
        for hook in self._before_enqueue:
            spec = hook(spec)
            if not isinstance(spec, JobSpec):
                raise InvalidValue(f"before_enqueue: expected {hook!r} to return a JobSpec, got {spec!r}")
        return checked(spec, self._config)

    def _enqueue_alone(self, job: NewJob) -> Enqueued | None:
        """Insert it in one round trip; None if the cached handlers do not admit it: they may be outdated."""
        with self._connections.connection() as store:
            if not self._known.is_recent:
                store.alone(self._known.query, write=False)
            if not self._known.admits(job, self._config):
                return None
            return store.alone(
                lambda tx: insert_alone(tx, job, lambda: self._waker.wake_early([job.handler]))
            )

    def _admit(self, tx: Tx, new: list[NewJob]) -> list[Enqueued]:
        return admit(tx, new, self._config, known=self._known.query(tx))

    def _run(self, work: Callable[[Tx], T]) -> T:
        with self._connections.connection() as store:
            return store.run(work)

    def _read(self, work: Callable[[Tx], T]) -> T:
        with self._connections.connection() as store:
            return store.read(work)
