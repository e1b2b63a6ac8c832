"""The availability of the store: outages are logged once, probes are paced."""

from __future__ import annotations

import pytest

from workerd.errors import StoreAway, WrongVersion
from workerd.store.availability import FIRST_PROBE_S, LONGEST_PROBE_S, STARTUP_GRACE_S, StoreAvailability


@pytest.fixture
def availability() -> StoreAvailability:
    """A role's view of the store after the startup grace."""
    made = StoreAvailability("dispatcher")
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


def test_a_store_that_starts_beside_the_role_is_not_logged(capfd: pytest.CaptureFixture[str]) -> None:
    """Within the startup grace an outage is known but neither it nor its end is logged."""
    availability = StoreAvailability("ingester")
    assert availability.lost(WrongVersion())
    assert not availability.available
    assert not availability.logged
    availability.restored()
    assert "store." not in "".join(capfd.readouterr())


def test_an_outage_from_the_start_is_logged_after_the_grace(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """It is the same outage, seen again later."""
    monkeypatch.setattr("workerd.store.availability.STARTUP_GRACE_S", -STARTUP_GRACE_S)
    availability = StoreAvailability("ingester")
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
