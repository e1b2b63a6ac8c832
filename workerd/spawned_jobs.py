"""Jobs that a job of a request spawns: what its handler asked for -> further jobs of the graph. No I/O."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from workerd.config.workflow_config import WorkflowJob
from workerd.config.wrong_value import refuse_reserved
from workerd.errors import InvalidValue
from workerd.job import NAME_LIMIT
from workerd.workflow import Graph, owner

MAX_SPAWNED = 10_000
"""Number of jobs that one job may spawn."""


class Spawn(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One job of `Result(spawn=[…])`."""

    handler: str
    vars: dict[str, Any] = {}
    name: str | None = None


_SPAWNS = msgspec.json.Decoder(list[Spawn])


def read_spawn(spawn: bytes) -> list[Spawn]:
    """The jobs that a handler asked for. Raises InvalidValue."""
    try:
        items = _SPAWNS.decode(spawn)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidValue(f'expected tables {{"handler", "vars"?, "name"?}} ({error})') from None
    if len(items) > MAX_SPAWNED:
        raise InvalidValue(f"expected at most {MAX_SPAWNED} jobs, got {len(items)}")
    for item in items:
        refuse_reserved(item.handler)
    return items


def spawned(graph: Graph, parent: str | None, spawn: bytes, taken: Iterable[str | None]) -> list[WorkflowJob]:
    """The jobs that `parent` asked for and that are not in `taken`. Raises InvalidValue.

    A spawned job without a name is named by its number: "parent/0", "parent/1", …
    """
    try:
        items = read_spawn(spawn)
    except InvalidValue as error:
        raise InvalidValue(f'jobs spawned by "{parent}": {error}') from None
    names = {job.name for job in graph.all_jobs}
    step = next((job.step for job in graph.all_jobs if job.name == owner(names, parent)), 0)
    made: dict[str, WorkflowJob] = {}
    for number, item in enumerate(items):
        name = f"{parent or ''}/{item.name if item.name is not None else number}"
        _check_spawned(name, item.handler)
        if name in made or name in names:
            raise InvalidValue(f'"{parent}" spawned "{name}", the name of another job; give it another name')
        made[name] = WorkflowJob(name=name, handler=item.handler, vars=item.vars, step=step)
    there = set(taken)
    return [job for job in made.values() if job.name not in there]


def _check_spawned(name: str, handler: str) -> None:
    for text, what in ((name, "a name"), (handler, "the name of a handler")):
        if not 0 < len(text) <= NAME_LIMIT or "\0" in text:
            raise InvalidValue(
                f"a spawned job needs {what} of 1 to {NAME_LIMIT} characters, got {text[:NAME_LIMIT]!r}"
            )
