"""`[defaults]`, `[handlers.NAME]` and `[pools.NAME]` -> the list of pools that would be started."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from workerd.config import kinds
from workerd.config.model import Backoff, Handler, Pool, Restart, Schedule
from workerd.config.schema import HANDLER, POLICY, POOL, SCHEDULE
from workerd.config.table import Table


@dataclass
class Found:
    """What the tables say."""

    pools: dict[str, Pool] = field(default_factory=dict)
    handlers: dict[str, Handler] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def pools(root: Table) -> Found:
    """All pools with their handlers; what is wrong becomes a fault of `root`."""
    found = Found()
    defaults = root.table("defaults").read({**HANDLER, **POOL})
    given: dict[str, dict[str, Any]] = {}
    tables = {name: table for name, table in root.table("handlers").tables() if check_name(table, name)}
    for name, table in tables.items():
        given[name] = table.read({**HANDLER, **POOL})
        found.handlers[name] = _handler(table, name, defaults, given[name])
        if not found.handlers[name].schedule.cron:
            found.notes += [
                f"handlers.{name}.{key} has no effect, as there is no cron"
                for key in given[name]
                if key in ("timezone", "misfire", "overlap")
            ]
    own = dict(root.table("pools").tables())
    members: dict[str, list[str]] = {}
    for name, handler in found.handlers.items():
        members.setdefault(handler.pool, []).append(name)
    for name, table in own.items():
        check_name(table, name)
    for name, names in members.items():
        keys = own[name].read(POOL) if name in own else {}
        for member in names:
            keys.update(_pool_keys_of(tables[member], given[member], name, names, keys))
        layers = {k: v for k, v in defaults.items() if k in POOL} | keys
        if "restart" in layers:
            layers["restart"] = Restart(**layers["restart"])
        found.pools[name] = Pool(name=name, handlers=tuple(found.handlers[m] for m in names), **layers)
    for name in own.keys() - members.keys():
        own[name].read(POOL)
        found.notes.append(f"[pools.{name}] is not started, as no handler names it as its pool")
    found.notes.sort()
    return found


def check_name(table: Table, name: str) -> bool:
    """Whether the table's own name may be one; a fault if not."""
    try:
        kinds.name(name)
    except ValueError as error:
        table.fault(str(error))
        return False
    return True


def _handler(table: Table, name: str, defaults: dict[str, Any], own: dict[str, Any]) -> Handler:
    keys = {**defaults, **own}
    if "call" not in table.values and "call" not in keys:
        table.fault('expected call = "module:attribute", got none', "call")
    return Handler(
        name=name,
        call=keys.get("call", ""),
        pool=keys.get("pool") or name,
        max_waiting=keys.get("max_waiting", 0),
        schedule=schedule(table, own, defaults),
        policy_defaults=_policy(defaults),
        policy_own=_policy(own),
    )


def _policy(keys: dict[str, Any]) -> dict[str, Any]:
    given = {k: v for k, v in keys.items() if k in POLICY}
    if "backoff" in given:
        given["backoff"] = Backoff(**given["backoff"])
    return given


def schedule(table: Table, own: dict[str, Any], defaults: dict[str, Any]) -> Schedule:
    """When it recurs; its own `cron` takes the place of a default `cooler`, and the other way round."""
    layers = {k: v for k, v in defaults.items() if k in SCHEDULE}
    given = {k: v for k, v in own.items() if k in SCHEDULE}
    if given.get("cron"):
        layers.pop("cooler", None)
    if given.get("cooler") is not None:
        layers.pop("cron", None)
    made = Schedule(**{**layers, **given})
    if made.cron and made.cooler is not None:
        table.fault('expected cooler or cron, got both; set one of them to ""', "cron")
    return made


def _pool_keys_of(
    table: Table, own: dict[str, Any], pool: str, members: list[str], said: dict[str, Any]
) -> dict[str, Any]:
    """The pool keys in a handler's own table, which only one with a pool of its own may have."""
    keys = {k: v for k, v in own.items() if k in POOL}
    for key in keys:
        if len(members) > 1:
            table.fault(
                f'expected it in [pools.{pool}], as {len(members)} handlers share the pool "{pool}"', key
            )
        elif key in said:
            table.fault(f"expected it once, got it in [pools.{pool}] too", key)
    return keys
