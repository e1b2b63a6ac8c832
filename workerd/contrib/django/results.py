"""A job of workerd as the result of a task."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from datetime import datetime
from typing import Any

import msgspec
from django.conf import settings
from django.utils import timezone
from django.utils.module_loading import import_string

from workerd.contrib.django.tasks_api import Task, TaskError, TaskResult, TaskResultStatus
from workerd.document_types import Attempt, Job

STATUSES = {
    "scheduled": TaskResultStatus.READY,
    "new": TaskResultStatus.READY,
    "retry": TaskResultStatus.READY,
    "inprogress": TaskResultStatus.RUNNING,
    "completed": TaskResultStatus.SUCCESSFUL,
    "failure": TaskResultStatus.FAILED,
    "cancelled": TaskResultStatus.FAILED,
}
CLASSES = {"retry": "workerd.Retry", "cancelled": "workerd.Cancelled"}
"""What an attempt ended with that is no failure of workerd's own."""
_NO_ERROR = (None, "ok", "ignored", "skipped", "interrupted")


def result_of(document: Mapping[str, Any], backend: Any) -> Any:
    """The TaskResult of a job's document; None for a job that is no task."""
    job = msgspec.convert(document, Job)
    if not isinstance(job.vars, dict) or not isinstance(job.vars.get("task"), str):
        return None
    runs = [attempt for attempt in job.attempts if attempt.claimed_at is not None]
    failed = job.status == "completed" and job.success is False
    result = TaskResult(
        task=_task(job, backend),
        id=job.id,
        status=TaskResultStatus.FAILED if failed else STATUSES[job.status],
        enqueued_at=_moment(job.created_at),
        started_at=_started(runs[0]) if runs else None,
        last_attempted_at=_started(runs[-1]) if runs else None,
        finished_at=_moment(job.finished_at) if job.complete else None,
        args=job.vars.get("args", []),
        kwargs=job.vars.get("kwargs", {}),
        backend=backend.alias,
        errors=[error_of(attempt) for attempt in job.attempts if attempt.reason not in _NO_ERROR],
        worker_ids=[_worker(attempt) for attempt in runs],
    )
    object.__setattr__(result, "_return_value", job.result)
    return result


def _started(attempt: Attempt) -> datetime | None:
    return _moment(attempt.started_at or attempt.claimed_at)


def _worker(attempt: Attempt) -> str:
    """Node and process that ran it; the process is known at its end, or when it has run for a while."""
    return f"{attempt.node}/{attempt.pid or 'worker'}"[:64]


def _moment(value: datetime | None) -> datetime | None:
    """As Django has it: without a time zone where the project uses none."""
    return value if value is None or settings.USE_TZ else timezone.make_naive(value)


def error_of(attempt: Attempt) -> Any:
    """The TaskError of an attempt that did not succeed."""
    path = attempt.error_class or CLASSES.get(attempt.reason or "", "builtins.Exception")
    return TaskError(exception_class_path=path, traceback=attempt.stack or attempt.error or "")


# -- the task of a job


def find_task(path: str) -> Any:
    """The task at this path, which may be that of its function. Raises ImportError."""
    found = import_string(path)
    if not isinstance(found, Task):
        raise ImportError(f"{path} is no task: expected a function decorated with @task")
    return found


def _task(job: Job, backend: Any) -> Any:
    meta = job.meta.get("django", {}) if isinstance(job.meta, dict) else {}
    run_after = meta.get("run_after")
    try:
        task = find_task(job.vars["task"])
    except Exception:  # importing runs user code, which may have changed since
        task = _Missing(job.vars["task"], backend)
    return _restored(
        task,
        backend=backend.alias,
        queue_name=meta.get("queue") or backend.queue_of(job.handler),
        priority=-job.priority,
        run_after=_moment(datetime.fromisoformat(run_after)) if run_after else None,
    )


class _Missing:
    """Stands for a task whose path cannot be imported any more; its function only raises."""

    def __init__(self, path: str, backend: Any) -> None:
        def missing(*args: object, **kwargs: object) -> None:
            raise ImportError(f"the task {path} cannot be imported")

        missing.__module__, _, missing.__qualname__ = path.rpartition(".")
        missing.__name__ = missing.__qualname__
        self.task_class = backend.task_class
        self.func = missing
        self.takes_context = False


def _restored(task: Any, **changes: Any) -> Any:
    """The task with these values, which are not validated again: it was enqueued with them."""
    kind = task.task_class if isinstance(task, _Missing) else type(task)
    made = object.__new__(kind)
    for field in fields(kind):
        value = changes[field.name] if field.name in changes else getattr(task, field.name, None)
        object.__setattr__(made, field.name, value)
    return made
