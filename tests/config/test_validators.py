"""Durations and sizes."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workerd.config import address_validators
from workerd.config import validators as v
from workerd.config.quantities import duration, duration_literal, size, size_literal
from workerd.config.wrong_value import shown
from workerd.errors import InvalidValue
from workerd.host import processors
from workerd.metrics import families
from workerd.text import line


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("250ms", 0.25),
        ("30s", 30.0),
        ("5m", 300.0),
        ("2h", 7200.0),
        ("7d", 604800.0),
        ("1.5s", 1.5),
        ("0s", 0.0),
        (" 30 s ", 30.0),
        ("30", 30.0),
        (30, 30.0),
        (0.5, 0.5),
        (0, 0.0),
    ],
)
def test_durations(value: object, seconds: float) -> None:
    """A duration is a number with a unit, or plain seconds."""
    assert duration(value) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "value",
    ["", "s", "5 parsecs", "-1s", "1h30m", "1e3s", "٣s", "30S", "inf", True, None, -1, math.nan, math.inf,
     [30], "99999999999999999999d", 10**400],
)  # fmt: skip
def test_no_durations(value: object) -> None:
    """Anything else is refused with the expected and the given value."""
    with pytest.raises(ValueError, match=r"expected a duration .*, got "):
        duration(value)


@pytest.mark.parametrize(
    ("value", "count"),
    [
        ("64KiB", 65536),
        ("512MiB", 512 << 20),
        ("1GiB", 1 << 30),
        ("2TiB", 2 << 40),
        ("0", 0),
        ("1.5KiB", 1536),
        ("12B", 12),
        (4096, 4096),
        (0, 0),
    ],
)
def test_sizes(value: object, count: int) -> None:
    """A size is a number with a binary unit, or plain bytes."""
    assert size(value) == count


@pytest.mark.parametrize(
    "value", ["", "64KB", "64kib", "-1KiB", True, None, 0.5, -1, "0.3B", math.nan, 1 << 60]
)
def test_no_sizes(value: object) -> None:
    """Decimal units, halves of a byte and negative numbers are refused."""
    with pytest.raises(ValueError, match=r"expected a (size|whole number of bytes).*, got "):
        size(value)


@given(st.integers(0, 10**9))
def test_duration_literal_is_read_back(millis: int) -> None:
    """A displayed duration parses to the same one."""
    assert duration(duration_literal(millis / 1000)) == pytest.approx(millis / 1000)


@given(st.integers(0, 1 << 50))
def test_size_literal_is_read_back(count: int) -> None:
    """A displayed size parses to the same one."""
    assert size(size_literal(count)) == count


@given(st.text() | st.floats() | st.integers() | st.lists(st.text()) | st.booleans())
def test_shown_values_are_one_short_printable_line(value: object) -> None:
    """A message shows any value shortened and without terminal escapes."""
    text = shown(value)
    assert len(text) < 700
    assert text == line(text)


def test_shown_values_hold_no_password() -> None:
    """A password in a URL is not shown, also where a URL does not belong."""
    for url in ("mysql://u:hunter2@h/d", "mysql://u:a@hunter2@h/d", "mysql://h/d?password=hunter2&x=1"):
        assert "hunter2" not in shown(url)


def test_workers_may_follow_the_processors() -> None:
    """At least one, and no more than this process may use."""
    assert v.workers.convert("auto") == processors()
    assert v.workers.convert(7) == 7


@pytest.mark.parametrize("value", ["Auto", "", "2", 0, 1001, True, 1.0, None])
def test_other_numbers_of_workers_are_refused(value: object) -> None:
    """With both forms that are expected."""
    with pytest.raises(InvalidValue, match='a whole number from 1 to 1000, or "auto"'):
        v.workers.convert(value)


@pytest.mark.parametrize(
    "name", ["time", "level", "event", "process", "exception", "error", "handler", "pool", "job", "le"]
)
def test_no_label_takes_a_name_of_workerds_own(name: str) -> None:
    """It would overwrite a field of the log, or stand for another thing in some metrics than in others."""
    with pytest.raises(InvalidValue, match=f"that workerd does not use itself, .*{name}"):
        v.labels({"env": "prod", name: "x"})


def test_the_names_of_workerds_own_hold_every_label_of_its_metrics() -> None:
    """A new one is to be refused from its first day."""
    assert {name for family in families.ALL for name in family.labels} <= v.RESERVED_LABELS


@pytest.mark.parametrize(
    "value",
    ["http://[::1", "http://::1]/", "https://h:x/", "https://h:0/", "https://", "ftp://h/", "https://u@h/"],
)
def test_no_addresses_of_http(value: str) -> None:
    """Whatever is wrong with it is an error of the configuration."""
    with pytest.raises(InvalidValue, match="expected an address such as"):
        address_validators.http_url(value)
