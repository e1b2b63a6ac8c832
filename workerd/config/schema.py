"""Every key of every table with its validator and range."""

from __future__ import annotations

from typing import Any

from workerd.config import validators as k
from workerd.config.model import (
    DispatcherConfig,
    GatewayConfig,
    IngesterConfig,
    LogConfig,
    NodeConfig,
    PickupConfig,
    RetentionConfig,
    ShutdownConfig,
    StoreConfig,
    SupervisorConfig,
)
from workerd.config.validators import Kind

# Every key of every table, with the kind of its value and its range: the configuration's grammar as data.
#
# The defaults are in `model`; a key is there and here, or nowhere (tested).
#

DAY = 86400.0
KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30

Keys = dict[str, "Kind | Nested"]


class Nested:
    """A table inside a table, whose keys are checked one by one."""

    def __init__(self, keys: dict[str, Kind]) -> None:
        self.keys = keys


CLASSES = k.list_of(k.class_name, "classes")

POLICY: Keys = {
    "deadline": k.duration_value(0, 365 * DAY),
    "grace": k.duration_value(0, 3600),
    "max_attempts": k.integer(1, 1_000_000),
    "max_crashes": k.integer(1, 1_000_000),
    "backoff": Nested(
        {
            "first": k.duration_value(0, 365 * DAY),
            "factor": k.number(1, 1000),
            "max": k.duration_value(0, 365 * DAY),
            "jitter": k.number(0, 1),
        }
    ),
    "retry_on": CLASSES,
    "fail_on": CLASSES,
    "ignore": CLASSES,
}

SCHEDULE: Keys = {
    "cooler": k.duration_or_none,
    "cron": k.cron,
    "timezone": k.timezone,
    "misfire": k.choice("skip", "once", "all"),
    "overlap": k.choice("allow", "skip", "queue"),
}

HANDLER: Keys = {
    "call": k.reference,
    "pool": k.name_or_empty,
    "max_waiting": k.integer(0, 1_000_000_000),
    **POLICY,
    **SCHEDULE,
}

POOL: Keys = {
    "workers": k.integer(1, 1000),
    "path": k.list_of(k.path_text, "paths"),
    "env": k.texts_by_name,
    "init": k.reference_or_empty,
    "preload": k.boolean,
    "load_timeout": k.duration_value(0.1, DAY),
    "max_jobs": k.integer(0, 1_000_000_000),
    "max_age": k.duration_value(0, 365 * DAY),
    "max_rss": k.size_value(MIB, zero=True),
    "memory_max": k.size_value(MIB, zero=True),
    "cpu_weight": k.integer(0, 10_000),
    "pids_max": k.integer(0, 4_194_304),
    "restart": Nested({"intensity": k.integer(1, 1_000_000), "period": k.duration_value(1, DAY)}),
}

WORKFLOW: Keys = {
    "steps": k.list_of(lambda item: item, "steps"),
    "jobs": k.list_of(lambda item: item, "jobs"),
    **SCHEDULE,
}

SECTIONS: dict[str, tuple[type[Any], Keys]] = {
    "node": (
        NodeConfig,
        {"name": k.name_or_empty, "runtime_dir": k.path, "state_dir": k.path},
    ),
    "log": (
        LogConfig,
        {
            "level": k.choice("debug", "info", "warning", "error"),
            "format": k.choice("auto", "text", "json"),
            "labels": k.labels,
        },
    ),
    "supervisor": (SupervisorConfig, {"watchdog": k.duration_value(0.1, 3600)}),
    "store": (StoreConfig, {"url": k.store_url, "password_file": k.path_or_empty}),
    "dispatcher": (
        DispatcherConfig,
        {
            "batch": k.integer(1, 10_000),
            "poll": k.duration_value(0.001, 3600),
            "lease": k.duration_value(0.5, 3600),
        },
    ),
    "ingester": (
        IngesterConfig,
        {
            "batch": k.integer(1, 10_000),
            "linger": k.duration_value(0, 10),
            "spool": k.size_value(MIB, zero=True),
            "max_payload": k.size_value(KIB, GIB),
        },
    ),
    "gateway": (
        GatewayConfig,
        {
            "listen": k.listen,
            "token_file": k.path_or_empty,
            "allowed_hosts": k.list_of(k.name, "host names"),
            "max_body": k.size_value(KIB, GIB),
            "open_metrics": k.boolean,
        },
    ),
    "shutdown": (ShutdownConfig, {"drain": k.duration_value(0, 7 * DAY)}),
    "retention": (RetentionConfig, {"completed": k.duration_or_none, "failure": k.duration_or_none}),
    "pickup": (
        PickupConfig,
        {
            "enabled": k.boolean,
            "requests_new": k.cron,
            "requests_inprogress": k.cron,
            "jobs": k.cron,
        },
    ),
}

TABLES = (*SECTIONS, "defaults", "handlers", "pools", "workflows")


def homes(key: str) -> list[str]:
    """The tables that know this key, as a person writes them."""
    found = [f"[{name}]" for name, (_, keys) in SECTIONS.items() if key in keys]
    if key in HANDLER or key in POOL:
        found += ["[defaults]", "[handlers.NAME]"]
    if key in POOL:
        found.append("[pools.NAME]")
    if key in WORKFLOW:
        found.append("[workflows.NAME]")
    return found
