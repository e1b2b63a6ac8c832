"""The project's tasks."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

from django.db import connection, transaction

try:
    from django.tasks import task
    from django.tasks.signals import task_finished, task_started
except ImportError:
    from django_tasks import task
    from django_tasks.signals import task_finished, task_started


class Broken(Exception):
    """Of the project's own."""


@task
def add(a: int, b: int = 1) -> int:
    return a + b


@task(queue_name="urgent", priority=5)
def urgent(word: str) -> str:
    return word


@task
async def later(word: str) -> str:
    return word


@task(takes_context=True)
def about(context: Any, key: str) -> list[Any]:
    result = context.task_result
    return [context.attempt, str(result.status), result.id, result.args, result.enqueued_at is not None, key]


@task
def fails(kind: str) -> None:
    if kind == "own":
        raise Broken("first line\nsecond line")
    if kind == "chained":
        try:
            raise KeyError("inner")
        except KeyError as error:
            raise ValueError("outer") from error
    if kind == "exit":
        sys.exit(3)
    raise KeyboardInterrupt


@task
def returns(kind: str) -> Any:
    return {"tuple": (1, 2), "object": object(), "none": None, "nested": {"a": [1, {"b": None}]}}[kind]


@task
def dies_once(folder: str) -> str:
    mark = Path(folder) / "died"
    if not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return "alive"


@task
def fails_until(path: str) -> str:
    if not Path(path).exists():
        raise Broken("not yet")
    return "done"


@task
def connection_id(sqlite: bool) -> int:
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1" if sqlite else "SELECT CONNECTION_ID()")
        (value,) = cursor.fetchone()
    return int(value)


@task
def leaves_transaction_open() -> None:
    transaction.atomic().__enter__()
    with transaction.atomic():
        _write("left")


@task
def closes_in_transaction() -> None:
    transaction.atomic().__enter__()
    _write("closed")
    connection.close()


@task
def writes(word: str) -> None:
    with transaction.atomic():
        _write(word)


def _write(word: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute("INSERT INTO shop_words (word) VALUES (%s)", [word])


def not_a_task() -> None:
    """A plain function."""


def _note(name: str) -> Any:
    def note(sender: type, task_result: Any, **kwargs: Any) -> None:
        if folder := os.environ.get("SHOP_SIGNALS"):
            with (Path(folder) / "signals").open("a") as file:
                file.write(f"{name} {sender.__name__} {task_result.task.name} {task_result.status}\n")

    return note


_started, _finished = _note("started"), _note("finished")
task_started.connect(_started)
task_finished.connect(_finished)
