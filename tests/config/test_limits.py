"""[limits.NAME] and [groups]: what is taken, what is refused, and which of two configurations holds."""

from __future__ import annotations

from pathlib import Path

import pytest

from workerd.config.build import load
from workerd.config.limit_config import LimitConfig
from workerd.config.model import Config
from workerd.errors import ConfigError
from workerd.rate_limit import Rate

HANDLER = '[handlers.charge]\ncall = "shop:charge"\nlimit = "stripe"\n'
SECOND = 1_000_000
MINUTE = 60 * SECOND


def read(folder: Path, text: str) -> Config:
    file = folder / "workerd.toml"
    file.write_text(text)
    return load(file, {})


def test_a_limit_and_its_handler(tmp_path: Path) -> None:
    """The rate's number is its burst unless another is given."""
    config = read(
        tmp_path,
        HANDLER + '[limits.stripe]\nconcurrency = 20\ngroup_concurrency = 2\nrate = "100/1m"\nburst = 10\n'
        'group_rate = "5/s"\n[groups]\n"tenant-7" = 3\n"é \' x" = 100\n',
    )
    limit = config.limits["stripe"]
    assert (limit.concurrency, limit.group_concurrency) == (20, 2)
    assert limit.starts == Rate(100, MINUTE, 10)
    assert limit.group_starts == Rate(5, SECOND, 5)
    assert config.groups == {"tenant-7": 3, "é ' x": 100}
    assert config.handlers["charge"].rated


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ('[limits.stripe]\nrate = "0/1m"', r"limits\.stripe\.rate: expected a rate"),
        ('[limits.stripe]\nrate = "1/32d"', r"limits\.stripe\.rate: expected a rate"),
        ('[limits.stripe]\nrate = "1/0s"', r"limits\.stripe\.rate: expected a rate"),
        ('[limits.stripe]\nrate = "a/1s"', r"limits\.stripe\.rate: expected a rate"),
        ("[limits.stripe]\nrate = 5", r"limits\.stripe\.rate: expected a rate"),
        ("[limits.stripe]\nconcurrency = 0", r"limits\.stripe\.concurrency: expected a whole number from 1"),
        ("[limits.stripe]\ngroup_concurrency = 1.5", r"group_concurrency: expected a whole number from 1"),
        ("[limits.stripe]\nburst = 5", "expected concurrency, group_concurrency, rate or group_rate"),
        ("[limits.stripe]\nconcurency = 5", 'nearest is "concurrency"'),
        ("[limits.strip]\nconcurrency = 5", r'charge\.limit: expected a limit that is configured, got "str'),
        (
            "[limits.stripe]\nconcurrency = 5\n[groups]\na = 0",
            r"groups\.a: expected a whole number from 1 to 100",
        ),
        ("[limits.stripe]\nconcurrency = 5\n[groups]\na = 101", r"groups\.a: expected a whole number from 1"),
        ('[limits.stripe]\nconcurrency = 5\n[groups]\n"" = 1', r'groups\."": expected text of 1 to 191'),
        ("limits = 5", "limits: expected a table"),
    ],
)
def test_wrong_limits_are_refused(tmp_path: Path, wrong: str, message: str) -> None:
    """With the key and what was expected."""
    text = f"{wrong}\n{HANDLER}" if wrong.startswith("limits") else f"{HANDLER}{wrong}\n"
    with pytest.raises(ConfigError, match=message):
        read(tmp_path, text)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            'unique_for = "0s"',
            r'unique_for: expected a duration from "1s" to "366d", or "", got',
        ),
        ('unique_for = "400d"', r"h\.unique_for: expected a duration from"),
        ('unique_for = "1h"\non_conflict = "replace"', r'h\.unique_for: requires on_conflict "keep"'),
        (f'group = "{"x" * 192}{{a}}"', r"h\.group: expected at most 191 characters beside the vars, got"),
    ],
)
def test_keys_that_no_enqueue_would_take_are_refused(tmp_path: Path, keys: str, message: str) -> None:
    """Before jobs are."""
    with pytest.raises(ConfigError, match=message):
        read(tmp_path, f'[handlers.h]\ncall = "shop:charge"\n{keys}\n')


def test_of_two_limits_the_lower_of_each_value_holds() -> None:
    """Also where one has no such value."""
    one = LimitConfig(concurrency=5, rate=Rate(10, MINUTE, 10), burst=4)
    other = LimitConfig(concurrency=9, group_concurrency=1, rate=Rate(100, MINUTE, 100), burst=8)
    lower = LimitConfig(concurrency=5, group_concurrency=1, rate=Rate(10, MINUTE, 4))
    assert one.lower(other) == other.lower(one) == lower
    assert one.lower(one) == one


def test_a_burst_that_is_not_given_counts_as_the_number_of_the_rate() -> None:
    """Else the burst of a fast limit would hold for the slow one of another node, and of its groups."""
    slow = LimitConfig(rate=Rate(5, SECOND, 5), group_rate=Rate(2, SECOND, 2))
    fast = LimitConfig(rate=Rate(100, SECOND, 100), burst=100, group_rate=Rate(60, SECOND, 60))
    for lower in (slow.lower(fast), fast.lower(slow)):
        assert (lower.starts, lower.group_starts) == (Rate(5, SECOND, 5), Rate(2, SECOND, 2))
        assert lower.shown_burst is None
    tight = LimitConfig(group_rate=Rate(60, SECOND, 60), burst=1)
    for lower in (slow.lower(fast).lower(tight), tight.lower(slow.lower(fast))):
        assert (lower.starts, lower.group_starts) == (Rate(5, SECOND, 5), Rate(2, SECOND, 1))
    few = LimitConfig(rate=Rate(100, SECOND, 100), burst=3)
    assert slow.lower(few).starts == Rate(5, SECOND, 3)
    assert slow.lower(few).shown_burst == 3


def test_a_burst_without_a_rate_is_noted(tmp_path: Path) -> None:
    """It is of the rates; with either it counts."""
    named = '[handlers.h]\ncall = "m:f"\nlimit = "l"\n[limits.l]\nconcurrency = 1\nburst = 5\n'
    assert read(tmp_path, named).notes == (
        "limits.l.burst has no effect, as the limit has neither rate nor group_rate",
    )
    for rate in ("rate", "group_rate"):
        assert read(tmp_path, f'{named}{rate} = "5/1s"\n').notes == ()


def test_a_limit_that_no_handler_names_is_noted(tmp_path: Path) -> None:
    """It is allowed, but hardly meant; so are weights where no handler takes turns."""
    config = read(tmp_path, "[limits.idle]\nconcurrency = 1\n[groups]\na = 2\n")
    assert config.notes == (
        "[limits.idle] has no effect, as no handler names it",
        "[groups] has no effect, as no handler is fair",
    )
    assert read(tmp_path, '[handlers.h]\ncall = "m:f"\nfair = true\n[groups]\na = 2\n').notes == ()
