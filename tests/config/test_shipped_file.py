"""etc/workerd.toml lists every key with its default."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from workerd.config.build import load
from workerd.config.config_value import keys_of
from workerd.config.handler_config import CommandConfig, HandlerConfig, Policy, PoolConfig
from workerd.config.model import HANDLER_KEYS, POOL_KEYS, SECTIONS, WEBHOOK_KEYS, WORKFLOW_KEYS
from workerd.config.schedule_config import ScheduleConfig
from workerd.config.text_validators import NAME_LIMIT
from workerd.config.webhook_config import WebhookConfig
from workerd.job import NAME_LIMIT as JOB_NAME_LIMIT

SHIPPED = Path(__file__).parents[2] / "etc" / "workerd.toml"


def with_examples() -> str:
    """The file with its examples switched on."""
    return re.sub(r"^#(?=[^ \n])", "", SHIPPED.read_text(), flags=re.MULTILINE)


def test_the_shipped_file_equals_the_defaults(tmp_path: Path) -> None:
    """Deleting a line of it changes nothing."""
    empty = tmp_path / "empty.toml"
    empty.touch()
    assert load(SHIPPED, {}) == load(empty, {})


def test_the_shipped_file_lists_every_key_of_every_section() -> None:
    """No key is left for the reader to find in the source."""
    values = tomllib.loads(SHIPPED.read_text())
    for name, section in SECTIONS.items():
        assert list(values[name]) == list(keys_of(section))
    assert values["defaults"] == {}


def test_the_examples_say_every_key_with_its_default(tmp_path: Path) -> None:
    """Handlers, pools and workflows, which have no defaults of their own to show, are shown by example."""
    file = tmp_path / "workerd.toml"
    file.write_text(with_examples())
    values = tomllib.loads(file.read_text())
    command_keys = set(keys_of(CommandConfig))
    assert set(values["handlers"]["thumbnail"]) == set(HANDLER_KEYS) - command_keys
    assert set(values["handlers"]["report"]) == command_keys
    assert set(values["pools"]["images"]) == set(POOL_KEYS)
    assert {*values["workflows"]["delete_user"], "jobs"} == set(WORKFLOW_KEYS)

    config = load(file, {})
    handler = config.handlers["thumbnail"]
    assert Policy(**handler.policy_own) == Policy()
    assert handler == HandlerConfig(
        name="thumbnail", call="shop.images:thumbnail", pool="thumbnail", policy_own=handler.policy_own
    )
    command = config.handlers["report"].command
    assert command is not None
    assert command == CommandConfig(command=command.command)
    pool = config.pools["images"]
    assert pool == PoolConfig(name="images", handlers=pool.handlers)
    assert config.workflows["delete_user"].schedule == ScheduleConfig()
    webhook = config.webhooks["ops"]
    assert webhook == WebhookConfig(url=webhook.url, secret_file=webhook.secret_file)
    assert set(values["webhooks"]["ops"]) == set(WEBHOOK_KEYS)


def test_every_key_is_explained() -> None:
    """A comment is above each key; those of a recurring workflow are explained at the handler."""
    lines = with_examples().splitlines()
    keys = [n for n, line in enumerate(lines) if re.match(r"[a-z_]+ = ", line)]
    unexplained = [lines[n].split()[0] for n in keys if not lines[n - 1].startswith("# ")]
    assert unexplained == ["call", "pool", "call", "pool", "steps", "cron", "timezone", "misfire", "overlap"]


def test_names_have_one_limit() -> None:
    """Every accepted value fits a row."""
    assert NAME_LIMIT == JOB_NAME_LIMIT
