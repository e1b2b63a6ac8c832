"""The backend of Django's tasks: enqueues in the transaction of Django's own connection."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from django.conf import settings
from django.core import checks
from django.db import connections
from django.utils import timezone

from workerd import transaction
from workerd.contrib.django import results
from workerd.contrib.django.tasks_api import (
    BaseTaskBackend,
    InvalidTask,
    Task,
    TaskResult,
    TaskResultDoesNotExist,
    TaskResultStatus,
    normalize_json,
    task_enqueued,
)
from workerd.errors import InvalidValue, NotFound
from workerd.job import parse_id
from workerd.job_spec import Duration, JobSpec, check
from workerd.operations import jobs
from workerd.operations.access import join

DEFAULT_HANDLERS = {"default": "django"}
"""Queue -> handler of workerd, without the option `handlers`."""
JOB_OPTIONS = ("deadline", "max_attempts", "unique_key", "group", "expires")
"""Options of a job that a task may have; durations as everywhere in workerd."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerdTask(Task):
    """A task with options of its job: `@task(deadline="5m", max_attempts=3)` where Django passes them on."""

    deadline: Duration | None = None
    max_attempts: int | None = None
    unique_key: str | None = None
    expires: float | str | None = None
    group: str | None = None

    def using(self, **changes: Any) -> WorkerdTask:
        """The task with other values; None changes nothing."""
        return replace(self, **{name: value for name, value in changes.items() if value is not None})


class WorkerdBackend(BaseTaskBackend):
    """Tasks as jobs of workerd; each queue is a handler, with a pool, deadlines and retries of its own.

    Options: `database`, the alias of the connection that jobs are enqueued on (it leads to the store of
    workerd), and `handlers`, the handler of each queue.
    """

    task_class = WorkerdTask
    supports_defer = True
    supports_async_task = True
    supports_get_result = True
    supports_priority = True

    def __init__(self, alias: str, params: Mapping[str, Any]) -> None:
        super().__init__(alias, params)
        self.database: str = self.options.get("database", "default")
        self.handlers: dict[str, str] = dict(self.options.get("handlers", DEFAULT_HANDLERS))

    def validate_task(self, task: Any) -> None:
        """Raises InvalidTask for what Django or workerd does not take."""
        super().validate_task(task)
        if task.queue_name not in self.handlers:
            raise InvalidTask(f"Queue '{task.queue_name}' has no handler in OPTIONS['handlers'].")
        try:
            check(self._spec(task, [], {}))
        except InvalidValue as error:
            raise InvalidTask(str(error)) from None

    def _spec(self, task: Any, args: Any, kwargs: Any) -> JobSpec:
        run_after = task.run_after
        if run_after is not None and timezone.is_naive(run_after):
            run_after = timezone.make_aware(run_after)
        return JobSpec(
            handler=self.handlers[task.queue_name],
            vars={"task": task.module_path, "args": args, "kwargs": kwargs},
            run_at=run_after,
            priority=-int(task.priority),  # Django runs the larger first, workerd the smaller
            meta={"django": {"queue": task.queue_name, "run_after": run_after}},
            **{name: getattr(task, name, None) for name in JOB_OPTIONS},
        )

    def enqueue(self, task: Any, args: Any, kwargs: Any) -> Any:
        """Insert the task's job in the open transaction of `database`; its result, READY.

        Raises TypeError for arguments that JSON cannot represent, InvalidTask for the task, also where a job
        that is none has its unique key, database errors.
        """
        self.validate_task(task)
        args, kwargs = normalize_json(list(args)), normalize_json(dict(kwargs))
        done = transaction.enqueue_spec(connections[self.database], self._spec(task, args, kwargs))
        if not done.created:
            return self._holder_of_key(task, done.id)
        result = TaskResult(
            task=task,
            id=done.id,
            status=TaskResultStatus.READY,
            enqueued_at=timezone.now(),
            started_at=None,
            last_attempted_at=None,
            finished_at=None,
            args=args,
            kwargs=kwargs,
            backend=self.alias,
            errors=[],
            worker_ids=[],
        )
        task_enqueued.send(type(self), task_result=result)
        return result

    def _holder_of_key(self, task: Any, job_id: str) -> Any:
        """The result of the live task that has the key. Raises InvalidTask where a job that is none does."""
        try:
            return self.get_result(job_id)
        except TaskResultDoesNotExist:
            raise InvalidTask(
                f"Its unique_key {task.unique_key!r} is held by the job {job_id}, which is not a task of "
                "Django: give the task another key, or wait until that job has ended."
            ) from None

    def get_result(self, result_id: str) -> Any:
        """The result as the store has it now. Raises TaskResultDoesNotExist, for a malformed id too."""
        try:
            job = jobs.get(join(connections[self.database]), parse_id(result_id))
        except (NotFound, InvalidValue):
            raise TaskResultDoesNotExist(result_id) from None
        result = results.result_of(job, self)
        if result is None:
            raise TaskResultDoesNotExist(result_id)
        return result

    def queue_of(self, handler: str) -> str:
        """A queue of this handler; the handler's name for one that has none."""
        return next((queue for queue, name in self.handlers.items() if name == handler), handler)

    # -- system checks

    def check(self, **kwargs: Any) -> list[checks.CheckMessage]:
        """What keeps tasks from running, for `manage.py check`."""
        return [*super().check(**kwargs), *self._check_queues(), *self._check_database()]

    def _check_queues(self) -> list[checks.CheckMessage]:
        return [
            checks.Error(
                f"Queue '{queue}' of the task backend '{self.alias}' has no handler.",
                hint=f"Add OPTIONS['handlers']['{queue}'] = 'django-{queue}', and to the configuration of "
                f'workerd: [handlers.django-{queue}] call = "workerd.contrib.django:run"',
                id="workerd.E001",
            )
            for queue in sorted(self.queues - self.handlers.keys())
        ]

    def _check_database(self) -> list[checks.CheckMessage]:
        if self.database not in settings.DATABASES:
            problem = f"has no database '{self.database}' in DATABASES."
        elif (vendor := connections[self.database].vendor) not in ("mysql", "sqlite"):
            problem = f"needs MySQL, MariaDB or SQLite; '{self.database}' is {vendor}."
        else:
            return []
        return [
            checks.Error(
                f"The task backend '{self.alias}' {problem}",
                hint="Set OPTIONS['database'] to the alias of the database with the tables of workerd.",
                id="workerd.E002",
            )
        ]
