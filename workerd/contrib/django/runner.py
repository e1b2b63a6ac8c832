"""Runs tasks of Django in a pool of workerd; importing it sets Django up, in the pool, before the fork."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import django
from django.apps import apps
from django.conf import settings
from django.db import Error, connections, reset_queries
from django.utils import timezone
from django.utils.module_loading import autodiscover_modules

from workerd.contrib.django.results import find_task
from workerd.contrib.django.tasks_api import (
    TaskContext,
    TaskError,
    TaskResult,
    TaskResultStatus,
    normalize_json,
    task_finished,
    task_started,
)
from workerd.handler import Context, Failure, class_name

if not apps.ready:
    django.setup()
# So that workers share the code, and a reload sees that it changed.
autodiscover_modules("tasks")
# What an import has connected must not be shared by the workers.
connections.close_all()


def run(ctx: Context, task: str, args: list[Any], kwargs: dict[str, Any]) -> Any:
    """The handler of every queue: run the task at this path."""
    with_fresh_connections()
    before = _in_transaction()  # in a test of Django's, which runs in one
    try:
        found = find_task(task)
    except Exception as error:
        raise Failure(f"the task {task} cannot be imported: {type(error).__name__}: {error}") from error
    try:
        return _run(ctx, found, args, kwargs)
    finally:
        if left := _in_transaction() - before:
            ctx.log.warning("django.transaction_left", databases=sorted(left))
            _roll_back(left)
        with_fresh_connections()


def with_fresh_connections() -> None:
    """Close connections that are too old or do not answer; the next query opens new ones."""
    reset_queries()
    for connection in connections.all(initialized_only=True):
        if connection.connection is not None and not connection.in_atomic_block:
            connection.close_if_unusable_or_obsolete()
        if connection.connection is not None and not connection.is_usable():
            connection.close()


def _in_transaction() -> set[str]:
    """The databases with an atomic block that is not left."""
    return {one.alias for one in connections.all(initialized_only=True) if one.in_atomic_block}


def _roll_back(databases: set[str]) -> None:
    """Close their connections: else the next task would write into a transaction that nobody commits."""
    for alias in databases:
        connection = connections[alias]
        # What `connect` sets; `close` keeps a connection that is in a block.
        connection.in_atomic_block = connection.needs_rollback = connection.closed_in_transaction = False
        connection.savepoint_ids, connection.atomic_blocks = [], []
        with contextlib.suppress(Error):  # the task may have closed it itself
            connection.close()


def _run(ctx: Context, task: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
    result = _result(ctx, task, args, kwargs)
    backend = type(task.get_backend())
    task_started.send(sender=backend, task_result=result)
    context = (TaskContext(task_result=result),) if task.takes_context else ()
    try:
        value = task.call(*context, *args, **kwargs)
    except BaseException as error:
        _finish(result, TaskResultStatus.FAILED)
        result.errors.append(TaskError(exception_class_path=class_name(type(error)), traceback=str(error)))
        task_finished.send(sender=backend, task_result=result)
        raise
    value = _as_json(value)
    object.__setattr__(result, "_return_value", value)
    _finish(result, TaskResultStatus.SUCCESSFUL)
    task_finished.send(sender=backend, task_result=result)
    return value


def _as_json(value: Any) -> Any:
    normalize: Callable[[Any], Any] = normalize_json
    try:
        return normalize(value)
    except (TypeError, ValueError) as error:  # to run it again would return the same
        raise Failure(f"its return value cannot be represented as JSON: {error}") from error


def _finish(result: Any, status: Any) -> None:
    object.__setattr__(result, "status", status)
    object.__setattr__(result, "finished_at", timezone.now())


def _result(ctx: Context, task: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
    """What signals and context see: without a query, so that earlier attempts are only counted."""
    now = timezone.now()
    return TaskResult(
        task=task,
        id=ctx.job_id,
        status=TaskResultStatus.RUNNING,
        enqueued_at=_enqueued_at(ctx.job_id),
        started_at=now,
        last_attempted_at=now,
        finished_at=None,
        args=args,
        kwargs=kwargs,
        backend=task.backend,
        errors=[],
        worker_ids=[f"{ctx.job_id}/{number}" for number in range(1, ctx.attempt + 1)],
    )


def _enqueued_at(job_id: str) -> datetime | None:
    """When the id was made, if it says so: ids of workerd are UUIDs of version 7."""
    identity = uuid.UUID(job_id)
    if identity.version != 7:
        return None
    made = datetime.fromtimestamp((identity.int >> 80) / 1000, UTC)
    return made if settings.USE_TZ else timezone.make_naive(made)
