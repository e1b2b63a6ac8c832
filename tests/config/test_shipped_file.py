"""etc/workerd.toml is what it claims to be: every key, with its default."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import msgspec
import pytest

from workerd.config.build import load
from workerd.config.model import Config, HandlerConfig, Policy, PoolConfig, ScheduleConfig, WorkflowConfig
from workerd.config.schema import HANDLER, POLICY, POOL, SCHEDULE, SECTIONS, WORKFLOW, Nested
from workerd.config.validators import NAME_LIMIT
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


def test_the_shipped_file_says_every_key_of_every_section() -> None:
    """No key is left for the reader to find in the source."""
    values = tomllib.loads(SHIPPED.read_text())
    for name, (_, keys) in SECTIONS.items():
        assert list(values[name]) == list(keys)
    assert values["defaults"] == {}


def test_the_examples_say_every_key_with_its_default(tmp_path: Path) -> None:
    """Handlers, pools and workflows, which have no defaults of their own to show, are shown by example."""
    file = tmp_path / "workerd.toml"
    file.write_text(with_examples())
    values = tomllib.loads(file.read_text())
    assert set(values["handlers"]["thumbnail"]) == set(HANDLER)
    assert set(values["pools"]["images"]) == set(POOL)
    assert {*values["workflows"]["delete_user"], "jobs"} == set(WORKFLOW)

    config = load(file, {})
    handler = config.handlers["thumbnail"]
    assert Policy(**handler.policy_own) == Policy()
    assert handler == HandlerConfig(
        name="thumbnail", call="shop.images:thumbnail", pool="thumbnail", policy_own=handler.policy_own
    )
    pool = config.pools["images"]
    assert pool == PoolConfig(name="images", handlers=pool.handlers)
    assert config.workflows["delete_user"].schedule == ScheduleConfig()


def test_every_key_is_explained() -> None:
    """A comment stands above each key, or above the group that it belongs to."""
    lines = with_examples().splitlines()
    keys = [n for n, line in enumerate(lines) if re.match(r"[a-z_]+ = ", line)]
    unexplained = [lines[n] for n in keys if not lines[n - 1].startswith("# ")]
    # Keys that follow another of their group, such as `fail_on` and `cron` of a workflow.
    assert [line.split()[0] for line in unexplained if "find_images" not in line] == [
        "fail_on", "ignore", "call", "pool", "call", "pool", "steps", "cron", "timezone", "misfire",
        "overlap",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("made", "keys", "besides"),
    [
        *((made, keys, set()) for made, keys in SECTIONS.values()),
        (Policy, POLICY, set()),
        (ScheduleConfig, SCHEDULE, set()),
        (PoolConfig, POOL, {"name", "handlers"}),
        (WorkflowConfig, {"jobs": WORKFLOW["jobs"]}, {"name", "step_names", "schedule"}),
    ],
)  # fmt: skip
def test_the_schema_and_the_model_have_the_same_keys(
    made: Any, keys: dict[str, Any], besides: set[str]
) -> None:
    """A key is in both or in neither, and nested tables too."""
    fields = {f.name: f.type for f in msgspec.structs.fields(made)}
    assert fields.keys() - besides == keys.keys() - besides
    for name, kind in keys.items():
        if isinstance(kind, Nested):
            assert set(kind.keys) == set(fields[name].__struct_fields__)


def test_the_sections_are_those_of_the_model() -> None:
    """Nothing can be configured that is not kept, and the other way round."""
    rest = {"pools", "workflows", "notes"}
    assert set(SECTIONS) == set(Config.__struct_fields__) - rest


def test_names_have_one_limit() -> None:
    """What the configuration accepts fits a row."""
    assert NAME_LIMIT == JOB_NAME_LIMIT
