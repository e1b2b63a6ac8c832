"""A program's client: enqueue, look up, wait, cancel, retry."""

from __future__ import annotations

import os
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import msgspec

from workerd import documents
from workerd.config.model import Config, StoreConfig
from workerd.documents import Enqueued, Job, Request
from workerd.errors import NotFound, StoreAway, StoreError
from workerd.job import id_text, parse_id
from workerd.job_spec import Checked, Duration, JobSpec, check, params_json, seconds
from workerd.operations.enqueue import Known, admit, check_handlers, insert_alone, is_plain
from workerd.runtime.paths import Paths
from workerd.runtime.sockets import poke
from workerd.store import handlers, job_control, queries, requests
from workerd.store.base import Store, Tx
from workerd.store.columns import text
from workerd.store.engines import open_store
from workerd.workflow import REQUEST_ENDED


class ConnectionPool:
    """At most `most` connections, opened when needed, kept for the next thread.

    `timeout`: seconds that a thread waits for one to come free; then StoreAway. After a fork the child
    opens its own: a connection that two processes speak on is broken for both.
    """

    def __init__(self, make: Callable[[], Store], most: int, timeout: float) -> None:
        self._make = make
        self._most = most
        self._timeout = timeout
        self._free: list[Store] = []
        # A parent's connections, kept for good: an object that goes closes its descriptor, and where the
        # child has closed what it inherited, as a worker does, that number may be another file's by now.
        self._inherited: list[Store] = []
        self._begin()

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._inherited += self._free
        self._free = []
        self._places = threading.BoundedSemaphore(self._most)
        self._closed = False

    @contextmanager
    def lent(self) -> Iterator[Store]:
        """A store for the calling thread alone. Raises StoreAway when none comes free in time."""
        if self._pid != os.getpid():
            self._begin()
        places = self._places
        if not places.acquire(timeout=self._timeout):
            raise StoreAway(
                f"all {self._most} connections of this client are in use; give it more with `connections`"
            )
        try:
            with self._lock:
                store = self._free.pop() if self._free else None
            if store is None:
                store = self._make()
            try:
                yield store
            finally:
                self._take_back(store)
        finally:
            places.release()

    def _take_back(self, store: Store) -> None:
        with self._lock:
            if not self._closed:
                self._free.append(store)
                return
        store.close()

    def close(self) -> None:
        """Close what is free now, and what is lent when it comes back."""
        if self._pid != os.getpid():
            return
        with self._lock:
            self._closed = True
            free, self._free = self._free, []
        for store in free:
            with suppress(StoreError):
                store.close()


FIRST_LOOK = 0.005
SLOWEST_LOOK = 0.25
"""Seconds between two looks: short at first, for jobs that take milliseconds."""

Fact = Callable[[Tx], bool]
Read = Callable[[Fact], bool]


def job_over(key: bytes) -> Fact:
    """The job has ended; raises NotFound."""
    return lambda tx: queries.ended(tx, key)


def request_over(key: bytes) -> Fact:
    """The request has ended; raises NotFound."""

    def over(tx: Tx) -> bool:
        row = tx.one("SELECT status FROM workerd_requests WHERE id = %s", (key,))
        if row is None:
            raise NotFound(f"There is no request {id_text(key)}; `workerd request list` shows what is there.")
        return text(row[0]) in REQUEST_ENDED

    return over


def until(read: Read, fact: Fact, timeout: float | None) -> None:
    """Return when the fact is true, TimeoutError after `timeout` seconds (None: wait for ever)."""
    end = None if timeout is None else time.monotonic() + timeout
    pause = FIRST_LOOK
    while not read(fact):
        left = None if end is None else end - time.monotonic()
        if left is not None and left <= 0:
            raise TimeoutError(f"it has not ended within {timeout:g} s")
        time.sleep(pause if left is None else min(pause, left))
        pause = min(pause * 1.5, SLOWEST_LOOK)


T = TypeVar("T")
Source = Config | str | os.PathLike[str] | None


class Client:
    """Enqueues jobs and looks them up; may be used by many threads at once, and after a fork.

    `source`: a store URL such as "mysql://user:password@host/database", the path of a configuration (None:
    /etc/workerd), or a Config. With a URL alone nothing is known of `max_waiting`. `timeout`: seconds that
    a statement may take. `connections`: how many threads may be at the store at once.

    Raises ConfigError. Every method raises StoreAway while the store does not answer, and WrongVersion if
    its schema is not this version's.
    """

    def __init__(self, source: Source = None, *, timeout: Duration = 5.0, connections: int = 4) -> None:
        self._config = _configuration(source)
        self._timeout = seconds("timeout", timeout)
        self._stores = ConnectionPool(self._open, connections, self._timeout)
        self._known = Known()
        self._wake = Paths(self._config.node).wake

    def _open(self) -> Store:
        store = open_store(self._config.store, state_dir=self._config.node.state_dir, timeout=self._timeout)
        try:
            store.check_version()
        except BaseException:
            store.close()
            raise
        return store

    def close(self) -> None:
        """Close the connections."""
        self._stores.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- jobs

    def enqueue(
        self,
        handler: str,
        vars: Mapping[str, Any] | None = None,
        *,
        id: str | uuid.UUID | None = None,
        delay: Duration | None = None,
        run_at: datetime | str | None = None,
        priority: int = 0,
        unique_key: str | None = None,
        deadline: Duration | None = None,
        max_attempts: int | None = None,
        meta: Any = None,
    ) -> Enqueued:
        """Enqueue one job; see JobSpec for the arguments.

        Raises HandlerNotFound, TooManyWaiting, and ValueError if an argument is wrong or vars do not fit
        the handler's known signature.
        """
        spec = JobSpec(
            handler=handler,
            vars=vars or {},
            id=id,
            delay=delay,
            run_at=run_at,
            priority=priority,
            unique_key=unique_key,
            deadline=deadline,
            max_attempts=max_attempts,
            meta=meta,
        )
        checked = check(spec, self._config.gateway.max_body)
        done = self._alone(checked) if is_plain(checked, self._config) else None
        if done is None:
            done = self._run(lambda tx: self._admit(tx, [checked]))[0]
        self.wake()
        return done

    def enqueue_many(self, specs: Iterable[JobSpec]) -> list[Enqueued]:
        """Enqueue all of them or none, in one round trip of bounded size; results in the same order.

        Raises as `enqueue`.
        """
        checked = [check(spec, self._config.gateway.max_body) for spec in specs]
        if not checked:
            return []
        done = self._run(lambda tx: self._admit(tx, checked))
        self.wake()
        return done

    def get(self, job_id: str | uuid.UUID) -> Job:
        """A job with its attempts. Raises NotFound, ValueError if the id is none."""
        key = _key(job_id)
        return self._read(lambda tx: _job(tx, key))

    def wait(self, job_id: str | uuid.UUID, timeout: Duration | None = None) -> Job:
        """The job once it has ended. Raises NotFound, TimeoutError after `timeout` (None: never)."""
        key = _key(job_id)
        until(self._read, job_over(key), _patience(timeout))
        return self._read(lambda tx: _job(tx, key))

    def cancel(self, job_id: str | uuid.UUID) -> bool:
        """Cancel a job: true if it has ended by that, false if it runs and was asked to end.

        Raises NotFound, Conflict if it had ended before.
        """
        key = _key(job_id)
        outcome = self._run(lambda tx: job_control.cancel(tx, key))
        self.wake()
        return outcome == "ended"

    def retry(self, job_id: str | uuid.UUID) -> int:
        """Run an ended job again, or a scheduled one now: the number of the new attempt.

        Raises NotFound, Conflict while it is live or its unique key is held.
        """
        key = _key(job_id)
        attempt = self._run(lambda tx: job_control.retry(tx, key))
        self.wake()
        return attempt

    # -- requests

    def submit(
        self, workflow: str, params: Mapping[str, Any] | None = None, *, id: str | uuid.UUID | None = None
    ) -> Enqueued:
        """Begin a request, one run of a workflow; `id`: a UUID of your own, submitting it again does nothing.

        Raises ValueError for wrong params, and for an unknown workflow where the configuration is known.
        """
        if self._config.workflows and workflow not in self._config.workflows:
            known = ", ".join(sorted(self._config.workflows))
            raise ValueError(f'there is no workflow "{workflow}"; known are: {known}')
        text = params_json(params or {}, self._config.gateway.max_body)
        key = None if id is None else _key(id)
        done = self._run(lambda tx: requests.submit(tx, workflow, text, key))
        self.wake()
        return Enqueued(id_text(done.id), done.created)

    def get_request(self, request_id: str | uuid.UUID) -> Request:
        """A request with its jobs. Raises NotFound, ValueError if the id is none."""
        key = _key(request_id)
        return self._read(lambda tx: _request(tx, key))

    def wait_request(self, request_id: str | uuid.UUID, timeout: Duration | None = None) -> Request:
        """The request once it has ended. Raises NotFound, TimeoutError after `timeout` (None: never)."""
        key = _key(request_id)
        until(self._read, request_over(key), _patience(timeout))
        return self._read(lambda tx: _request(tx, key))

    def cancel_request(self, request_id: str | uuid.UUID) -> bool:
        """Cancel a request: true if it has ended by that, false if it ends when its running jobs do.

        Raises NotFound, Conflict if it had ended before.
        """
        key = _key(request_id)
        outcome = self._run(lambda tx: requests.cancel(tx, key))
        self.wake()
        return outcome == "ended"

    # -- handlers

    def pause(self, handler: str, reason: str = "", by: str = "") -> None:
        """Hold a handler back: no node claims its jobs once this has returned. Raises HandlerNotFound."""
        by = by or f"client on {os.uname().nodename}"

        def work(tx: Tx) -> None:
            check_handlers([handler], handlers.known(tx), self._config)
            handlers.pause(tx, handler, by, reason or None)

        self._run(work)
        self.wake()

    def resume(self, handler: str) -> bool:
        """Let a handler be claimed again; false if it was not paused. Raises NotFound."""
        was_paused = self._run(lambda tx: handlers.resume(tx, handler))
        self.wake()
        return was_paused

    # -- how

    def wake(self) -> None:
        """Tell this machine's dispatcher, if there is one, that there is work."""
        poke(self._wake)

    def _alone(self, spec: Checked) -> Enqueued | None:
        """The job, in one statement; None if by what was known it may not be: that is looked at again."""
        with self._stores.lent() as store:
            if not self._known.recent:
                store.alone(self._known.ask, write=False)
            if not self._known.admits(spec, self._config):
                return None
            return store.alone(lambda tx: insert_alone(tx, spec))

    def _admit(self, tx: Tx, specs: list[Checked]) -> list[Enqueued]:
        return admit(tx, specs, self._config, known=self._known.ask(tx))

    def _run(self, work: Callable[[Tx], T]) -> T:
        with self._stores.lent() as store:
            return store.run(work)

    def _read(self, work: Callable[[Tx], T]) -> T:
        with self._stores.lent() as store:
            return store.read(work)


def _configuration(source: Source) -> Config:
    if isinstance(source, Config):
        return source
    if isinstance(source, str) and "://" in source:
        return Config(store=StoreConfig(url=source))
    from workerd.config.build import load

    return load(None if source is None else Path(source), os.environ)


def _key(job_id: str | uuid.UUID) -> bytes:
    return job_id.bytes if isinstance(job_id, uuid.UUID) else parse_id(job_id)


def _patience(timeout: Duration | None) -> float | None:
    return None if timeout is None else seconds("timeout", timeout)


def _job(tx: Tx, key: bytes) -> Job:
    return msgspec.convert(documents.job(queries.get(tx, key)), Job)


def _request(tx: Tx, key: bytes) -> Request:
    row, jobs = requests.get(tx, key)
    return msgspec.convert(documents.request(row, jobs), Request)
