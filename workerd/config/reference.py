"""The commented configuration file and the reference page, generated from the declared keys."""

from __future__ import annotations

import ast
import inspect
import json
import textwrap
from collections.abc import Container, Iterator
from pathlib import Path
from typing import Any

import msgspec

from workerd.config.config_value import ConfigValue, Keys, NestedKeys, keys_of
from workerd.config.handler_config import CommandConfig, HandlerConfig, Policy, PoolConfig
from workerd.config.limit_config import LimitConfig
from workerd.config.model import SECTIONS
from workerd.config.quantities import duration_literal, size_literal
from workerd.config.schedule_config import NamedSchedule, ScheduleConfig
from workerd.config.validators import Validator
from workerd.config.webhook_config import WebhookConfig
from workerd.config.workflow_config import WorkflowTable

_COMMENT_WIDTH = 106
REQUIRED: dict[type[ConfigValue], tuple[str, ...]] = {
    HandlerConfig: ("call",),
    WebhookConfig: ("url", "secret_file"),
}
"""Keys without a default."""

_HEAD = """\
# Configuration of workerd. Everything set here is the default: delete what you do not change.
#
# Read at start and at reload, then conf.d/*.toml beside this file in alphabetical order; tables are merged,
# and the later of two values for one key wins. Environment variables come last: WORKERD_STORE__URL sets
# store.url. `workerd check` reports all errors at once; nothing starts with an error.
#
# Durations: "250ms", "30s", "5m", "2h", "7d", or a number of seconds.
# Sizes: "64KiB", "512MiB", "1GiB", or a number of bytes.
# Lines that start with # and no space are examples: remove the # to use them."""

_DEFAULTS = """\
# Any key of a handler or a pool below, for all of them. A decorator in the code overrides these, and the
# table of a handler or pool overrides the decorator.
[defaults]"""

_HANDLER = """\
# A handler: the table's name is the name that jobs use.
#[handlers.thumbnail]"""

_COMMAND = """\
# A handler that is a program in any language, in place of a Python function.
#[handlers.report]"""

_POOL = """\
# A pool: a fixed number of worker processes, and their limits. These keys may also be set in the table of a
# handler that has a pool of its own.
#[pools.images]"""

_LIMIT = """\
# A limit: how many jobs of the handlers with limit = "payments" run and start, on all nodes together. Where
# live nodes have different ones, the lower of each value holds. At least one of its keys but burst is needed.
#[limits.payments]"""

_GROUPS = """\
# Weights of groups where a handler is `fair`, from 1 to 100; 1 where none is given.
#[groups]
#"tenant-7" = 3"""

_WEBHOOK = """\
# An address that events are sent to. Its deliveries are jobs with a policy of their own, which [defaults]
# does not touch.
#[webhooks.ops]"""

_WORKFLOW = """\
# Handlers that share that pool, and a workflow of them.
#[handlers.find_images]
#call = "shop.images:find"
#pool = "images"
#[handlers.delete_images]
#call = "shop.images:delete"
#pool = "images"

# A workflow: a request is one run of it. The jobs of a step run at the same time, each step after the one
# before. Any other acyclic graph: jobs = [{ name = "a", handler = "x", needs = ["b"], vars = {} }, …].
#[workflows.delete_user]
#steps = [
#{ name = "find", jobs = ["find_images"] },
#{ name = "delete", jobs = ["delete_images", "thumbnail"] },
#]
# A workflow may recur like a handler."""

_SCHEDULE = """\
# A schedule by name: several for one handler, each with vars of its own; `cron`, `cooler`, `timezone`,
# `misfire` and `overlap` as above.
#[schedules.thumbnails-eu]
# Or cooler = "30s".
#cron = "0 7 * * *\""""


def meanings(table: type[ConfigValue]) -> dict[str, str]:
    """The docstring below each key of the table."""
    found: dict[str, str] = {}
    for base in table.__bases__:
        if issubclass(base, ConfigValue) and base is not ConfigValue:
            found |= meanings(base)
    [declaration] = ast.parse(textwrap.dedent(inspect.getsource(table))).body
    assert isinstance(declaration, ast.ClassDef)
    for field, below in zip(declaration.body, declaration.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            match below:
                case ast.Expr(value=ast.Constant(value=str(text))):
                    found[field.target.id.rstrip("_")] = " ".join(text.split())
    return found


def toml_value(value: Any, key: Validator | NestedKeys) -> str:
    """A converted value as it is written in TOML."""
    if not isinstance(key, Validator):
        items = (f"{name} = {toml_value(getattr(value, name), inner)}" for name, inner in key.items())
        return f"{{ {', '.join(items)} }}"
    if value is None:
        return '""'
    if key.unit == "duration":
        return json.dumps(duration_literal(value))
    if key.unit == "size":
        return json.dumps(size_literal(value)) if value else "0"
    if isinstance(value, str | Path):
        return json.dumps(str(value))
    return json.dumps(value)


def workerd_toml() -> str:
    """`etc/workerd.toml`: every key with its meaning and default; handlers and pools as examples."""
    lines = [_HEAD]
    for name, section in SECTIONS.items():
        lines += ["", *_comment(section.__doc__ or ""), f"[{name}]", *_keys(section)]
    lines += ["", _DEFAULTS, "", _HANDLER]
    lines += _keys(HandlerConfig, "#", {"call": "shop.images:thumbnail", "pool": ""})
    lines += [*_keys(Policy, "#"), *_keys(ScheduleConfig, "#"), "", _COMMAND]
    lines += _keys(CommandConfig, "#", {"command": ["/usr/bin/php", "artisan", "report", "{month}"]})
    lines += ["", _POOL, *_keys(PoolConfig, "#")]
    lines += ["", _LIMIT, *_keys(LimitConfig, "#", {"concurrency": 20}), "", _GROUPS, "", _WEBHOOK]
    lines += _keys(
        WebhookConfig,
        "#",
        {"url": "https://example.org/hooks/workerd", "secret_file": "/etc/workerd/webhook.secret"},
    )
    lines += ["", _WORKFLOW]
    lines += [f"#{name} = {toml_value(value, key)}" for name, key, value in _defaults(ScheduleConfig)]
    lines += _keys(WorkflowTable, "#", without={"steps", "jobs"})
    lines += ["", _SCHEDULE]
    lines += _keys(NamedSchedule, "#", {"handler": "thumbnail"}, without=keys_of(ScheduleConfig))
    return "\n".join(lines) + "\n"


def configuration_page() -> str:
    """The reference page of all keys, in Markdown."""
    tables = {f"[{name}]": section for name, section in SECTIONS.items()} | {
        "[handlers.NAME]": HandlerConfig,
        "[handlers.NAME] of a program": CommandConfig,
        "[handlers.NAME], also the options of `@handler`": Policy,
        "[handlers.NAME] and [workflows.NAME]": ScheduleConfig,
        "[pools.NAME], or a handler with a pool of its own": PoolConfig,
        "[limits.NAME]": LimitConfig,
        "[workflows.NAME]": WorkflowTable,
        "[schedules.NAME]": NamedSchedule,
        "[webhooks.NAME]": WebhookConfig,
    }
    lines = ["# Configuration", "", "Every key; `[defaults]` takes those of handlers and pools."]
    for title, table in tables.items():
        texts = meanings(table)
        lines += ["", f"## {title}", "", "| key | value | default | meaning |", "|---|---|---|---|"]
        for name, key, value in _defaults(table):
            expects = key.expects if isinstance(key, Validator) else "a table"
            default = "" if name in REQUIRED.get(table, ()) else f"`{toml_value(value, key)}`"
            lines.append(f"| `{name}` | {expects} | {default} | {texts[name]} |")
    return "\n".join(lines) + "\n"


def _keys(
    table: type[ConfigValue],
    mark: str = "",
    examples: dict[str, Any] | None = None,
    without: Container[str] = (),
) -> Iterator[str]:
    texts = meanings(table)
    for name, key, value in _defaults(table):
        if name in without:
            continue
        yield from _comment(texts[name])
        yield f"{mark}{name} = {toml_value((examples or {}).get(name, value), key)}"


def _defaults(table: type[ConfigValue]) -> Iterator[tuple[str, Any, Any]]:
    keys: Keys = keys_of(table)
    for field in msgspec.structs.fields(table):
        name = field.name.rstrip("_")
        if name in keys:
            default = field.default if field.default is not msgspec.NODEFAULT else None
            if field.default_factory is not msgspec.NODEFAULT:
                default = field.default_factory()
            yield name, keys[name], default


def _comment(text: str) -> Iterator[str]:
    return (f"# {line}" for line in textwrap.wrap(text, _COMMENT_WIDTH, break_long_words=False))
