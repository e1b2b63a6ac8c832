"""The tables `[workflows.NAME]`: ordered steps or any acyclic graph."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from workerd.config import text_validators as texts
from workerd.config import validators as v
from workerd.config.config_value import Keys
from workerd.config.graph import NAME_OF_LATER_RUN, depths, final_clash, shortened
from workerd.config.graph import cycle as find_cycle
from workerd.config.handler_config import HandlerConfig
from workerd.config.model import WORKFLOW_KEYS
from workerd.config.reader import Table, check_name, nearest
from workerd.config.schedules import own_schedule
from workerd.config.workflow_config import WAIT_HANDLER, WorkflowConfig, WorkflowJob
from workerd.config.workflow_jobs import JOB_KEYS, job_of
from workerd.config.wrong_value import wrong
from workerd.errors import InvalidValue

MAX_WORKFLOW_JOBS = 10_000
MAX_HINTS = 5
"""Wrong names of one workflow for which the nearest known one is looked for."""

STEP_KEYS: Keys = {
    "name": texts.name,
    "jobs": v.list_of(texts.unreserved_name, "handler names"),
    "on_error": v.choice("fail", "continue"),
}


def workflows(root: Table, handlers: Mapping[str, HandlerConfig]) -> dict[str, WorkflowConfig]:
    """All workflows. Cycles, unknown names and jobs that can never run become errors."""
    found: dict[str, WorkflowConfig] = {}
    for name, table in root.table("workflows").tables():
        check_name(table, name)
        given = table.read(WORKFLOW_KEYS)
        steps: tuple[str, ...] = ()
        if ("steps" in table.values) == ("jobs" in table.values):
            table.error(
                "expected either steps or jobs" + (", got both" if "steps" in given else ", got none")
            )
            continue
        if "steps" in table.values:
            steps, jobs = _from_steps(table, given.get("steps", ()))
        else:
            jobs = _from_jobs(table, "jobs", given.get("jobs", ()), {})
        if not jobs:
            table.error("expected at least one job, got none")
        names = {job.name: job for job in jobs}
        then = _from_jobs(table, "then", given.get("then", ()), names)
        final = _from_jobs(
            table, "finally", given.get("finally", ()), names | {job.name: job for job in then}
        )
        clash = final_clash((job.name for job in (*jobs, *then)), [job.name for job in final])
        if clash is not None:
            table.error(f'{NAME_OF_LATER_RUN}, got "{clash[0]}" beside "{clash[1]}"')
        for job in (*jobs, *then, *final):
            if job.handler not in handlers and job.handler != WAIT_HANDLER:
                table.error(
                    f'expected a handler that is configured, got "{job.handler}"'
                    + nearest(job.handler, handlers)
                )
        found[name] = WorkflowConfig(
            name=name,
            jobs=tuple(jobs[:MAX_WORKFLOW_JOBS]),
            step_names=steps,
            then=tuple(then),
            final=tuple(final),
            max_failures=given.get("max_failures"),
            schedule=own_schedule(table, given, {}),
        )
        if len(jobs) > MAX_WORKFLOW_JOBS:
            table.error(f"expected at most {MAX_WORKFLOW_JOBS} jobs, got {len(jobs)}")
    return found


def _items(table: Table, key: str, items: tuple[Any, ...], keys: Keys) -> list[tuple[Table, dict[str, Any]]]:
    """The tables of a list; any other item is an error."""
    found = []
    for number, item in enumerate(items):
        if isinstance(item, dict):
            child = table.child(item, key, number)
            found.append((child, child.read(keys)))
        else:
            table.error(str(wrong("a table", item)), key, number)
    return found


def _from_steps(table: Table, items: tuple[Any, ...]) -> tuple[tuple[str, ...], list[WorkflowJob]]:
    """Every job of a step needs all jobs of the step before it."""
    names: dict[str, None] = {}
    jobs: list[WorkflowJob] = []
    before: tuple[str, ...] = ()
    times: dict[str, int] = {}
    for number, (step, given) in enumerate(_items(table, "steps", items, STEP_KEYS)):
        if "name" not in step.values:
            step.error("expected a name, got none", "name")
        if not step.values.get("jobs"):
            step.error("expected at least one handler name, got none", "jobs")
        if given.get("name") in names:
            step.error("expected a name of its own, got one that another step has", "name")
        names[given.get("name", "")] = None
        here: list[str] = []
        for handler in given.get("jobs", ()):
            times[handler] = times.get(handler, 0) + 1
            # A job is named after its handler; a second one of the same handler needs another name.
            job = handler if times[handler] == 1 else f"{handler}#{times[handler]}"
            here.append(job)
            jobs.append(
                WorkflowJob(
                    name=job, handler=handler, needs=before, step=number,
                    on_error=given.get("on_error", "fail"),
                )
            )  # fmt: skip
        before = tuple(here)
    return tuple(names), jobs


def _from_jobs(
    table: Table, key: str, items: tuple[Any, ...], before: Mapping[str, WorkflowJob]
) -> list[WorkflowJob]:
    """A graph in topological order; `step` is the longest path to a job, behind those `before` it."""
    given: dict[str, WorkflowJob] = {}
    for job, keys in _items(table, key, items, dict(JOB_KEYS)):
        if "name" not in job.values:
            job.error("expected a name, got none", "name")
        if not {"handler", "wait", "signal"} & job.values.keys():
            job.error("expected a name, got none", "handler")
        if "name" not in keys or not {"handler", "wait", "signal"} & keys.keys():
            continue
        if keys["name"] in given or keys["name"] in before:
            job.error("expected a name of its own, got one that another job has", "name")
        try:
            given[keys["name"]] = job_of(keys)
        except InvalidValue as error:
            job.error(str(error))
    unknown = [
        (number, need)
        for number, made in enumerate(given.values())
        for need in made.needs
        if need not in given and need not in before
    ]
    for place, (number, need) in enumerate(unknown):
        # Comparing with all names takes long for a large graph.
        hint = nearest(need, given) if place < MAX_HINTS else ""
        table.error(f'expected names of jobs of this workflow, got "{need}"{hint}', key, number, "needs")
    return _ordered(table, key, given, max((job.step for job in before.values()), default=-1) + 1)


def _ordered(table: Table, key: str, given: dict[str, WorkflowJob], first: int) -> list[WorkflowJob]:
    """Jobs after everything they need; those that can never run are an error that names the cycle."""
    depth = depths({name: job.needs for name, job in given.items()})
    if waiting := {name: job.needs for name, job in given.items() if name not in depth}:
        cycle = find_cycle(waiting)
        table.error(
            "expected a graph without cycles, got " + " needs ".join(shortened([f'"{n}"' for n in cycle])),
            key,
        )
        if behind := sorted(waiting.keys() - set(cycle)):
            table.error(
                "expected jobs that can run, got unreachable ones behind that cycle: "
                + ", ".join(shortened([f'"{n}"' for n in behind])),
                key,
            )
    made = [msgspec.structs.replace(job, step=first + depth.get(job.name, 0)) for job in given.values()]
    return sorted(made, key=lambda job: job.step)
