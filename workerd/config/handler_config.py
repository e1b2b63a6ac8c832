"""`[handlers.NAME]` and `[pools.NAME]`: what runs, how it is bounded and repeated, and in which processes."""

from __future__ import annotations

import shlex
from typing import Annotated, Any, Literal, get_args

from workerd.config import text_validators as texts
from workerd.config import validators as v
from workerd.config.config_value import DAY_S, KIB, MIB, ConfigValue, NestedTable
from workerd.config.otel_config import OtelConfig
from workerd.config.schedule_config import ScheduleConfig
from workerd.config.webhook_config import WebhookConfig

OnConflict = Literal["keep", "replace", "debounce", "follow"]
KeepLog = Literal["failures", "all", "none"]
Stdin = Literal["json", "none"]
Stdout = Literal["bytes", "json", "none"]


class Backoff(NestedTable, frozen=True):
    """The pause before the next attempt."""

    first: Annotated[float, v.duration_between(0, 365 * DAY_S)] = 1.0
    """The first pause."""
    factor: Annotated[float, v.number(1, 1000)] = 2.0
    """Each pause is this many times the one before."""
    max: Annotated[float, v.duration_between(0, 365 * DAY_S)] = 600.0
    """The longest pause."""
    jitter: Annotated[float, v.number(0, 1)] = 0.1
    """Each pause is shortened by up to this share, at random."""


class RestartConfig(NestedTable, frozen=True):
    """How many deaths a pool survives before it is quarantined."""

    intensity: Annotated[int, v.integer(1, 1000000)] = 5
    """Deaths allowed within `period`."""
    period: Annotated[float, v.duration_between(1, DAY_S)] = 60.0
    """The time over which deaths count."""


class Policy(ConfigValue, frozen=True):
    """How the attempts of a handler are bounded and repeated; the decorator takes the same keys."""

    deadline: Annotated[float, v.duration_between(0, 365 * DAY_S)] = 0.0
    """Soft deadline of an attempt: DeadlineExceeded is raised in it. 0: none, a hanging job keeps its worker.
    """
    grace: Annotated[float, v.duration_between(0, 3600)] = 2.0
    """Time after the deadline until the worker and everything it started are killed."""
    max_attempts: Annotated[int, v.integer(1, 1000000)] = 5
    """Attempts that may fail before the job fails; 1: no retry."""
    max_crashes: Annotated[int, v.integer(1, 1000000)] = 3
    """Crashes of the worker under one job (signal, exit, out of memory) before the job fails."""
    backoff: Backoff = Backoff()
    """Pause before the next attempt: `first`, then `factor` times the previous one, at most `max`
    (durations). Each is shortened at random by up to `jitter` of itself, so that jobs that failed together
    are not retried together. Keys left out have the values shown here."""
    retry_on: Annotated[tuple[str, ...], v.list_of(texts.class_name, "classes")] = ("Exception",)
    """Exception classes, by builtin name or dotted path, that are retried; subclasses count. Checked after
    `ignore` and `fail_on`; any other exception fails the job."""
    fail_on: Annotated[tuple[str, ...], v.list_of(texts.class_name, "classes")] = ()
    """Exception classes that fail the job immediately."""
    ignore: Annotated[tuple[str, ...], v.list_of(texts.class_name, "classes")] = ()
    """Exception classes that count as success; checked first."""
    resumable: Annotated[bool, v.boolean] = False
    """When its pool stops or is reloaded, workerd.Interrupted is raised in the run immediately; its next
    attempt, which is not counted, continues from what it has saved. false: it may run until the end of
    `shutdown.drain`."""
    keep_log: Annotated[KeepLog, v.choice(*get_args(KeepLog))] = "failures"
    """Attempts whose printed and logged output is kept: "failures", "all" or "none". It is deleted with the
    job."""
    log_limit: Annotated[int, v.size_between(KIB, MIB)] = 64 << 10
    """How much of that output is kept: the first sixteenth of the limit, and the newest of the rest."""


class CommandConfig(ConfigValue, frozen=True):
    """A program as a handler: a process for each run, without a shell."""

    command: Annotated[tuple[str, ...], texts.command] = ()
    """In place of `call`: a program (an absolute path, or a name on PATH) and its arguments. `{name}` is one
    value of vars inside one argument, `{{` and `}}` are braces. []: none."""
    cwd: Annotated[str, texts.path_or_empty] = ""
    """The program's working directory. "": that of the pool."""
    stdin: Annotated[Stdin, v.choice(*get_args(Stdin))] = "json"
    """What the program reads from standard input: "json", the job with its vars as one JSON object, or
    "none"."""
    payload: Annotated[Stdout, v.choice(*get_args(Stdout))] = "bytes"
    """What the program's standard output is: "bytes" or "json", the payload, or "none": part of the log, like
    its standard error."""
    retry_codes: Annotated[tuple[int, ...], v.list_of(v.integer(1, 255), "exit statuses")] = (75,)
    """Exit statuses that mean "try again", as raising Retry does. Any other but 0 counts as the exception
    class "Exit:N" in retry_on, fail_on and ignore."""
    fail_codes: Annotated[tuple[int, ...], v.list_of(v.integer(1, 255), "exit statuses")] = ()
    """Exit statuses that fail the job immediately."""
    signature: Annotated[dict[str, str], texts.signature] = {}
    """Types of the vars, checked at enqueue: { month = "str", copies = "int?" }; one with "?" may be left
    out. Vars that it does not name are refused. {}: anything."""


class HandlerConfig(ConfigValue, frozen=True):
    """One `[handlers.NAME]`.

    The policy comes in layers because the decorator's lies between them: built-in < `[defaults]` <
    decorator < the handler's own table. `policy_defaults` and `policy_own` hold only the keys that were
    given, already converted; `workerd.policy.effective(handler, decorator_options)` merges them.
    """

    name: str
    call: Annotated[str, texts.reference]
    """"module:attribute", imported by the handler's pool. The only key without a default; a program takes
    `command` in its place."""
    pool: Annotated[str, texts.name_or_empty]
    """Handlers that name the same pool share its workers and its failures. "": a pool of its own, named after
    the handler."""
    around: Annotated[tuple[str, ...], v.list_of(texts.reference, "references")] = ()
    """Functions around each run, "module:attribute", entered in order: generator functions of (ctx) that
    yield once, or functions of (ctx, call_next). Those of the pool are entered before the handler's own;
    `[defaults]` applies where neither has any."""
    group: Annotated[str, texts.group_template] = ""
    """The group of a job that is enqueued without one, filled from its vars: "{tenant}". Limits, `fair` and
    search use it. A job whose vars do not provide it is refused, or fails. "": no group."""
    limit: Annotated[str, texts.name_or_empty] = ""
    """The `[limits.NAME]` that applies to its jobs; handlers may share one. "": none."""
    on_conflict: Annotated[OnConflict, v.choice(*get_args(OnConflict))] = "keep"
    """What an enqueue with the `unique_key` of a live job does, unless it gives its own: "keep" (nothing),
    "replace" (a waiting job gets the new data), "debounce" (and again waits `delay`) or "follow". While a job
    runs, the newest data waits behind it, except with "keep". A plain INSERT is always rejected by the store.
    """
    max_delay: Annotated[float | None, v.duration_or_none] = None
    """Longest time from its first enqueue that "debounce" delays a job, unless the enqueue gives its own. "":
    no bound."""
    unique_for: Annotated[float | None, v.window_or_none] = None
    """At most one job of each `unique_key`, live or ended, in every window of this length, counted from 1970.
    "": no such bound."""
    fair: Annotated[bool, v.boolean] = False
    """true: within a priority the groups take turns, weighted by `[groups]`; a group alone gets all workers.
    """
    expires: Annotated[float | None, v.duration_or_none] = None
    """A job that has not started this long after it was due ends as `cancelled`, reason `expired`; an
    `expires` given at enqueue overrides this. Retries and runs of a `cooler` do not expire. "": never."""
    max_waiting: Annotated[int, v.integer(0, 1000000000)] = 0
    """Waiting jobs above which enqueueing by HTTP, client and command line is refused (429), unless it adds
    no job. 0: no limit."""
    command: CommandConfig | None = None  # of a handler without `call`
    redact: Annotated[tuple[str, ...], v.list_of(texts.redact_path, "paths")] = ()
    """Values that are not shown, in addition to those of [defaults]: paths of vars, params, extras, meta and
    JSON payloads, such as ["password", "card.*", "*.token"], where * is one whole name. Where such a value of
    6 letters or more occurs in an error, a stack, a note or the log, it is replaced before it is stored."""
    rated: bool = False  # its limit has a rate: a pool claims only what it starts at once
    webhooks: dict[str, WebhookConfig] = {}  # of WEBHOOK_HANDLER
    schedule: ScheduleConfig = ScheduleConfig()
    policy_defaults: dict[str, Any] = {}
    policy_own: dict[str, Any] = {}

    @property
    def target(self) -> str:
        """What it runs, for people: "module:attribute" or the command."""
        if self.webhooks:
            return f"webhooks {', '.join(self.webhooks)}"
        return self.call if self.command is None else shlex.join(self.command.command)


class PoolConfig(ConfigValue, frozen=True):
    """One pool: `[pools.NAME]`, or the pool keys of a handler's own table; with its handlers."""

    name: str
    handlers: tuple[HandlerConfig, ...] = ()
    workers: Annotated[int, v.workers] = 1
    """Worker processes: this many jobs of the pool run at the same time. "auto": one for each processor that
    the daemon may use, by its affinity and the cpu.max of its control group."""
    path: Annotated[tuple[str, ...], v.list_of(texts.path_text, "paths")] = ()
    """Folders put in front of sys.path. The working directory is never on it."""
    env: Annotated[dict[str, str], v.texts_by_name] = {}
    """Environment variables of the pool and its workers, such as { TMPDIR = "/scratch" }. WORKERD_* is never
    passed on."""
    init: Annotated[str, texts.reference_or_empty] = ""
    """"module:function" called in each worker before its first job, to connect or warm up. "": none."""
    setup: Annotated[str, texts.reference_or_empty] = ""
    """"module:function" called before the handlers are imported, by the process that imports them, such as
    "django:setup". "": none."""
    around: Annotated[tuple[str, ...], v.list_of(texts.reference, "references")] = ()
    """Functions around each run of every handler of the pool, as in [handlers.NAME]."""
    preload: Annotated[bool, v.boolean] = True
    """true: the pool imports the handlers once and its workers share that memory. false: each worker imports
    them itself, for libraries that do not survive a fork."""
    load_timeout: Annotated[float, v.duration_between(0.1, DAY_S)] = 60.0
    """How long importing and `init` may take."""
    max_jobs: Annotated[int, v.integer(0, 1000000000)] = 0
    """A worker is replaced after this many jobs. 0: never."""
    max_age: Annotated[float, v.duration_between(0, 365 * DAY_S)] = 0.0
    """A worker is replaced, between two jobs, after this long. 0: never."""
    max_rss: Annotated[int, v.size_between(MIB, zero=True)] = 0
    """A worker is replaced, between two jobs, when it has grown by more than this since its fork. 0: never.
    """
    memory_max: Annotated[int, v.size_between(MIB, zero=True)] = 0
    """Hard memory limit of each worker; one that exceeds it is killed and its job ends as `oom`. Needs a
    delegated cgroup, else the address space is limited. 0: none."""
    cpu_weight: Annotated[int, v.integer(0, 10000)] = 0
    """Share of CPU time against other pools on a busy host, 1 to 10000; needs a delegated cgroup. 0: the
    usual 100."""
    pids_max: Annotated[int, v.integer(0, 4194304)] = 0
    """Maximum processes and threads of the pool and everything its jobs start. 0: no limit."""
    otel: OtelConfig | None = None  # where runs are traced
    restart: RestartConfig = RestartConfig()
    """After more than `intensity` deaths of the pool, or of workers without a job, within `period`
    (duration), the pool is quarantined and retried later; all other pools keep running."""
