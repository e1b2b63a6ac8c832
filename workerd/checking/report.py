"""The report of `workerd check` on a configuration that is valid."""

from __future__ import annotations

import os
from typing import Any

import msgspec

from workerd.checking import trial
from workerd.checking.host import weaknesses
from workerd.config.model import Config, Handler, Pool, Schedule
from workerd.config.units import duration_text, size_text


class HandlerPlan(msgspec.Struct, frozen=True):
    """One handler as it would be started; `fault` says why it does not load, "" if it does."""

    name: str
    call: str
    pool: str
    recurs: str
    fault: str


class PoolPlan(msgspec.Struct, frozen=True):
    """One pool as it would be started; `limits` in words."""

    name: str
    workers: int
    handlers: list[str]
    limits: str


class Report(msgspec.Struct, frozen=True):
    """What would be started and what is to know about it; sentences for people."""

    node: str
    roles: list[str]
    pools: list[PoolPlan]
    handlers: list[HandlerPlan]
    workflows: list[str]
    weaker: list[str]
    without_effect: list[str]
    notes: list[str]

    @property
    def loads(self) -> bool:
        """Whether every handler loads."""
        return not any(handler.fault for handler in self.handlers)


def report(config: Config) -> Report:
    """Look at everything; handlers are loaded in processes of their own, each within its time."""
    faults = trial.faults(config)
    return Report(
        node=config.node.name,
        roles=["ingester", "dispatcher", *(["gateway"] if config.gateway.listen else [])],
        pools=[_pool(pool) for pool in config.pools.values()],
        handlers=[_handler(handler, faults[handler.name]) for handler in config.handlers.values()],
        workflows=[
            f"{flow.name}: {len(flow.jobs)} jobs{_recurs(flow.schedule, ', ')}"
            for flow in config.workflows.values()
        ],
        weaker=weaknesses(config),
        without_effect=without_effect(config),
        notes=[*config.notes, *_notes(config)],
    )


def _pool(pool: Pool) -> PoolPlan:
    limits = {
        "memory": pool.memory_max and size_text(pool.memory_max),
        "cpu weight": pool.cpu_weight,
        "processes": pool.pids_max,
        "jobs a worker": pool.max_jobs,
        "age": pool.max_age and duration_text(pool.max_age),
        "growth": pool.max_rss and size_text(pool.max_rss),
    }
    return PoolPlan(
        pool.name,
        pool.workers,
        [handler.name for handler in pool.handlers],
        ", ".join(f"{name} {value}" for name, value in limits.items() if value),
    )


def _handler(handler: Handler, fault: str) -> HandlerPlan:
    return HandlerPlan(handler.name, handler.call, handler.pool, _recurs(handler.schedule), fault)


def _recurs(schedule: Schedule, before: str = "") -> str:
    if schedule.cron:
        return f"{before}at {schedule.cron} {schedule.timezone}"
    if schedule.cooler is not None:
        return f"{before}{duration_text(schedule.cooler)} after each end"
    return ""


def _notes(config: Config) -> list[str]:
    found = []
    if not config.handlers:
        found.append("No handler is configured: this node would run nothing; add a [handlers.NAME] table.")
    if not config.pickup.enabled:
        found.append("pickup.enabled is false: this node would take no work.")
    for key, file in (
        ("store.password_file", config.store.password_file),
        ("gateway.token_file", config.gateway.token_file),
    ):
        if file and not os.access(file, os.R_OK):
            found.append(
                f"{key}: {file} cannot be read by this user; the user of the daemon must be able to."
            )
    return found


def without_effect(config: Config) -> list[str]:
    """Keys that are set and change nothing here, each with the reason."""
    found = []
    if config.store.url.startswith("sqlite:") and config.store.password_file:
        found.append("store.password_file: an SQLite store has no password.")
    if not config.gateway.listen:
        found += [
            f"gateway.{key}: the gateway is off." for key in _changed(config.gateway) if key != "listen"
        ]
    elif not config.gateway.token_file and config.gateway.open_metrics:
        found.append("gateway.open_metrics: no route asks for a token.")
    return found


def _changed(value: Any) -> list[str]:
    """The keys of a part of the configuration that differ from the defaults."""
    default = type(value)()
    return [key for key in value.__struct_fields__ if getattr(value, key) != getattr(default, key)]
