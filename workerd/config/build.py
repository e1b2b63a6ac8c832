"""Tables to pools, handlers and workflows: precedence, names, graphs."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from workerd.config import reader, schedules
from workerd.config import validators as v
from workerd.config.command_line import OPTIONAL, placeholders
from workerd.config.config_value import Keys, keys_of
from workerd.config.graph import cycle as find_cycle
from workerd.config.graph import depths
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
    WORKFLOW_KEYS,
    Config,
    GatewayConfig,
    NodeConfig,
    StoreConfig,
)
from workerd.config.reader import ConfigErrors, Table, nearest
from workerd.config.runtime_dir import default_runtime_dir
from workerd.config.schedule_config import ScheduleConfig
from workerd.config.store_url import MySQLUrl, parse_store_url
from workerd.config.webhook_config import WEBHOOK_HANDLER, WebhookConfig
from workerd.config.workflow_config import WAIT_HANDLER, WorkflowConfig, WorkflowJob
from workerd.config.workflow_jobs import JOB_KEYS, job_of
from workerd.config.wrong_value import wrong
from workerd.errors import InvalidValue

MAX_WORKFLOW_JOBS = 10_000


STEP_KEYS: Keys = {
    "name": v.name,
    "jobs": v.list_of(v.name, "handler names"),
    "on_error": v.choice("fail", "continue"),
}


def workflows(root: Table, handlers: Mapping[str, HandlerConfig]) -> dict[str, WorkflowConfig]:
    """All workflows. Cycles, unknown names and jobs that can never run become errors."""
    found: dict[str, WorkflowConfig] = {}
    for name, table in root.table("workflows").tables():
        check_name(table, name)
        given = table.read(WORKFLOW_KEYS)
        steps: tuple[str, ...] = ()
        if ("steps" in table.values) == ("jobs" in table.values):
            table.error(
                "expected either steps or jobs" + (", got both" if "steps" in given else ", got none")
            )
            continue
        if "steps" in table.values:
            steps, jobs = _from_steps(table, given.get("steps", ()))
        else:
            jobs = _from_jobs(table, "jobs", given.get("jobs", ()), {})
        if not jobs:
            table.error("expected at least one job, got none")
        names = {job.name: job for job in jobs}
        then = _from_jobs(table, "then", given.get("then", ()), names)
        final = _from_jobs(
            table, "finally", given.get("finally", ()), names | {job.name: job for job in then}
        )
        for job in (*jobs, *then, *final):
            if job.handler not in handlers and job.handler != WAIT_HANDLER:
                table.error(
                    f'expected a handler that is configured, got "{job.handler}"'
                    + nearest(job.handler, handlers)
                )
        found[name] = WorkflowConfig(
            name=name,
            jobs=tuple(jobs[:MAX_WORKFLOW_JOBS]),
            step_names=steps,
            then=tuple(then),
            final=tuple(final),
            max_failures=given.get("max_failures"),
            schedule=schedule(table, given, {}),
        )
        if len(jobs) > MAX_WORKFLOW_JOBS:
            table.error(f"expected at most {MAX_WORKFLOW_JOBS} jobs, got {len(jobs)}")
    return found


MAX_HINTS = 5
"""Wrong names of one workflow for which the nearest known one is looked for."""


def _items(table: Table, key: str, items: tuple[Any, ...], keys: Keys) -> list[tuple[Table, dict[str, Any]]]:
    """The tables of a list; any other item is an error."""
    found = []
    for number, item in enumerate(items):
        if isinstance(item, dict):
            child = table.child(item, key, number)
            found.append((child, child.read(keys)))
        else:
            table.error(str(wrong("a table", item)), key, number)
    return found


def _from_steps(table: Table, items: tuple[Any, ...]) -> tuple[tuple[str, ...], list[WorkflowJob]]:
    """Every job of a step needs all jobs of the step before it."""
    names: dict[str, None] = {}
    jobs: list[WorkflowJob] = []
    before: tuple[str, ...] = ()
    times: dict[str, int] = {}
    for number, (step, given) in enumerate(_items(table, "steps", items, STEP_KEYS)):
        if "name" not in step.values:
            step.error("expected a name, got none", "name")
        if not step.values.get("jobs"):
            step.error("expected at least one handler name, got none", "jobs")
        if given.get("name") in names:
            step.error("expected a name of its own, got one that another step has", "name")
        names[given.get("name", "")] = None
        here: list[str] = []
        for handler in given.get("jobs", ()):
            times[handler] = times.get(handler, 0) + 1
            # A job is named after its handler; a second one of the same handler needs another name.
            job = handler if times[handler] == 1 else f"{handler}#{times[handler]}"
            here.append(job)
            jobs.append(
                WorkflowJob(
                    name=job, handler=handler, needs=before, step=number,
                    on_error=given.get("on_error", "fail"),
                )
            )  # fmt: skip
        before = tuple(here)
    return tuple(names), jobs


def _from_jobs(
    table: Table, key: str, items: tuple[Any, ...], before: Mapping[str, WorkflowJob]
) -> list[WorkflowJob]:
    """A graph in topological order; `step` is the longest path to a job, behind those `before` it."""
    given: dict[str, WorkflowJob] = {}
    for job, keys in _items(table, key, items, dict(JOB_KEYS)):
        if "name" not in job.values:
            job.error("expected a name, got none", "name")
        if not {"handler", "wait", "signal"} & job.values.keys():
            job.error("expected a name, got none", "handler")
        if "name" not in keys or not {"handler", "wait", "signal"} & keys.keys():
            continue
        if keys["name"] in given or keys["name"] in before:
            job.error("expected a name of its own, got one that another job has", "name")
        try:
            given[keys["name"]] = job_of(keys)
        except InvalidValue as error:
            job.error(str(error))
    unknown = [
        (number, need)
        for number, made in enumerate(given.values())
        for need in made.needs
        if need not in given and need not in before
    ]
    for place, (number, need) in enumerate(unknown):
        # Comparing with all names takes long for a large graph.
        hint = nearest(need, given) if place < MAX_HINTS else ""
        table.error(f'expected names of jobs of this workflow, got "{need}"{hint}', key, number, "needs")
    return _ordered(table, key, given, max((job.step for job in before.values()), default=-1) + 1)


def _ordered(table: Table, key: str, given: dict[str, WorkflowJob], first: int) -> list[WorkflowJob]:
    """Jobs after everything they need; those that can never run are an error that names the cycle."""
    depth = depths({name: job.needs for name, job in given.items()})
    if waiting := {name: job.needs for name, job in given.items() if name not in depth}:
        cycle = find_cycle(waiting)
        table.error("expected a graph without cycles, got " + " needs ".join(f'"{n}"' for n in cycle), key)
        if behind := sorted(waiting.keys() - set(cycle)):
            table.error(
                "expected jobs that can run, got unreachable ones behind that cycle: "
                + ", ".join(f'"{n}"' for n in behind),
                key,
            )
    made = [msgspec.structs.replace(job, step=first + depth.get(job.name, 0)) for job in given.values()]
    return sorted(made, key=lambda job: job.step)


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


def _weights(root: Table) -> dict[str, int]:
    try:
        return dict(v.weights(root.values.get("groups", {})))
    except InvalidValue as error:
        root.error(str(error), "groups")
        return {}


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
                table.error("expected it, got none", key)
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


def check_name(table: Table, name: str) -> bool:
    """Whether the table's own name is valid; an error if not."""
    try:
        v.name(name)
        if name.startswith("~"):
            raise InvalidValue("expected a name without ~ at its beginning, which is reserved")
    except InvalidValue as error:
        table.error(str(error))
        return False
    return True


def _handler(table: Table, name: str, defaults: dict[str, Any], own: dict[str, Any]) -> HandlerConfig:
    keys = {**defaults, **own}
    command = _command(table, keys, own)
    if command is not None:
        keys.pop("call", None)
    elif "call" not in table.values and "call" not in keys and not table.values.get("command"):
        table.error('expected call = "module:attribute" or a command, got none', "call")
    given = {key: keys[key] for key in keys_of(HandlerConfig) if key in keys}
    # What nobody may see of any handler's jobs, nobody may see of this one's.
    given["redact"] = tuple(dict.fromkeys((*defaults.get("redact", ()), *own.get("redact", ()))))
    return HandlerConfig(
        name=name,
        command=command,
        schedule=schedule(table, own, defaults),
        policy_defaults=_policy(defaults),
        policy_own=_policy(own),
        **{"call": "", **given, "pool": keys.get("pool") or name},
    )


def _command(table: Table, keys: dict[str, Any], own: dict[str, Any]) -> CommandConfig | None:
    """The program in place of `call`; its own `call` replaces a default `command`."""
    given = {key: value for key, value in keys.items() if key in keys_of(CommandConfig)}
    if not given.get("command") or ("call" in own and "command" not in own):
        for key in own.keys() & (keys_of(CommandConfig).keys() - {"command"}):
            table.error("expected it beside a command, got none", key)
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


def schedule(table: Table, own: dict[str, Any], defaults: dict[str, Any]) -> ScheduleConfig:
    """When it recurs; its own `cron` replaces a default `cooler`, and the other way round."""
    layers = {key: value for key, value in defaults.items() if key in keys_of(ScheduleConfig)}
    given = {key: value for key, value in own.items() if key in keys_of(ScheduleConfig)}
    if given.get("cron"):
        layers.pop("cooler", None)
    if given.get("cooler") is not None:
        layers.pop("cron", None)
    made = ScheduleConfig(**{**layers, **given})
    if made.cron and made.cooler is not None:
        table.error('expected cooler or cron, got both; set one of them to ""', "cron")
    return made


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


def build(tree: reader.ConfigTree, errors: ConfigErrors) -> Config:
    """The frozen configuration from merged values. Raises ConfigError with all errors at once."""
    root = Table(tree.values, (), tree, errors)
    for name in root.values:
        if name not in TABLES:
            root.unknown(name, dict.fromkeys(TABLES))
    sections = {name: _section(root.table(name), name) for name in SECTIONS}
    found = pools(root)
    limited = limits(root, found)
    weights = _weights(root)
    flows = workflows(root, found.handlers)
    hooks = webhooks(root)
    _check_names(root, found, flows)
    named = schedules.named(root, found.handlers, flows)
    _check_gateway(root, sections["gateway"])
    errors.raise_if_any()
    notes = (*found.notes, *_exposed_password(tree, sections["store"]))
    if hooks:
        found.pools[WEBHOOK_HANDLER] = _webhook_pool(hooks)
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
        given["name"] = socket.gethostname()[: v.NAME_LIMIT] or "localhost"
    if name == "node" and "runtime_dir" not in given:
        given["runtime_dir"] = default_runtime_dir(given.get("state_dir", NodeConfig().state_dir))
    return section(**given)


def _check_names(root: Table, found: PoolTables, flows: dict[str, WorkflowConfig]) -> None:
    """A schedule is stored under its owner's name, so a recurring workflow and a handler cannot share it."""
    for name, flow in flows.items():
        if name in found.handlers and flow.schedule.recurs:
            root.error("expected another name, as it recurs: a handler has this one too", "workflows", name)


def _check_gateway(root: Table, gateway: GatewayConfig) -> None:
    if not v.is_local(gateway.listen) and not gateway.token_file:
        root.error(
            "expected gateway.token_file to be set, as others can reach this address; "
            'set it, or listen on "127.0.0.1:8020" or "unix:/path"',
            "gateway",
            "listen",
        )
