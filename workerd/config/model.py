"""The configuration as frozen values: every key declared once, with its type, range, default and meaning.

Durations are seconds (float), sizes are bytes (int). A duration of None stands for "": never, or for ever.
The checker, the `@handler` decorator, `etc/workerd.toml` and the reference page are derived from here.
"""

from __future__ import annotations

import shlex
from functools import cache, cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, cast, get_args, get_type_hints

import msgspec

from workerd.config import validators as v
from workerd.rate_limit import Rate

Level = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["auto", "text", "json"]
Overlap = Literal["allow", "skip", "queue"]
Misfire = Literal["skip", "once", "all"]
OnConflict = Literal["keep", "replace", "debounce", "follow"]
KeepLog = Literal["failures", "all", "none"]
OnError = Literal["fail", "continue"]
WebhookEvent = Literal["failure", "request_failed", "new_error", "quarantine"]
Stdin = Literal["json", "none"]
Stdout = Literal["bytes", "json", "none"]

DAY_S = 86400.0
WAIT_HANDLER = "~wait"
"""The reserved handler of the rows that wait for a time or a signal: no pool claims them."""
KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30

NestedKeys = dict[str, v.Validator]
Keys = dict[str, v.Validator | NestedKeys]
"""Key -> its validator, or the keys of a table inside the table."""


class ConfigValue(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A frozen, comparable part of the configuration."""


@cache
def keys_of(table: type[ConfigValue]) -> Keys:
    """The keys that may be written in this table, in order; other fields are derived."""
    keys: Keys = {}
    for field, hint in get_type_hints(table, include_extras=True).items():
        name = field.rstrip("_")  # `finally` cannot be a field's name
        if hint in (Backoff, RestartConfig):
            keys[name] = cast(NestedKeys, keys_of(hint))
        keys.update(
            (name, extra) for extra in getattr(hint, "__metadata__", ()) if isinstance(extra, v.Validator)
        )
    return keys


class NodeConfig(ConfigValue, frozen=True):
    """This daemon's identity and folders."""

    name: Annotated[str, v.name_or_empty] = ""
    """Name of this node in rows, `workerd nodes` and logs; "" is the host name. A second live node with the
    same name is refused."""
    runtime_dir: Annotated[Path, v.path] = Path("/run/workerd")
    """Folder for sockets and the pid file; its owner may talk to the roles. May be emptied by a reboot. Where
    /run/workerd cannot be made: $XDG_RUNTIME_DIR/workerd, else `run` below state_dir."""
    state_dir: Annotated[Path, v.path] = Path("/var/lib/workerd")
    """Folder for the spool, the embedded store and the lock. Must survive a reboot: outcomes that were
    spooled while the store was unavailable would be lost, and their jobs run again."""


class LogConfig(ConfigValue, frozen=True):
    """What the daemon logs, and how."""

    level: Annotated[Level, v.choice(*get_args(Level))] = "info"
    """Lowest level that is logged."""
    format: Annotated[LogFormat, v.choice(*get_args(LogFormat))] = "auto"
    """"text" for people, "json" for machines (one object per line), "auto": text on a terminal, else JSON."""
    labels: Annotated[dict[str, str], v.labels] = {}
    """Added to every log line and metric, such as { env = "prod", region = "eu" }. Names must be valid
    Prometheus labels."""


class SupervisorConfig(ConfigValue, frozen=True):
    """How the supervisor watches its processes."""

    watchdog: Annotated[float, v.duration_between(0.1, 3600)] = 10.0
    """A role or pool without progress for this long is killed and restarted. A shorter time finds a hung
    process sooner, and may kill one that a busy host merely slowed down."""


class StoreConfig(ConfigValue, frozen=True):
    """Where jobs are stored."""

    url: Annotated[str, v.store_url] = "sqlite:////var/lib/workerd/workerd.db"
    """"sqlite:////absolute/path" (embedded, this host only) or "mysql://user@host:3306/database" (MySQL 8.0+,
    MariaDB 10.6+). A store that fails over: "mysql://user@db1:3306,db2:3306/database"; the first host that
    can be written is used. Query parameters: unix_socket (with one host), ssl (off, preferred, required),
    ssl_ca, ssl_cert, ssl_key, ssl_verify."""
    password_file: Annotated[str, v.path_or_empty] = ""
    """File whose first line is the password. Safer than a password in the URL, which ends up in backups of
    this file; works with systemd's LoadCredential=. "": none."""

    def __repr__(self) -> str:
        # The URL may hold a password, and tracebacks and logs show values by their repr.
        return "StoreConfig(…)"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return [("password_file", self.password_file)]


class DispatcherConfig(ConfigValue, frozen=True):
    """How jobs are claimed."""

    batch: Annotated[int, v.integer(1, 10000)] = 500
    """Maximum rows per claim. More uses memory and makes the rescue of a dead node's jobs slower; fewer costs
    throughput."""
    poll: Annotated[float, v.duration_between(0.001, 3600)] = 0.5
    """Longest wait for work that was not announced, and for a cancel to be noticed. Shorter finds rows of
    plain INSERTs sooner and queries an idle store more often."""
    lease: Annotated[float, v.duration_between(0.5, 3600)] = 30.0
    """A node that has not renewed its lease for this long counts as dead, and its jobs run elsewhere. Choose
    it longer than the store's longest hiccup: a node without a lease starts nothing new."""


class IngesterConfig(ConfigValue, frozen=True):
    """How outcomes are written."""

    batch: Annotated[int, v.integer(1, 10000)] = 500
    """Maximum outcomes per transaction."""
    linger: Annotated[float, v.duration_between(0, 10)] = 0.005
    """How long an outcome waits at most for others to share its transaction; 0 writes each at once."""
    spool: Annotated[int, v.size_between(MIB, zero=True)] = 1 << 30
    """Maximum size of the spool, which keeps outcomes on disk while the store is unavailable. When it is
    full, pools take no more jobs; nothing is dropped. 0: no spool, pools stop at once."""
    max_payload: Annotated[int, v.size_between(KIB, GIB)] = 4 << 20
    """Maximum payload of a job; a larger one ends the job as a failure. Never more than half of the server's
    max_allowed_packet."""


class GatewayConfig(ConfigValue, frozen=True):
    """The HTTP interface."""

    listen: Annotated[str, v.listen] = "127.0.0.1:8020"
    """Address of the HTTP API, metrics and dashboard: "host:port", "unix:/run/workerd/gateway.sock", or ""
    for off. Anything but loopback and Unix sockets needs a token_file, and TLS in front of it. A Unix socket
    is open to the daemon's user and group (0660): add the proxy's user to the group."""
    token_file: Annotated[str, v.path_or_empty] = ""
    """File of bearer tokens, one per line as NAME ROLE TOKEN, with the role producer, viewer or operator; a
    token alone is an operator's. "": no token needed, whoever reaches the address may do everything."""
    allowed_hosts: Annotated[tuple[str, ...], v.list_of(v.host_pattern, "host names")] = ()
    """Host headers served besides the listen address and literal IP addresses, such as the name a proxy
    passes on; "*.example.org" serves all names below example.org. Others are refused, which keeps web pages
    from reaching the API through a visitor's browser; /heartbeat and /ready are served under any."""
    max_body: Annotated[int, v.size_between(KIB, GIB)] = 1 << 20
    """Maximum size of a request body, and of a job's vars."""
    open_metrics: Annotated[bool, v.boolean] = False
    """true: /metrics needs no token."""


class ShutdownConfig(ConfigValue, frozen=True):
    """How the daemon stops."""

    drain: Annotated[float, v.duration_between(0, 7 * DAY_S)] = 30.0
    """How long running jobs may take to finish when the daemon stops; after that they are interrupted and run
    again later, without using an attempt. systemd's TimeoutStopSec= must be longer."""


class ReloadConfig(ConfigValue, frozen=True):
    """How pools are replaced while the daemon runs."""

    overlap: Annotated[float, v.duration_between(0, 7 * DAY_S)] = 0.0
    """How long the runs of a pool that a reload changes may go on beside its new processes, which take all
    new jobs at once. It needs the memory of both meanwhile. 0: the old processes drain first, for at most
    `shutdown.drain`, and new jobs of the pool wait for that."""


class RetentionConfig(ConfigValue, frozen=True):
    """When ended jobs are deleted, with all their attempts, counted from their end; and the audit."""

    completed: Annotated[float | None, v.duration_or_none] = 7 * DAY_S
    """Completed and cancelled jobs. "": kept for ever, and the table grows."""
    failure: Annotated[float | None, v.duration_or_none] = 30 * DAY_S
    """Failed jobs. "": kept for ever."""
    audit: Annotated[float | None, v.duration_or_none] = 365 * DAY_S
    """What the audit says of people and programs, counted from the act. "": kept for ever."""


class PickupConfig(ConfigValue, frozen=True):
    """Picking up work at set times only."""

    enabled: Annotated[bool, v.boolean] = True
    """false: this node runs no jobs; its API, clients and other nodes go on."""
    requests_new: Annotated[str, v.cron] = ""
    """Cron expression for picking up new requests. "": at once, which is what almost everyone wants."""
    requests_inprogress: Annotated[str, v.cron] = ""
    """The same for the next steps of requests in progress."""
    jobs: Annotated[str, v.cron] = ""
    """The same for jobs."""


class Backoff(ConfigValue, frozen=True):
    """The pause before the next attempt."""

    first: Annotated[float, v.duration_between(0, 365 * DAY_S)] = 1.0
    """The first pause."""
    factor: Annotated[float, v.number(1, 1000)] = 2.0
    """Each pause is this many times the one before."""
    max: Annotated[float, v.duration_between(0, 365 * DAY_S)] = 600.0
    """The longest pause."""
    jitter: Annotated[float, v.number(0, 1)] = 0.1
    """Each pause is shortened by up to this share, at random."""


class RestartConfig(ConfigValue, frozen=True):
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
    (durations). Each is shortened at random by up to `jitter` of itself, so that what failed together does
    not come back together. Keys left out have the values shown here."""
    retry_on: Annotated[tuple[str, ...], v.list_of(v.class_name, "classes")] = ("Exception",)
    """Exception classes, by builtin name or dotted path, that are retried; subclasses count. Checked after
    `ignore` and `fail_on`; any other exception fails the job."""
    fail_on: Annotated[tuple[str, ...], v.list_of(v.class_name, "classes")] = ()
    """Exception classes that fail the job at once."""
    ignore: Annotated[tuple[str, ...], v.list_of(v.class_name, "classes")] = ()
    """Exception classes that count as success; checked first."""
    resumable: Annotated[bool, v.boolean] = False
    """When its pool stops or is reloaded, workerd.Interrupted is raised in the run at once, and the job goes
    on in its next attempt from what it has saved, without using an attempt. false: it may run until the end
    of `shutdown.drain`."""
    keep_log: Annotated[KeepLog, v.choice(*get_args(KeepLog))] = "failures"
    """Attempts with which is kept what they printed and logged: "failures", "all" or "none". It is deleted
    with the job."""
    log_limit: Annotated[int, v.size_between(KIB, MIB)] = 64 << 10
    """How much of it: the first sixteenth, and the newest of the rest."""


class ScheduleConfig(ConfigValue, frozen=True):
    """When a handler or a workflow recurs; without `cooler` and `cron` it does not."""

    cooler: Annotated[float | None, v.duration_or_none] = None
    """Recurring: pause from the end of each run to the start of the next, one at a time in the whole cluster.
    "": not recurring."""
    cron: Annotated[str, v.cron] = ""
    """Recurring at set times: "*/5 * * * *"; with six fields the first is seconds. Not together with
    `cooler`. "": not recurring."""
    timezone: Annotated[str, v.timezone] = "UTC"
    """Time zone of `cron`, with its daylight saving time."""
    misfire: Annotated[Misfire, v.choice(*get_args(Misfire))] = "once"
    """Ticks missed while no node was up: "skip", "once" (one run for all of them) or "all" (at most 100). A
    tick that is at most 5 s old when a node comes up is not missed: it runs in any case."""
    overlap: Annotated[Overlap, v.choice(*get_args(Overlap))] = "allow"
    """A tick while the previous run is still going: "allow" runs both, "skip" drops the tick, "queue" runs it
    afterwards."""

    @property
    def recurs(self) -> bool:
        return self.cooler is not None or bool(self.cron)


class CommandConfig(ConfigValue, frozen=True):
    """A program as a handler: a process for each run, without a shell."""

    command: Annotated[tuple[str, ...], v.command] = ()
    """In place of `call`: a program (an absolute path, or a name on PATH) and its arguments. `{name}` is one
    value of vars inside one argument, `{{` and `}}` are braces. []: none."""
    cwd: Annotated[str, v.path_or_empty] = ""
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
    """Exit statuses that fail the job at once."""
    signature: Annotated[dict[str, str], v.signature] = {}
    """What vars must be, checked at enqueue: { month = "str", copies = "int?" }; with "?" it may be left out.
    Vars that it does not name are refused. {}: anything."""


class NamedSchedule(ScheduleConfig, frozen=True):
    """One `[schedules.NAME]`, or a schedule that was set at run time: it has `cron` or `cooler`.

    `own`: the short form, `cron` or `cooler` in the table of the handler or workflow that it is named after.
    """

    name: str = ""
    own: bool = False
    handler: Annotated[str, v.name_or_empty] = ""
    """Handler of the jobs that it makes. Either this or `workflow`."""
    workflow: Annotated[str, v.name_or_empty] = ""
    """Workflow of the requests that it makes."""
    vars: Annotated[dict[str, Any], v.json_table] = {}
    """Arguments of each job: { region = "eu" }."""
    params: Annotated[dict[str, Any], v.json_table_of("params")] = {}
    """Params of each request."""
    jitter: Annotated[float, v.duration_between(0, DAY_S)] = 0.0
    """Each tick of a cron starts up to this much later, a time of its own that is the same on every node.
    0: at once."""
    priority: Annotated[int, v.integer(-(2**31), 2**31 - 1)] = 0
    """Priority of each job; smaller runs first."""
    group: Annotated[str, v.name_or_empty] = ""
    """Group of each job. "": none."""
    enabled: Annotated[bool, v.boolean] = True
    """false: it starts nothing; what it missed meanwhile is not made up for."""

    @property
    def target(self) -> str:
        """The handler or the workflow."""
        return self.handler or self.workflow


WEBHOOK_HANDLER = "~webhook"
"""The reserved handler, and its pool, that delivers webhooks; names with ~ are no user's."""


class WebhookConfig(ConfigValue, frozen=True):
    """`[webhooks.NAME]`: an address that is told what happens, by jobs of the reserved handler `~webhook`."""

    url: Annotated[str, v.http_url] = ""
    """Where events are posted as JSON. Required. Redirects are not followed."""
    secret_file: Annotated[str, v.file_path] = ""
    """File with the secret that signs each delivery, in the header Workerd-Signature. Required; a newline at
    its end does not count."""
    on: Annotated[tuple[WebhookEvent, ...], v.list_of(v.choice(*get_args(WebhookEvent)), "events")] = (
        "failure",
        "request_failed",
        "new_error",
        "quarantine",
    )
    """Events: a job that has failed for good, a request that has failed, a group of failures that is new or
    came back, a pool that is quarantined."""
    handlers: Annotated[tuple[str, ...], v.list_of(v.name, "names of handlers")] = ("*",)
    """Whose failures, new errors and quarantines are told; "*" stands for any text. Requests always are."""
    allow_private: Annotated[bool, v.boolean] = False
    """true: the address may be private, loopback or link-local. Looked at after resolution, at delivery."""


class HandlerConfig(ConfigValue, frozen=True):
    """One `[handlers.NAME]`.

    The policy comes in layers because the decorator's lies between them: built-in < `[defaults]` <
    decorator < the handler's own table. `policy_defaults` and `policy_own` hold only the keys that were
    given, already converted; `workerd.policy.effective(handler, decorator_options)` merges them.
    """

    name: str
    call: Annotated[str, v.reference]
    """"module:attribute", imported by the handler's pool. The only key without a default; a program takes
    `command` in its place."""
    pool: Annotated[str, v.name_or_empty]
    """Handlers that name the same pool share its workers and its failures. "": a pool of its own, named after
    the handler."""
    around: Annotated[tuple[str, ...], v.list_of(v.reference, "references")] = ()
    """Functions around each run, "module:attribute", entered in order: generator functions of (ctx) that
    yield once, or functions of (ctx, call_next). Those of the pool are outside of the handler's own;
    `[defaults]` applies where neither has any."""
    group: Annotated[str, v.group_template] = ""
    """The group of a job that is enqueued without one, filled from its vars: "{tenant}". Limits, `fair` and
    search go by groups. A job whose vars do not give one is refused, or fails. "": no group."""
    limit: Annotated[str, v.name_or_empty] = ""
    """The `[limits.NAME]` that holds for its jobs; handlers may share one. "": none."""
    on_conflict: Annotated[OnConflict, v.choice(*get_args(OnConflict))] = "keep"
    """What becomes of a job that is enqueued with the `unique_key` of a live one, where that says nothing
    itself: "keep" (nothing), "replace" (one that waits gets the new data), "debounce" (it also waits `delay`
    longer) or "follow". While one runs, the newest data waits behind it, but for "keep". A plain INSERT is
    refused by the store as ever."""
    max_delay: Annotated[float | None, v.duration_or_none] = None
    """Longest time from its first enqueue that "debounce" delays a job. "": no bound."""
    unique_for: Annotated[float | None, v.duration_or_none] = None
    """At most one job of each `unique_key` in every window of this length, counted from 1970, live or not.
    "": no such bound."""
    fair: Annotated[bool, v.boolean] = False
    """true: within a priority the groups take turns, weighted by `[groups]`; a group alone gets all workers.
    """
    expires: Annotated[float | None, v.duration_or_none] = None
    """A job that has not begun so long after it was due ends as `cancelled`, reason `expired`; one that was
    enqueued with its own `expires` has that. Retries and runs of a `cooler` do not expire. "": never."""
    max_waiting: Annotated[int, v.integer(0, 1000000000)] = 0
    """Waiting jobs above which enqueueing by HTTP, client and command line is refused (429). 0: no limit."""
    command: CommandConfig | None = None  # of a handler without `call`
    redact: Annotated[tuple[str, ...], v.list_of(v.redact_path, "paths")] = ()
    """Values that are not shown, beside those of [defaults]: paths of vars, params, extras, meta and JSON
    payloads, such as ["password", "card.*", "*.token"], where * is one whole name. Where such a value of 6
    letters or more occurs in an error, a stack, a note or the log, it is replaced before it is stored."""
    rated: bool = False  # its limit has a rate: a pool claims only what it can start at once
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
    path: Annotated[tuple[str, ...], v.list_of(v.path_text, "paths")] = ()
    """Folders put in front of sys.path. The working directory is never on it."""
    env: Annotated[dict[str, str], v.texts_by_name] = {}
    """Environment variables of the pool and its workers, such as { TMPDIR = "/scratch" }. WORKERD_* is never
    passed on."""
    init: Annotated[str, v.reference_or_empty] = ""
    """"module:function" called in each worker before its first job, to connect or warm up. "": none."""
    setup: Annotated[str, v.reference_or_empty] = ""
    """"module:function" called before the handlers are imported, by the process that imports them, such as
    "django:setup". "": none."""
    around: Annotated[tuple[str, ...], v.list_of(v.reference, "references")] = ()
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
    restart: RestartConfig = RestartConfig()
    """After more than `intensity` deaths of the pool, or of workers without a job, within `period`
    (duration), the pool is quarantined and retried later; all other pools go on."""


class LimitConfig(ConfigValue, frozen=True):
    """One `[limits.NAME]`: how many jobs of the handlers that name it run, and start, on all nodes together.

    Where live nodes have different ones, the lower of each value holds.
    """

    concurrency: Annotated[int | None, v.count_or_none(1, 10_000)] = None
    """Jobs that run at the same time, on all nodes together. "": any number."""
    group_concurrency: Annotated[int | None, v.count_or_none(1, 10_000)] = None
    """Of these, jobs of one group. Jobs without a group share one. "": any number."""
    rate: Annotated[Rate | None, v.rate_or_none] = None
    """Jobs that start, as a number per time: "100/1m". In no window of any length do more start than the rate
    allows in it, plus `burst`. "": any number."""
    burst: Annotated[int | None, v.count_or_none(1, 1_000_000)] = None
    """Jobs that may start at once after a pause. "": as many as the number of the rate."""
    group_rate: Annotated[Rate | None, v.rate_or_none] = None
    """As `rate`, for the jobs of each group; at once as many as its number, or `burst` if that is less."""

    @property
    def by_group(self) -> bool:
        """Whether it counts each group on its own."""
        return self.group_concurrency is not None or self.group_rate is not None

    @property
    def rated(self) -> bool:
        return self.rate is not None or self.group_rate is not None

    @property
    def starts(self) -> Rate | None:
        """The rate with its burst."""
        return self.rate if self.rate is None or self.burst is None else self.rate.with_burst(self.burst)

    @property
    def group_starts(self) -> Rate | None:
        """The rate of each group with its burst."""
        if self.group_rate is None or self.burst is None:
            return self.group_rate
        burst = self.burst if self.rate is None else min(self.burst, self.group_rate.burst)
        return self.group_rate.with_burst(burst)

    def lower(self, other: LimitConfig) -> LimitConfig:
        """The lower of each value."""
        given = [value for value in (self.burst, other.burst) if value is not None]
        return LimitConfig(
            concurrency=_lower(self.concurrency, other.concurrency),
            group_concurrency=_lower(self.group_concurrency, other.group_concurrency),
            rate=_slower(self.rate, other.rate),
            burst=min(given, default=None),
            group_rate=_slower(self.group_rate, other.group_rate),
        )


def _lower(one: int | None, other: int | None) -> int | None:
    return other if one is None else one if other is None else min(one, other)


def _slower(one: Rate | None, other: Rate | None) -> Rate | None:
    return other if one is None else one if other is None else one.lower(other)


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
    what needs it goes on without it."""
    then: Annotated[tuple[Any, ...], v.list_of(v.anything, "jobs")] = ()
    """Jobs of the same form that run when all others have succeeded."""
    finally_: Annotated[tuple[Any, ...], v.list_of(v.anything, "jobs")] = ()
    """Jobs of the same form that run after all others, once in every case, after a cancel too."""
    max_failures: Annotated[int | None, v.count_or_none(0, 2**31 - 1)] = None
    """More failed jobs fail the request, even those with on_error = "continue". "": any number."""


class WorkflowConfig(ConfigValue, frozen=True):
    """One workflow: its jobs in step order."""

    name: str
    jobs: tuple[WorkflowJob, ...]
    step_names: tuple[str, ...] = ()
    then: tuple[WorkflowJob, ...] = ()
    final: tuple[WorkflowJob, ...] = ()
    max_failures: int | None = None
    schedule: ScheduleConfig = ScheduleConfig()


class Config(ConfigValue, frozen=True, dict=True):
    """Everything, read at start and at reload, checked as a whole."""

    node: NodeConfig = NodeConfig()
    log: LogConfig = LogConfig()
    supervisor: SupervisorConfig = SupervisorConfig()
    store: StoreConfig = StoreConfig()
    dispatcher: DispatcherConfig = DispatcherConfig()
    ingester: IngesterConfig = IngesterConfig()
    gateway: GatewayConfig = GatewayConfig()
    shutdown: ShutdownConfig = ShutdownConfig()
    reload: ReloadConfig = ReloadConfig()
    retention: RetentionConfig = RetentionConfig()
    pickup: PickupConfig = PickupConfig()
    pools: dict[str, PoolConfig] = {}
    workflows: dict[str, WorkflowConfig] = {}
    schedules: dict[str, NamedSchedule] = {}
    redact: tuple[str, ...] = ()  # of [defaults]: for handlers that are not configured here, too
    limits: dict[str, LimitConfig] = {}
    groups: dict[str, int] = {}  # the weight of each, 1 where none is given
    webhooks: dict[str, WebhookConfig] = {}
    webhook_redactions: dict[str, tuple[str, ...]] = {}  # of handlers, if there are webhooks
    notes: tuple[str, ...] = ()  # warnings for `workerd check`: allowed, but hardly meant

    @cached_property
    def handlers(self) -> dict[str, HandlerConfig]:
        return {h.name: h for p in self.pools.values() for h in p.handlers}


HANDLER_KEYS = keys_of(HandlerConfig) | keys_of(CommandConfig) | keys_of(Policy) | keys_of(ScheduleConfig)
POOL_KEYS = keys_of(PoolConfig)
LIMIT_KEYS = keys_of(LimitConfig)
WORKFLOW_KEYS = keys_of(WorkflowTable) | keys_of(ScheduleConfig)
SCHEDULE_KEYS = keys_of(NamedSchedule)
SECTIONS: dict[str, type[ConfigValue]] = {
    name: hint
    for name, hint in get_type_hints(Config).items()
    if isinstance(hint, type) and issubclass(hint, ConfigValue)
}
WEBHOOK_KEYS = keys_of(WebhookConfig)
TABLES = (
    *SECTIONS, "defaults", "handlers", "pools", "webhooks", "workflows", "schedules", "limits", "groups",
)  # fmt: skip


def tables_with(key: str) -> list[str]:
    """The tables that know this key, as they are written."""
    found = [f"[{name}]" for name, section in SECTIONS.items() if key in keys_of(section)]
    if key in HANDLER_KEYS or key in POOL_KEYS:
        found += ["[defaults]", "[handlers.NAME]"]
    if key in POOL_KEYS:
        found.append("[pools.NAME]")
    if key in WORKFLOW_KEYS:
        found.append("[workflows.NAME]")
    if key in SCHEDULE_KEYS:
        found.append("[schedules.NAME]")
    if key in LIMIT_KEYS:
        found.append("[limits.NAME]")
    if key in WEBHOOK_KEYS:
        found.append("[webhooks.NAME]")
    return found
