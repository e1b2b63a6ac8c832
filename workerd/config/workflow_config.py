"""`[workflows.NAME]`: graphs of jobs."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from workerd.config import validators as v
from workerd.config.config_value import ConfigValue
from workerd.config.schedule_config import ScheduleConfig

OnError = Literal["fail", "continue"]

WAIT_HANDLER = "~wait"
"""The reserved handler of the rows that wait for a time or a signal: no pool claims them."""


class WorkflowJob(ConfigValue, frozen=True):
    """One node of a workflow's graph; steps are translated into these.

    on_error
        Whether a failure fails the request, or what needs the job goes on without it.
    wait
        Instead of running a handler: seconds from when it is ready, or a time in microseconds (`until`).
    signal, timeout
        Instead of running a handler: the signal that ends it, and after how many seconds it fails.
    """

    name: str
    handler: str
    needs: tuple[str, ...] = ()
    vars: dict[str, Any] = {}
    step: int = 0
    on_error: OnError = "fail"
    wait: float | None = None
    until: int | None = None
    signal: str = ""
    timeout: float | None = None


class WorkflowTable(ConfigValue, frozen=True):
    """`[workflows.NAME]` as it is written: `steps` or `jobs`; a request is one run of it."""

    steps: Annotated[tuple[Any, ...], v.list_of(v.anything, "steps")] = ()
    """The jobs of a step run at the same time, each step after the one before."""
    jobs: Annotated[tuple[Any, ...], v.list_of(v.anything, "jobs")] = ()
    """Instead of `steps`, any directed acyclic graph: jobs = [{ name = "a", handler = "x", needs = ["b"],
    vars = {}, on_error = "fail" }, …]. Instead of a handler a job may have wait = "2h" (or a time), or
    signal = "approved" with timeout = "7d", on_timeout = "fail"; with on_error or on_timeout = "continue"
    the jobs that need it run without it."""
    then: Annotated[tuple[Any, ...], v.list_of(v.anything, "jobs")] = ()
    """Jobs of the same form that run when all others have succeeded."""
    finally_: Annotated[tuple[Any, ...], v.list_of(v.anything, "jobs")] = ()
    """Jobs of the same form that always run once after all others, also after a cancel."""
    max_failures: Annotated[int | None, v.count_or_none(0, 2**31 - 1)] = None
    """More failed jobs than this fail the request, including those with on_error = "continue". "": any
    number."""


class WorkflowConfig(ConfigValue, frozen=True):
    """One workflow: its jobs in step order."""

    name: str
    jobs: tuple[WorkflowJob, ...]
    step_names: tuple[str, ...] = ()
    then: tuple[WorkflowJob, ...] = ()
    final: tuple[WorkflowJob, ...] = ()
    max_failures: int | None = None
    schedule: ScheduleConfig = ScheduleConfig()
