"""When handlers and workflows recur: `[schedules.NAME]` and the short form."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from workerd.config import text_validators as texts
from workerd.config import validators as v
from workerd.config.config_value import DAY_S, ConfigValue

Overlap = Literal["allow", "skip", "queue"]
Misfire = Literal["skip", "once", "all"]


class ScheduleConfig(ConfigValue, frozen=True):
    """When a handler or a workflow recurs; without `cooler` and `cron` it does not."""

    cooler: Annotated[float | None, v.duration_or_none] = None
    """Recurring: pause from the end of each run to the start of the next, one at a time in the whole cluster.
    "": not recurring."""
    cron: Annotated[str, texts.cron] = ""
    """Recurring at set times: "*/5 * * * *"; with six fields the first is seconds. Not together with
    `cooler`. "": not recurring."""
    timezone: Annotated[str, texts.timezone] = "UTC"
    """Time zone of `cron`, with its daylight saving time."""
    misfire: Annotated[Misfire, v.choice(*get_args(Misfire))] = "once"
    """Ticks missed while no node was up: "skip", "once" (one run for all of them) or "all" (at most 100). A
    tick that is at most 5 s old when a node comes up is not missed: it runs in any case, with "once" in
    place of those that were."""
    overlap: Annotated[Overlap, v.choice(*get_args(Overlap))] = "allow"
    """A tick while the previous run is still going: "allow" runs both, "skip" drops the tick, "queue" runs it
    afterwards."""

    @property
    def recurs(self) -> bool:
        return self.cooler is not None or bool(self.cron)


class NamedSchedule(ScheduleConfig, frozen=True):
    """One `[schedules.NAME]`, or a schedule that was set at run time: it has `cron` or `cooler`.

    `own`: the short form, `cron` or `cooler` in the table of the handler or workflow that it is named after.
    """

    name: str = ""
    own: bool = False
    handler: Annotated[str, texts.unreserved_name_or_empty] = ""
    """Handler of the jobs that it creates. Either this or `workflow`."""
    workflow: Annotated[str, texts.name_or_empty] = ""
    """Workflow of the requests that it creates."""
    vars: Annotated[dict[str, Any], v.json_table] = {}
    """Arguments of each job: { region = "eu" }."""
    params: Annotated[dict[str, Any], v.json_table] = {}
    """Params of each request."""
    jitter: Annotated[float, v.duration_between(0, DAY_S)] = 0.0
    """Each tick of a cron starts up to this much later; its delay is random, but the same on every node. 0:
    no delay."""
    priority: Annotated[int, v.integer(-(2**31), 2**31 - 1)] = 0
    """Priority of each job; smaller runs first."""
    group: Annotated[str, texts.name_or_empty] = ""
    """Group of each job. "": none."""
    enabled: Annotated[bool, v.boolean] = True
    """false: it starts nothing; ticks missed meanwhile are not made up for."""

    @property
    def target(self) -> str:
        """The handler or the workflow."""
        return self.handler or self.workflow
