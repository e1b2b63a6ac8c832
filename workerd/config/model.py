"""The configuration as frozen values: every key declared once, with its type, range, default and meaning.

Here are the whole and its sections; tables with names of their own are in `*_config.py` beside this.
Durations are seconds (float), sizes are bytes (int). A duration of None stands for "": never, or forever.
The checker, the `@handler` decorator, `etc/workerd.toml` and the reference page are derived from here.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_type_hints

from workerd.config import address_validators as addresses
from workerd.config import text_validators as texts
from workerd.config import validators as v
from workerd.config.config_value import DAY_S, GIB, KIB, MIB, ConfigValue, keys_of
from workerd.config.handler_config import CommandConfig, HandlerConfig, Policy, PoolConfig
from workerd.config.limit_config import LimitConfig
from workerd.config.otel_config import OtelConfig
from workerd.config.schedule_config import NamedSchedule, ScheduleConfig
from workerd.config.webhook_config import WebhookConfig
from workerd.config.workflow_config import WorkflowConfig, WorkflowTable

Level = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["auto", "text", "json"]


class NodeConfig(ConfigValue, frozen=True):
    """This daemon's identity and folders."""

    name: Annotated[str, texts.name_or_empty] = ""
    """Name of this node in rows, `workerd nodes` and logs; "" is the host name. A second live node with the
    same name is refused."""
    runtime_dir: Annotated[Path, texts.path] = Path("/run/workerd")
    """Folder for sockets and the pid file; its owner may talk to the roles. May be emptied by a reboot. Where
    /run/workerd cannot be made: $XDG_RUNTIME_DIR/workerd, else `run` below state_dir."""
    state_dir: Annotated[Path, texts.path] = Path("/var/lib/workerd")
    """Folder for the spool, the embedded store and the lock. Must survive a reboot: outcomes that were
    spooled while the store was unavailable would be lost, and their jobs run again."""
    generation: Annotated[int, v.integer(1, 999)] = 1
    """Number of this daemon among those that replace each other on one host without interrupting a job; set
    by the unit `workerd@N.service`. Above 1 the daemon is called NAME·N, and has its own folders below
    these."""


class LogConfig(ConfigValue, frozen=True):
    """What the daemon logs, and how."""

    level: Annotated[Level, v.choice(*get_args(Level))] = "info"
    """Lowest level that is logged."""
    format: Annotated[LogFormat, v.choice(*get_args(LogFormat))] = "auto"
    """"text" for people, "json" for machines (one object per line), "auto": text on a terminal, else JSON."""
    labels: Annotated[dict[str, str], v.labels] = {}
    """Added to every log line and metric, such as { env = "prod", region = "eu" }. Names must be valid
    Prometheus labels, and none that workerd uses itself, such as event, level, process, handler or pool."""


class SupervisorConfig(ConfigValue, frozen=True):
    """How the supervisor watches its processes."""

    watchdog: Annotated[float, v.duration_between(0.1, 3600)] = 10.0
    """A role or pool without progress for this long is killed and restarted. A shorter time finds a hung
    process sooner, and may kill one that a busy host merely slowed down."""


class StoreConfig(ConfigValue, frozen=True):
    """Where jobs are stored."""

    url: Annotated[str, addresses.store_url] = "sqlite:////var/lib/workerd/workerd.db"
    """"sqlite:////absolute/path" (embedded, this host only) or "mysql://user@host:3306/database" (MySQL 8.0+,
    MariaDB 10.6+). A store that fails over: "mysql://user@db1:3306,db2:3306/database"; the first host that
    can be written is used. Query parameters: unix_socket (with one host), ssl (off, preferred, required),
    ssl_ca, ssl_cert, ssl_key, ssl_verify."""
    password_file: Annotated[str, texts.credential_or_empty] = ""
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
    """How long an outcome waits at most for others to share its transaction; 0 writes each immediately."""
    spool: Annotated[int, v.size_between(MIB, zero=True)] = 1 << 30
    """Maximum size of the spool, which keeps outcomes on disk while the store is unavailable. When it is
    full, pools take no more jobs; nothing is dropped. 0: no spool, pools stop immediately."""
    max_payload: Annotated[int, v.size_between(KIB, GIB)] = 4 << 20
    """Maximum payload of a job; a larger one ends the job as a failure. Never more than half of the server's
    max_allowed_packet."""


class GatewayConfig(ConfigValue, frozen=True):
    """The HTTP interface."""

    listen: Annotated[str, addresses.listen] = "127.0.0.1:8020"
    """Address of the HTTP API, metrics and dashboard: "host:port", "unix:/run/workerd/gateway.sock", or ""
    for off. Anything but loopback and Unix sockets needs a token_file, and TLS in front of it. A Unix socket
    is open to the daemon's user and group (0660): add the proxy's user to the group."""
    token_file: Annotated[str, texts.credential_or_empty] = ""
    """File of bearer tokens, one per line as NAME ROLE TOKEN, with the role producer, viewer or operator; a
    token alone is an operator's. "": no token needed; anyone who reaches the address may do everything."""
    allowed_hosts: Annotated[tuple[str, ...], v.list_of(addresses.host_pattern, "host names")] = ()
    """Host headers served besides the listen address and literal IP addresses, such as the name a proxy
    passes on; "*.example.org" serves all names below example.org; with a port under that port alone. Others
    are refused, which keeps web pages from reaching the API through a visitor's browser; /heartbeat and
    /ready are served under any."""
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
    """How long running jobs of a pool changed by a reload may continue beside its new processes, which take
    all new jobs immediately. Meanwhile both need memory. 0: the old processes drain first, for at most
    `shutdown.drain`, and new jobs of the pool wait for that."""


class RetentionConfig(ConfigValue, frozen=True):
    """When ended jobs are deleted, with all their attempts, counted from their end; and the audit."""

    completed: Annotated[float | None, v.duration_or_none] = 7 * DAY_S
    """Completed and cancelled jobs. "": kept forever, and the table grows."""
    failure: Annotated[float | None, v.duration_or_none] = 30 * DAY_S
    """Failed jobs. "": kept forever."""
    audit: Annotated[float | None, v.duration_or_none] = 365 * DAY_S
    """Entries of the audit, counted from the action. "": kept forever."""


class PickupConfig(ConfigValue, frozen=True):
    """Picking up work at set times only."""

    enabled: Annotated[bool, v.boolean] = True
    """false: this node runs no jobs; its API, clients and other nodes keep working."""
    requests_new: Annotated[str, texts.cron] = ""
    """Cron expression for picking up new requests. "": immediately, which is what almost everyone wants."""
    requests_inprogress: Annotated[str, texts.cron] = ""
    """The same for the next steps of requests in progress."""
    jobs: Annotated[str, texts.cron] = ""
    """The same for jobs."""


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
    otel: OtelConfig = OtelConfig()
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
