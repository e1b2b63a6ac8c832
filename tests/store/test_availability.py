"""The availability of the store: outages are logged once, probes are paced."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from workerd.errors import CommitUnknown, StoreAway, WrongVersion
from workerd.store import availability as module
from workerd.store.availability import (
    FIRST_PROBE_S,
    LONGEST_PROBE_S,
    STARTUP_GRACE_S,
    StoreAvailability,
    advice,
)
from workerd.store.base import Store


@pytest.fixture
def unused(tmp_path: Path, opened: Callable[..., Store]) -> Store:
    """A store of which only the name of its server matters here."""
    return opened(f"sqlite:///{tmp_path}/unused.db")


@pytest.fixture
def availability(unused: Store) -> StoreAvailability:
    """A role's view of the store after the startup grace."""
    made = StoreAvailability("dispatcher", unused)
    made.restored()
    return made


def test_an_outage_is_logged_once_and_its_end_once(
    availability: StoreAvailability, capfd: pytest.CaptureFixture[str]
) -> None:
    """However often it is probed, an outage is one event, and so is its end."""
    assert availability.lost(StoreAway("gone", 2003))
    assert not availability.lost(StoreAway("still gone", 2003))
    assert not availability.available
    assert str(availability.error) == "still gone"
    assert availability.restored()
    assert not availability.restored()
    assert availability.available
    logged = "".join(capfd.readouterr())
    assert logged.count("store.unavailable") == 1
    assert logged.count("store.available") == 1


def test_a_store_that_starts_beside_the_role_is_not_logged(
    unused: Store, capfd: pytest.CaptureFixture[str]
) -> None:
    """Within the startup grace an outage is known but neither it nor its end is logged."""
    availability = StoreAvailability("ingester", unused)
    assert availability.lost(WrongVersion())
    assert not availability.available
    assert not availability.logged
    availability.restored()
    assert "store." not in "".join(capfd.readouterr())


def test_an_outage_from_the_start_is_logged_after_the_grace(
    unused: Store, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """It is the same outage, seen again later."""
    monkeypatch.setattr("workerd.store.availability.STARTUP_GRACE_S", -STARTUP_GRACE_S)
    availability = StoreAvailability("ingester", unused)
    assert availability.lost(StoreAway("gone"))
    assert availability.logged


def test_probes_slow_down_until_the_store_is_back(availability: StoreAvailability) -> None:
    """The pause doubles up to its longest, and starts over after an outage."""
    first = availability.probe_delay()
    assert FIRST_PROBE_S / 2 <= first <= FIRST_PROBE_S
    assert max(availability.probe_delay() for _ in range(20)) <= LONGEST_PROBE_S
    assert availability.probe_delay() >= LONGEST_PROBE_S / 2
    availability.restored()
    assert availability.probe_delay() <= FIRST_PROBE_S


def test_another_obstacle_is_another_line(
    availability: StoreAvailability, capfd: pytest.CaptureFixture[str]
) -> None:
    """A server that was down and comes back read-only is told as both, each once."""
    availability.lost(StoreAway("refused", 2003))
    read_only = StoreAway("The store db1:3306 is read-only", 1290, answered=True)
    for _ in range(3):
        availability.lost(read_only)
        availability.lost(StoreAway("refused", 2003))
    assert "".join(capfd.readouterr()).count("store.unavailable") == 2


def test_a_store_that_comes_and_goes_is_one_state(
    availability: StoreAvailability, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often, it is at most said twice, and its last end when it lasts."""
    for _ in range(20):
        availability.lost(StoreAway("denied", 1142, answered=True))
        assert availability.restored()
    logged = "".join(capfd.readouterr())
    assert logged.count("store.unavailable") == 2
    assert logged.count("store.available") == 1
    assert availability.available
    monkeypatch.setattr(module, "SETTLING_S", 0.0)
    assert not availability.restored()
    assert "".join(capfd.readouterr()).count("store.available") == 1


def test_a_cluster_without_its_majority_is_named(availability: StoreAvailability) -> None:
    """Its reads answer and its COMMIT does not, which no single frozen server does."""
    hung = CommitUnknown("timed out", 2013)
    availability.lost(hung)
    assert str(availability.error) == "timed out"
    availability.reads_answer()
    availability.lost(hung)
    assert "reads answer, COMMIT does not: has the cluster lost its majority?" in str(availability.error)
    assert availability.error is not None
    assert "does not answer" not in advice(availability.error)


def test_a_change_of_the_server_names_both(
    availability: StoreAvailability, unused: Store, capfd: pytest.CaptureFixture[str]
) -> None:
    """Once, when the new one does real work."""
    unused.server = "db1:3306 (8.4.3, server id 1)"
    availability.restored()
    availability.lost(StoreAway("gone"))
    unused.server = "db2:3306 (8.4.3, server id 2)"
    availability.restored()
    availability.restored()
    logged = "".join(capfd.readouterr())
    assert logged.count("store.server_changed") == 1
    assert "db1:3306" in logged
    assert "db2:3306" in logged


def test_no_answer_is_said_only_of_a_store_that_gives_none() -> None:
    """What a person is told to look at depends on it."""
    assert "does not answer" in advice(StoreAway("Connection refused", 2003))
    told = advice(StoreAway("The store db1:3306 is read-only", 1290, answered=True))
    assert told.startswith("The store db1:3306 is read-only; work resumes by itself")
    assert "does not answer" not in advice(StoreAway("DELETE command denied", 1142, answered=True))
