"""`[workflows.NAME]` -> a list of jobs, each with what it needs, in the order in which they can run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from workerd.config import kinds as k
from workerd.config.faults import nearest
from workerd.config.model import Handler, Workflow, WorkflowJob
from workerd.config.pools import check_name, schedule
from workerd.config.schema import WORKFLOW, Keys
from workerd.config.table import Table
from workerd.config.units import wrong

MOST_JOBS = 10_000
"""Jobs of one workflow; each request of it is a row of that many names."""


def _table(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise wrong("a table", value)
    return value


STEP: Keys = {"name": k.name, "jobs": k.list_of(k.name, "handler names")}
JOB: Keys = {"name": k.name, "handler": k.name, "needs": k.list_of(k.name, "job names"), "vars": _table}


def workflows(root: Table, handlers: Mapping[str, Handler]) -> dict[str, Workflow]:
    """All workflows; cycles, unknown names and what can never run become faults of `root`."""
    found: dict[str, Workflow] = {}
    for name, table in root.table("workflows").tables():
        check_name(table, name)
        given = table.read(WORKFLOW)
        steps: tuple[str, ...] = ()
        if ("steps" in table.values) == ("jobs" in table.values):
            table.fault(
                "expected either steps or jobs" + (", got both" if "steps" in given else ", got none")
            )
            continue
        if "steps" in table.values:
            steps, jobs = _from_steps(table, given.get("steps", ()))
        else:
            jobs = _from_jobs(table, given.get("jobs", ()))
        if not jobs:
            table.fault("expected at least one job, got none")
        for job in jobs:
            if job.handler not in handlers:
                table.fault(
                    f'expected a handler that is configured, got "{job.handler}"'
                    + nearest(job.handler, handlers)
                )
        found[name] = Workflow(
            name=name, jobs=tuple(jobs[:MOST_JOBS]), step_names=steps, schedule=schedule(table, given, {})
        )
        if len(jobs) > MOST_JOBS:
            table.fault(f"expected at most {MOST_JOBS} jobs, got {len(jobs)}")
    return found


def _items(table: Table, key: str, items: tuple[Any, ...], keys: Keys) -> list[tuple[Table, dict[str, Any]]]:
    """The tables of a list; what is none becomes a fault."""
    found = []
    for number, item in enumerate(items):
        if isinstance(item, dict):
            child = table.child(item, key, number)
            found.append((child, child.read(keys)))
        else:
            table.fault(str(wrong("a table", item)), key, number)
    return found


def _from_steps(table: Table, items: tuple[Any, ...]) -> tuple[tuple[str, ...], list[WorkflowJob]]:
    """Every job of a step needs all jobs of the step before it."""
    names: list[str] = []
    jobs: list[WorkflowJob] = []
    before: tuple[str, ...] = ()
    times: dict[str, int] = {}
    for number, (step, given) in enumerate(_items(table, "steps", items, STEP)):
        if "name" not in step.values:
            step.fault("expected a name, got none", "name")
        if not step.values.get("jobs"):
            step.fault("expected at least one handler name, got none", "jobs")
        if given.get("name") in names:
            step.fault("expected a name of its own, got one that another step has", "name")
        names.append(given.get("name", ""))
        here: list[str] = []
        for handler in given.get("jobs", ()):
            times[handler] = times.get(handler, 0) + 1
            # A job is called like its handler; the second one of a handler must be told from the first.
            job = handler if times[handler] == 1 else f"{handler}#{times[handler]}"
            here.append(job)
            jobs.append(WorkflowJob(name=job, handler=handler, needs=before, step=number))
        before = tuple(here)
    return tuple(names), jobs


def _from_jobs(table: Table, items: tuple[Any, ...]) -> list[WorkflowJob]:
    """A graph in the long form, in an order in which it can run; `step` is the longest way to a job."""
    given: dict[str, WorkflowJob] = {}
    for job, keys in _items(table, "jobs", items, JOB):
        for key in ("name", "handler"):
            if key not in job.values:
                job.fault("expected a name, got none", key)
        if "name" not in keys or "handler" not in keys:
            continue
        if keys["name"] in given:
            job.fault("expected a name of its own, got one that another job has", "name")
        given[keys["name"]] = WorkflowJob(**keys)
    for number, made in enumerate(given.values()):
        for need in made.needs:
            if need not in given:
                table.fault(
                    f'expected names of jobs of this workflow, got "{need}"' + nearest(need, given),
                    "jobs",
                    number,
                    "needs",
                )
    return _ordered(table, given)


def _ordered(table: Table, given: dict[str, WorkflowJob]) -> list[WorkflowJob]:
    """Jobs after everything that they need; those that can never run are a fault that says why."""
    depth: dict[str, int] = {}
    waiting = dict(given)
    while ready := [j for j in waiting.values() if all(n in depth or n not in given for n in j.needs)]:
        for job in ready:
            depth[job.name] = max((depth[n] + 1 for n in job.needs if n in depth), default=0)
            del waiting[job.name]
    if waiting:
        cycle = _cycle(waiting)
        table.fault("expected a graph without cycles, got " + " needs ".join(f'"{n}"' for n in cycle), "jobs")
        if behind := sorted(waiting.keys() - set(cycle)):
            table.fault(
                "expected jobs that can run, got unreachable ones behind that cycle: "
                + ", ".join(f'"{n}"' for n in behind),
                "jobs",
            )
    made = [
        WorkflowJob(name=j.name, handler=j.handler, needs=j.needs, vars=j.vars, step=depth.get(j.name, 0))
        for j in given.values()
    ]
    return sorted(made, key=lambda job: job.step)


def _cycle(waiting: Mapping[str, WorkflowJob]) -> list[str]:
    """One cycle among jobs that all wait for another of them; ends with the name it begins with."""
    way: list[str] = [next(iter(waiting))]
    while True:
        following = next(n for n in waiting[way[-1]].needs if n in waiting)
        if following in way:
            return [*way[way.index(following) :], following]
        way.append(following)
