"""What the tests ask of a process of the project."""

from __future__ import annotations

import asyncio
import contextlib
from datetime import timedelta
from typing import Any

from django.core import checks
from django.db import connection, transaction
from django.utils import timezone

from tests.contrib.django_shop import tasks
from workerd.contrib.django.tasks_api import InvalidTask, task_enqueued

try:
    from django.tasks import default_task_backend, task, task_backends
except ImportError:
    from django_tasks import default_task_backend, task, task_backends

enqueued: list[str] = []


def _note(sender: type, task_result: Any, **kwargs: Any) -> None:
    enqueued.append(f"{sender.__name__} {task_result.id}")


task_enqueued.connect(_note)


def enqueue(
    name: str, args: list[Any] | None = None, kwargs: Any = None, using: Any = None, minutes: float = 0
) -> Any:
    """Enqueue a task; its result."""
    found = getattr(tasks, name)
    changes = dict(using or {})
    if minutes:
        changes["run_after"] = timezone.now() + timedelta(minutes=minutes)
    if changes:
        found = found.using(**changes)
    return shown(found.enqueue(*(args or []), **(kwargs or {})))


def aenqueue(name: str, args: list[Any]) -> Any:
    """The same by asyncio, looked up by asyncio too."""

    async def main() -> Any:
        result = await getattr(tasks, name).aenqueue(*args)
        await result.arefresh()
        return shown(await default_task_backend.aget_result(result.id))

    return asyncio.run(main())


def get(id: str) -> Any:
    """A result by its id."""
    return shown(default_task_backend.get_result(id))


def get_of(name: str, id: str) -> Any:
    """A result by the task that it should belong to."""
    return shown(getattr(tasks, name).get_result(id))


def refreshed(name: str, args: list[Any], until: str) -> Any:
    """Enqueue, and refresh the same result until it has this status."""
    result = getattr(tasks, name).enqueue(*args)
    while result.status != until:
        result.refresh()
    return shown(result)


def rolled_back() -> str:
    """Enqueue in a transaction that fails; the id."""
    with contextlib.suppress(ZeroDivisionError), transaction.atomic():
        result = tasks.add.enqueue(1)
        default_task_backend.get_result(result.id)  # its own transaction sees it
        raise ZeroDivisionError
    return str(result.id)


def committed() -> list[Any]:
    """Enqueue in a transaction; how many jobs others see before and after its end."""
    with transaction.atomic():
        result = tasks.add.enqueue(1)
        in_block = connection.in_atomic_block
    return [in_block, result.id]


def invalid(kind: str) -> str:
    """The message of a task that is refused."""

    def inner() -> None:
        """Nothing."""

    calls: dict[str, Any] = {
        "lambda": lambda: task(lambda: None),
        "inner": lambda: task(inner),
        "queue": lambda: tasks.add.using(queue_name="unknown"),
        "priority": lambda: tasks.add.using(priority=101),
        "naive": lambda: tasks.add.using(run_after=timezone.now().replace(tzinfo=None)),
        "deadline": lambda: tasks.add.using(deadline="soon"),
        "handler": lambda: tasks.add.using(backend="wrong", queue_name="mail"),
    }
    try:
        calls[kind]()
    except InvalidTask as error:
        return str(error)
    return "valid"


def supports(alias: str = "default") -> list[bool]:
    """The backend's flags."""
    backend = task_backends[alias]
    return [
        backend.supports_defer, backend.supports_async_task, backend.supports_get_result,
        backend.supports_priority,
    ]  # fmt: skip


def check() -> list[str]:
    """The messages of `manage.py check`."""
    return [f"{message.id}: {message.msg} {message.hint}" for message in checks.run_checks()]


def signals() -> list[str]:
    """The signals of enqueued tasks so far."""
    return enqueued


def error_classes(id: str) -> list[str]:
    """The classes of a result's errors, imported."""
    return [error.exception_class.__name__ for error in default_task_backend.get_result(id).errors]


def shown(result: Any) -> dict[str, Any]:
    """A result as JSON."""
    return {
        "id": result.id,
        "task": result.task.module_path,
        "kind": type(result.task).__name__,
        "priority": result.task.priority,
        "queue": result.task.queue_name,
        "run_after": result.task.run_after,
        "status": str(result.status),
        "finished": result.is_finished,
        "enqueued_at": result.enqueued_at,
        "started_at": result.started_at,
        "last_attempted_at": result.last_attempted_at,
        "finished_at": result.finished_at,
        "args": result.args,
        "kwargs": result.kwargs,
        "backend": result.backend,
        "errors": [[error.exception_class_path, error.traceback] for error in result.errors],
        "workers": result.worker_ids,
        "attempts": result.attempts,
        "value": result.return_value if str(result.status) == "SUCCESSFUL" else None,
    }


def enqueue_object() -> None:
    """Enqueue what JSON cannot represent."""
    tasks.add.enqueue(object())
