"""`workerd check`: what would be started, whether every handler loads, what is degraded on this host."""

from __future__ import annotations

import contextlib
import os
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec

from workerd import host
from workerd.config.handler_config import PoolConfig
from workerd.config.model import Config
from workerd.config.quantities import duration_literal, size_literal
from workerd.config.schedule_config import ScheduleConfig
from workerd.degradations import degradations, exists
from workerd.exposure import exposures
from workerd.load_trial import LoadTrial, load_all
from workerd.pool.loading import CONNECT_IN_INIT, NO_COOLER_KEY, SHARED_BY_WORKERS, lacks_cooler_key
from workerd.text import plural
from workerd.webhooks import is_public, secret_of

MEMORY_SHARE = 0.75
"""Of the memory of this host, for all workers together."""
MIN_PROPOSED_MEMORY = 64 << 20
PROPOSED_PIDS_PER_WORKER = 64
MAX_NAMES = 5
"""Pools that one sentence lists."""


# The names `fault` and `weaker` are those of the JSON document.


class HandlerPlan(msgspec.Struct, frozen=True, rename={"error": "fault"}):
    """One handler as it would be started; `error`: why it does not load, "" if it does."""

    name: str
    call: str
    pool: str
    recurs: str
    error: str


class PoolPlan(msgspec.Struct, frozen=True):
    """One pool as it would be started; `limits` in words."""

    name: str
    workers: int
    handlers: list[str]
    limits: str


class ServerPlan(msgspec.Struct, frozen=True):
    """One server of the store as it is now; `role`: writable, read-only or away, and why not writable."""

    host: str
    version: str
    role: str
    reason: str


class CheckReport(msgspec.Struct, frozen=True, rename={"degraded": "weaker"}):
    """What would be started, and sentences on what an administrator should know about it."""

    node: str
    roles: list[str]
    pools: list[PoolPlan]
    handlers: list[HandlerPlan]
    workflows: list[str]
    degraded: list[str]
    without_effect: list[str]
    notes: list[str]
    not_checked: list[str]
    store: list[ServerPlan] | msgspec.UnsetType = msgspec.UNSET
    schema: str | msgspec.UnsetType = msgspec.UNSET
    store_faults: list[str] | msgspec.UnsetType = msgspec.UNSET


def check_config(config: Config) -> CheckReport:
    """Check everything; each handler is loaded in a process of its own, within its pool's load_timeout."""
    trials = load_all(config)
    return CheckReport(
        node=config.node.name,
        roles=["ingester", "dispatcher", *(["gateway"] if config.gateway.listen else [])],
        pools=[_plan_pool(pool) for pool in config.pools.values()],
        handlers=[
            HandlerPlan(
                handler.name,
                handler.target,
                handler.pool,
                _recurrence(handler.schedule),
                trials[handler.name].error,
            )
            for handler in config.handlers.values()
        ],
        workflows=[
            ", ".join(
                filter(None, [f"{flow.name}: {plural(len(flow.jobs), 'job')}", _recurrence(flow.schedule)])
            )
            for flow in config.workflows.values()
        ],
        degraded=degradations(config),
        without_effect=without_effect(config),
        notes=[
            *config.notes,
            *_notes(config),
            *_paths(config),
            *_webhooks(config),
            *exposures(config),
            *_opened(config, trials),
            *_not_recurring(config, trials),
            *_proposed_limits(config),
        ],
        not_checked=[
            "The store: that it answers, its database, schema, privileges and roles; `workerd check --store` "
            "asks it."
        ],
    )


def _plan_pool(pool: PoolConfig) -> PoolPlan:
    limits = {
        "memory": pool.memory_max and size_literal(pool.memory_max),
        "cpu weight": pool.cpu_weight,
        "processes": pool.pids_max,
        "jobs a worker": pool.max_jobs,
        "age": pool.max_age and duration_literal(pool.max_age),
        "growth": pool.max_rss and size_literal(pool.max_rss),
    }
    return PoolPlan(
        pool.name,
        pool.workers,
        [handler.name for handler in pool.handlers],
        ", ".join(f"{name} {value}" for name, value in limits.items() if value),
    )


def _recurrence(schedule: ScheduleConfig) -> str:
    if schedule.cron:
        return f"at {schedule.cron} {schedule.timezone}"
    if schedule.cooler is not None:
        return f"{duration_literal(schedule.cooler)} after each end"
    return ""


def _notes(config: Config) -> list[str]:
    found = []
    if not config.handlers:
        found.append("No handler is configured: this node would run nothing. Add a [handlers.NAME] table.")
    if not config.pickup.enabled:
        found.append("pickup.enabled is false: this node would take no jobs.")
    for key, file in (
        ("store.password_file", config.store.password_file),
        ("gateway.token_file", config.gateway.token_file),
        *((f"webhooks.{name}.secret_file", hook.secret_file) for name, hook in config.webhooks.items()),
    ):
        if file and not os.access(file, os.R_OK):
            found.append(f"{key}: this user cannot read {file}; the daemon's user must be able to.")
    return found


def _proposed_limits(config: Config) -> list[str]:
    """Limits that would keep one handler from taking the whole host."""
    pools = list(config.pools.values())
    limits = host.limits()
    found = []
    if unlimited := [pool.name for pool in pools if not pool.memory_max]:
        each = max(MIN_PROPOSED_MEMORY, int(_memory_bytes() * MEMORY_SHARE / sum(p.workers for p in pools)))
        found.append(
            f"No memory_max: {_shortened(unlimited)}. A runaway handler can take all memory "
            f'of the host; memory_max = "{each >> 20}MiB" for each worker would leave a quarter to the rest.'
        )
    if unlimited := [pool.name for pool in pools if not pool.pids_max]:
        count = PROPOSED_PIDS_PER_WORKER * max(pool.workers for pool in pools)
        if limits.processes:
            count = min(count, max(1, limits.processes // (len(pools) + 1)))
        found.append(
            f"No pids_max: {_shortened(unlimited)}. A runaway handler can take all processes of "
            f"the host; pids_max = {count} is enough for most."
        )
    given = [
        *([f"{size_literal(limits.memory_bytes)} of memory"] if limits.memory_bytes else []),
        *([f"{limits.processes} processes and threads"] if limits.processes else []),
    ]
    if found and given:
        found.insert(
            0, f"This control group has {' and '.join(given)}, for the daemon and its pools together."
        )
    return found


def _memory_bytes() -> int:
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min(physical, host.limits().memory_bytes or physical)


def _shortened(names: list[str]) -> str:
    """The first MAX_NAMES names, and how many more there are."""
    more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return ", ".join(names[:MAX_NAMES]) + more


def _paths(config: Config) -> list[str]:
    """Folders of `path` that handlers cannot be imported from."""
    found = []
    for pool in config.pools.values():
        for folder in map(Path, pool.path):
            key = f"pools.{pool.name}.path"
            if not exists(folder):
                found.append(f"{key}: {folder} does not exist; correct the path, or install the code there.")
            elif folder.is_dir() and not os.access(folder, os.R_OK | os.X_OK):
                found.append(f"{key}: this user cannot read {folder}; the daemon's user must be able to.")
    return found


def _webhooks(config: Config) -> list[str]:
    """What keeps deliveries from their receivers, as far as it can be seen before there are any."""
    found = []
    for name, hook in config.webhooks.items():
        key = f"webhooks.{name}"
        with contextlib.suppress(OSError):  # whether this user can read it is checked elsewhere
            if not secret_of(hook):
                found.append(f"{key}.secret_file: {hook.secret_file} is empty, so nothing is sent.")
        if not hook.allow_private and _is_private(urlsplit(hook.url).hostname or ""):
            found.append(
                f"{key}.url: this is not a public address, so every delivery would fail; allow_private = "
                "true allows it."
            )
        if not any(fnmatchcase(handler, one) for handler in config.handlers for one in hook.handlers):
            found.append(
                f"{key}.handlers: no handler on this node matches; only request_failed events can be sent."
            )
    return found


def _is_private(host: str) -> bool:
    try:
        return not is_public(host)
    except ValueError:  # a name, which is looked up at delivery
        return False


def without_effect(config: Config) -> list[str]:
    """Keys that are set but change nothing, each with the reason."""
    found = []
    if config.store.url.startswith("sqlite:") and config.store.password_file:
        found.append("store.password_file: an SQLite store has no password.")
    if not config.gateway.listen:
        found += [f"gateway.{key}: the gateway is off." for key in _changed_keys(config.gateway)]
    elif not config.gateway.token_file and config.gateway.open_metrics:
        found.append("gateway.open_metrics: no route requires a token.")
    return found


def _changed_keys(section: Any) -> list[str]:
    default = type(section)()
    return [
        key
        for key in section.__struct_fields__
        if key != "listen" and getattr(section, key) != getattr(default, key)
    ]


def _opened(config: Config, trials: dict[str, LoadTrial]) -> list[str]:
    """Sentences on handlers whose import opens what their workers share, or cannot use."""
    found = []
    for handler in [handler for pool in config.pools.values() if pool.preload for handler in pool.handlers]:
        trial = trials[handler.name]
        for opened, advice in ((trial.sockets, CONNECT_IN_INIT), (trial.files, SHARED_BY_WORKERS)):
            if opened:
                found.append(
                    f'handler "{handler.name}": importing it leaves open: {", ".join(opened)}. {advice}'
                )
    return found


def _not_recurring(config: Config, trials: dict[str, LoadTrial]) -> list[str]:
    return [
        f'handler "{name}": {NO_COOLER_KEY}.'
        for name, trial in trials.items()
        if trial.has_cooler and lacks_cooler_key(name, config)
    ]
