"""Tables to pools, handlers, limits and webhooks, and the whole configuration: precedence, names."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from workerd.config import address_validators as addresses
from workerd.config import reader, schedules
from workerd.config import text_validators as texts
from workerd.config import validators as v
from workerd.config.command_line import OPTIONAL, placeholders
from workerd.config.config_value import keys_of
from workerd.config.handler_config import (
    Backoff,
    CommandConfig,
    HandlerConfig,
    Policy,
    PoolConfig,
    RestartConfig,
)
from workerd.config.limit_config import LimitConfig
from workerd.config.model import (
    HANDLER_KEYS,
    LIMIT_KEYS,
    POOL_KEYS,
    SECTIONS,
    TABLES,
    WEBHOOK_KEYS,
    Config,
    GatewayConfig,
    NodeConfig,
    StoreConfig,
)
from workerd.config.reader import ConfigErrors, Table, check_name, nearest
from workerd.config.runtime_dir import default_runtime_dir
from workerd.config.schedules import own_schedule
from workerd.config.store_url import MySQLUrl, parse_store_url
from workerd.config.webhook_config import WEBHOOK_HANDLER, WebhookConfig
from workerd.config.workflow_config import WorkflowConfig
from workerd.config.workflows import workflows
from workerd.errors import InvalidValue
from workerd.group import checked_group


@dataclass
class PoolTables:
    """Pools and handlers, with warnings. `redact`: of [defaults]."""

    pools: dict[str, PoolConfig] = field(default_factory=dict)
    handlers: dict[str, HandlerConfig] = field(default_factory=dict)
    redact: tuple[str, ...] = ()
    notes: list[str] = field(default_factory=list)


def pools(root: Table) -> PoolTables:
    """All pools with their handlers."""
    found = PoolTables()
    defaults = root.table("defaults").read({**HANDLER_KEYS, **POOL_KEYS})
    found.redact = tuple(defaults.get("redact", ()))
    given: dict[str, dict[str, Any]] = {}
    tables = {name: table for name, table in root.table("handlers").tables() if check_name(table, name)}
    for name, table in tables.items():
        given[name] = table.read({**HANDLER_KEYS, **POOL_KEYS})
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
        keys = own[name].read(POOL_KEYS) if name in own else {}
        for member in names:
            keys.update(_pool_keys_of(tables[member], given[member], name, names, keys))
        layers = {
            key: value for key, value in defaults.items() if key in POOL_KEYS and key not in HANDLER_KEYS
        } | keys
        if "restart" in layers:
            layers["restart"] = RestartConfig(**layers["restart"])
        if "around" in keys:
            _drop_default_around(found, names, given)
        found.pools[name] = PoolConfig(name=name, handlers=tuple(found.handlers[m] for m in names), **layers)
    for name in own.keys() - members.keys():
        own[name].read(POOL_KEYS)
        found.notes.append(f"[pools.{name}] is not started, as no handler names it as its pool")
    found.notes.sort()
    return found


def limits(root: Table, found: PoolTables) -> dict[str, LimitConfig]:
    """All limits; the handlers and pools are told which of theirs have a rate."""
    made: dict[str, LimitConfig] = {}
    for name, table in root.table("limits").tables():
        check_name(table, name)
        made[name] = LimitConfig(**table.read(LIMIT_KEYS))
        if not any(table.values.get(key, "") != "" for key in LIMIT_KEYS if key != "burst"):
            table.error("expected concurrency, group_concurrency, rate or group_rate, got none of them")
    for name, handler in found.handlers.items():
        if handler.limit and handler.limit not in made:
            root.error(
                f'expected a limit that is configured, got "{handler.limit}"{nearest(handler.limit, made)}',
                "handlers", name, "limit",
            )  # fmt: skip
    used = {handler.limit for handler in found.handlers.values()}
    found.notes += [f"[limits.{name}] has no effect, as no handler names it" for name in made.keys() - used]
    found.notes += [
        f"limits.{name}.burst has no effect, as the limit has neither rate nor group_rate"
        for name, limit in made.items()
        if limit.burst is not None and not limit.rated
    ]
    found.notes.sort()
    for name, pool in found.pools.items():
        found.pools[name] = msgspec.structs.replace(
            pool,
            handlers=tuple(
                msgspec.structs.replace(h, rated=h.limit in made and made[h.limit].rated)
                for h in pool.handlers
            ),
        )
    return made


def _weights(root: Table, found: PoolTables) -> dict[str, int]:
    table, weights = root.table("groups"), dict[str, int]()
    for group, weight in table.values.items():
        try:
            weights[checked_group(group)] = int(v.weight(weight))
        except InvalidValue as error:
            table.error(str(error).removeprefix("group: "), group)
    if weights and not any(handler.fair for handler in found.handlers.values()):
        found.notes.append("[groups] has no effect, as no handler is fair")
    return weights


WEBHOOK_POLICY: dict[str, Any] = {
    "deadline": 10.0,
    "grace": 2.0,
    "max_attempts": 8,
    "max_crashes": 3,
    "backoff": Backoff(first=1.0, factor=2.0, max=600.0),
    "retry_on": ("Exception",),
    "fail_on": (),
    "ignore": (),
}
"""Of deliveries; `[defaults]` does not touch it, as it is meant for the work of users."""


def webhooks(root: Table) -> dict[str, WebhookConfig]:
    """All webhooks."""
    found: dict[str, WebhookConfig] = {}
    for name, table in root.table("webhooks").tables():
        check_name(table, name)
        given = table.read(WEBHOOK_KEYS)
        for key in ("url", "secret_file"):
            if key not in table.values:
                table.error("expected a value, as a webhook needs one; got none", key)
        found[name] = WebhookConfig(**given)
    return found


def _webhook_pool(hooks: dict[str, WebhookConfig]) -> PoolConfig:
    """The pool that delivers: two at a time, so that one receiver that hangs does not keep all others."""
    handler = HandlerConfig(
        name=WEBHOOK_HANDLER, call="", pool=WEBHOOK_HANDLER, webhooks=hooks, policy_own=WEBHOOK_POLICY
    )
    return PoolConfig(name=WEBHOOK_HANDLER, handlers=(handler,), workers=2)


def _drop_default_around(found: PoolTables, names: list[str], given: dict[str, dict[str, Any]]) -> None:
    """What the pool has around its runs replaces the default, not what a handler's own table says."""
    for name in names:
        if "around" not in given[name]:
            found.handlers[name] = msgspec.structs.replace(found.handlers[name], around=())


def _handler(table: Table, name: str, defaults: dict[str, Any], own: dict[str, Any]) -> HandlerConfig:
    keys = {**defaults, **own}
    command = _command(table, keys, own)
    if command is not None:
        keys.pop("call", None)
    elif "call" not in table.values and "call" not in keys and not table.values.get("command"):
        table.error('expected call = "module:attribute" or a command, got none', "call")
    given = {key: keys[key] for key in keys_of(HandlerConfig) if key in keys}
    if given.get("unique_for") is not None and given.get("on_conflict", "keep") != "keep":
        table.error('requires on_conflict "keep", the default', "unique_for")
    # The paths of `[defaults]` are redacted in addition to the handler's own.
    given["redact"] = tuple(dict.fromkeys((*defaults.get("redact", ()), *own.get("redact", ()))))
    return HandlerConfig(
        name=name,
        command=command,
        schedule=own_schedule(table, own, defaults),
        policy_defaults=_policy(defaults),
        policy_own=_policy(own),
        **{"call": "", **given, "pool": keys.get("pool") or name},
    )


def _command(table: Table, keys: dict[str, Any], own: dict[str, Any]) -> CommandConfig | None:
    """The program in place of `call`; its own `call` replaces a default `command`."""
    given = {key: value for key, value in keys.items() if key in keys_of(CommandConfig)}
    if not given.get("command") or ("call" in own and "command" not in own):
        beside = set() if table.values.get("command") else keys_of(CommandConfig).keys() - {"command"}
        for key in own.keys() & beside:
            table.error("requires a command, got none", key)
        return None
    if "call" in own:
        table.error("expected either call or command, got both", "command")
    command = CommandConfig(**given)
    if both := set(command.retry_codes) & set(command.fail_codes):
        table.error(f"expected statuses that are not in retry_codes, got {min(both)} in both", "fail_codes")
    if command.signature:
        for name in placeholders(command.command):
            if command.signature.get(name, OPTIONAL).endswith(OPTIONAL):
                table.error(f'expected a type of {name}, which `command` needs, without "?"', "signature")
    return command


def _policy(keys: dict[str, Any]) -> dict[str, Any]:
    given = {key: value for key, value in keys.items() if key in keys_of(Policy)}
    if "backoff" in given:
        given["backoff"] = Backoff(**given["backoff"])
    return given


def _pool_keys_of(
    table: Table, own: dict[str, Any], pool: str, members: list[str], said: dict[str, Any]
) -> dict[str, Any]:
    """The pool keys in a handler's own table, allowed only if the pool is not shared."""
    keys = {key: value for key, value in own.items() if key in POOL_KEYS and key not in HANDLER_KEYS}
    for key in keys:
        if len(members) > 1:
            table.error(
                f'expected it in [pools.{pool}], as {len(members)} handlers share the pool "{pool}"', key
            )
        elif key in said:
            table.error(f"expected it once, got it in [pools.{pool}] too", key)
    return keys


def load(path: Path | None = None, environ: Mapping[str, str] | None = None) -> Config:
    """The configuration from a file or folder and `WORKERD_A__B` variables.

    Default: what the variable WORKERD_CONFIG names, else /etc/workerd.

    Raises ConfigError with all errors at once; none shows a secret.
    """
    errors = ConfigErrors()
    return build(reader.read(path, os.environ if environ is None else environ, errors), errors)


def load_running(path: Path | None, environ: Mapping[str, str]) -> Config:
    """Only what a daemon that runs is found and stopped by; the rest of the configuration may be wrong.

    Raises ConfigError if a file cannot be read, or these parts of it are wrong.
    """
    errors = ConfigErrors()
    tree = reader.read(path, environ, errors)
    root = Table(tree.values, (), tree, errors)
    node, shutdown = _section(root.table("node"), "node"), _section(root.table("shutdown"), "shutdown")
    errors.raise_if_any()
    return Config(node=node, shutdown=shutdown)


def build(tree: reader.ConfigTree, errors: ConfigErrors) -> Config:
    """The frozen configuration from merged values. Raises ConfigError with all errors at once."""
    root = Table(tree.values, (), tree, errors)
    for name in root.values:
        if name not in TABLES:
            root.unknown(name, dict.fromkeys(TABLES))
    sections = {name: _section(root.table(name), name) for name in SECTIONS}
    found = pools(root)
    limited = limits(root, found)
    weights = _weights(root, found)
    flows = workflows(root, found.handlers)
    hooks = webhooks(root)
    _check_names(root, found, flows)
    named = schedules.named(root, found.handlers, flows)
    _check_gateway(root, sections["gateway"])
    errors.raise_if_any()
    notes = (*found.notes, *_exposed_password(tree, sections["store"]))
    if hooks:
        found.pools[WEBHOOK_HANDLER] = _webhook_pool(hooks)
    otel = sections["otel"]
    if otel.enabled:
        found.pools = {name: msgspec.structs.replace(p, otel=otel) for name, p in found.pools.items()}
    return Config(
        pools=found.pools,
        workflows=flows,
        schedules=named,
        limits=limited,
        groups=weights,
        webhooks=hooks,
        webhook_redactions={h.name: h.redact for h in found.handlers.values() if h.redact} if hooks else {},
        redact=found.redact,
        notes=notes,
        **sections,
    )


def _exposed_password(tree: reader.ConfigTree, store: StoreConfig) -> list[str]:
    """A note if others can read the file that holds the password of `store.url`."""
    url = parse_store_url(store.url)
    if not isinstance(url, MySQLUrl) or not url.password:
        return []
    file = tree.origin(("store", "url"))
    try:
        readable = Path(file).stat().st_mode & stat.S_IROTH
    except OSError:  # an environment variable, which is not a file
        return []
    if not readable:
        return []
    return [f"store.url: every user may read {file}, which holds its password; use store.password_file"]


def _section(table: Table, name: str) -> Any:
    """One section; keys that are missing or wrong have their defaults."""
    section = SECTIONS[name]
    given = table.read(keys_of(section))
    if name == "node" and not given.get("name"):
        given["name"] = socket.gethostname()[: texts.NAME_LIMIT] or "localhost"
    if name == "node" and "runtime_dir" not in given:
        given["runtime_dir"] = default_runtime_dir(given.get("state_dir", NodeConfig().state_dir))
    if name == "node" and given.get("generation", 1) > 1:
        suffix = f"·{given['generation']}"
        given["name"] = given["name"][: texts.NAME_LIMIT - len(suffix)] + suffix
    return section(**given)


def _check_names(root: Table, found: PoolTables, flows: dict[str, WorkflowConfig]) -> None:
    """A schedule is stored under its owner's name, so a recurring workflow and a handler cannot share it."""
    for name, flow in flows.items():
        if name in found.handlers and flow.schedule.recurs:
            root.error("expected another name, as it recurs: a handler has this one too", "workflows", name)


def _check_gateway(root: Table, gateway: GatewayConfig) -> None:
    if not addresses.is_local(gateway.listen) and not gateway.token_file:
        root.error(
            "expected gateway.token_file to be set, as others can reach this address; "
            'set it, or listen on "127.0.0.1:8020" or "unix:/path"',
            "gateway",
            "listen",
        )
