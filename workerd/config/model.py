"""The configuration as frozen values; the defaults here are the only ones (`etc/workerd.toml` equals them).

Durations are seconds (float), sizes bytes (int). A duration of None stands for "" where that means never
or for ever.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import msgspec

Overlap = Literal["allow", "skip", "queue"]
Misfire = Literal["skip", "once", "all"]


class ConfigValue(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A frozen, comparable part of the configuration."""


class NodeConfig(ConfigValue, frozen=True):
    name: str = ""  # filled with the host's name
    runtime_dir: Path = Path("/run/workerd")
    state_dir: Path = Path("/var/lib/workerd")


class LogConfig(ConfigValue, frozen=True):
    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "text", "json"] = "auto"
    labels: dict[str, str] = {}


class SupervisorConfig(ConfigValue, frozen=True):
    watchdog: float = 10.0


class StoreConfig(ConfigValue, frozen=True):
    url: str = "sqlite:////var/lib/workerd/workerd.db"
    password_file: str = ""

    def __repr__(self) -> str:
        # The URL may hold a password, and tracebacks and logs show values by their repr.
        return "Store(…)"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return [("password_file", self.password_file)]


class DispatcherConfig(ConfigValue, frozen=True):
    batch: int = 500
    poll: float = 0.5
    lease: float = 30.0


class IngesterConfig(ConfigValue, frozen=True):
    batch: int = 500
    linger: float = 0.005
    spool: int = 1 << 30
    max_payload: int = 4 << 20


class GatewayConfig(ConfigValue, frozen=True):
    listen: str = "127.0.0.1:8020"
    token_file: str = ""
    allowed_hosts: tuple[str, ...] = ()
    max_body: int = 1 << 20
    open_metrics: bool = False


class ShutdownConfig(ConfigValue, frozen=True):
    drain: float = 30.0


class RetentionConfig(ConfigValue, frozen=True):
    completed: float | None = 7 * 86400.0
    failure: float | None = 30 * 86400.0


class PickupConfig(ConfigValue, frozen=True):
    enabled: bool = True
    requests_new: str = ""
    requests_inprogress: str = ""
    jobs: str = ""


class Backoff(ConfigValue, frozen=True):
    first: float = 1.0
    factor: float = 2.0
    max: float = 600.0
    jitter: float = 0.1


class RestartConfig(ConfigValue, frozen=True):
    intensity: int = 5
    period: float = 60.0


class Policy(ConfigValue, frozen=True):
    """How the attempts of a handler are bounded and repeated: everything a decorator may say too."""

    deadline: float = 0.0
    grace: float = 2.0
    max_attempts: int = 5
    max_crashes: int = 3
    backoff: Backoff = Backoff()
    retry_on: tuple[str, ...] = ("Exception",)
    fail_on: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()


class ScheduleConfig(ConfigValue, frozen=True):
    """When a handler or a workflow recurs; neither `cooler` nor `cron` means not at all."""

    cooler: float | None = None
    cron: str = ""
    timezone: str = "UTC"
    misfire: Misfire = "once"
    overlap: Overlap = "allow"

    @property
    def recurs(self) -> bool:
        return self.cooler is not None or bool(self.cron)


class HandlerConfig(ConfigValue, frozen=True):
    """One `[handlers.NAME]`.

    The policy comes in layers because the decorator's lies between them: built-in < `[defaults]` <
    decorator < the handler's own table. `policy_defaults` and `policy_own` hold only the keys that were
    given, already converted; `workerd.policy.effective(handler, decorator_options)` lays them together.
    """

    name: str
    call: str
    pool: str  # filled with the handler's name
    max_waiting: int = 0
    schedule: ScheduleConfig = ScheduleConfig()
    policy_defaults: dict[str, Any] = {}
    policy_own: dict[str, Any] = {}


class PoolConfig(ConfigValue, frozen=True):
    """One pool: `[pools.NAME]`, or the pool keys of a handler's own table; with its handlers."""

    name: str
    handlers: tuple[HandlerConfig, ...] = ()
    workers: int = 1
    path: tuple[str, ...] = ()
    env: dict[str, str] = {}
    init: str = ""
    preload: bool = True
    load_timeout: float = 60.0
    max_jobs: int = 0
    max_age: float = 0.0
    max_rss: int = 0
    memory_max: int = 0
    cpu_weight: int = 0
    pids_max: int = 0
    restart: RestartConfig = RestartConfig()


class WorkflowJob(ConfigValue, frozen=True):
    """One node of a workflow's graph, in the long form; steps are translated into it."""

    name: str
    handler: str
    needs: tuple[str, ...] = ()
    vars: dict[str, Any] = {}
    step: int = 0


class WorkflowConfig(ConfigValue, frozen=True):
    """One `[workflows.NAME]`: its jobs in step order."""

    name: str
    jobs: tuple[WorkflowJob, ...]
    step_names: tuple[str, ...] = ()
    schedule: ScheduleConfig = ScheduleConfig()


class Config(ConfigValue, frozen=True):
    """Everything, read once at start and at reload, checked as a whole."""

    node: NodeConfig = NodeConfig()
    log: LogConfig = LogConfig()
    supervisor: SupervisorConfig = SupervisorConfig()
    store: StoreConfig = StoreConfig()
    dispatcher: DispatcherConfig = DispatcherConfig()
    ingester: IngesterConfig = IngesterConfig()
    gateway: GatewayConfig = GatewayConfig()
    shutdown: ShutdownConfig = ShutdownConfig()
    retention: RetentionConfig = RetentionConfig()
    pickup: PickupConfig = PickupConfig()
    pools: dict[str, PoolConfig] = {}
    workflows: dict[str, WorkflowConfig] = {}
    notes: tuple[str, ...] = ()  # sentences on what is allowed and hardly meant, for `workerd check`

    @property
    def handlers(self) -> dict[str, HandlerConfig]:
        return {h.name: h for p in self.pools.values() for h in p.handlers}
