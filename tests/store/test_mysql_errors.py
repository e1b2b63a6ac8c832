"""Error codes by what they mean: a row's fault is refused, lost locks run again, all else is the store's."""

from __future__ import annotations

import pytest

from workerd.errors import StoreAway, StoreBusy, StoreRefused
from workerd.store.mysql_errors import BUSY, LOCKS, REFUSED, classify
from workerd.store.session import LockLost

GROUP_REPLICATION = [3100, *range(3781, 3784), *range(3796, 3800)]
OFFLINE_OR_READ_ONLY = [1290, 1792, 1836, 3032, 3168, 3989]
PROXIES_AND_FORKS = [1105, 8022, 9001, 9002, 9003, 9005, 9007]
RIGHTS_AND_TABLES = [1044, 1045, 1049, 1054, 1142, 1143, 1146, 1227, 1370]
RESOURCES = [1021, 1037, 1040, 1041, 1114, 1203, 1206, 1226]
UNKNOWN = [1064, 1235, 4999, 12345]


@pytest.mark.parametrize(
    "code",
    [
        *GROUP_REPLICATION,
        *OFFLINE_OR_READ_ONLY,
        *PROXIES_AND_FORKS,
        *RIGHTS_AND_TABLES,
        *RESOURCES,
        *UNKNOWN,
        1047,
        1180,
    ],
)
def test_what_no_row_can_cause_is_away(code: int) -> None:
    """Listed or not: a good outcome must survive a code that nobody has heard of."""
    error = classify(code, "the server's words")
    assert type(error) is StoreAway
    assert error.code == code
    assert error.answered
    assert str(error) == "the server's words"


@pytest.mark.parametrize("code", [0, 1053, 1927, 2003, 2006, 2013, 3169])
def test_a_broken_connection_is_away_without_an_answer(code: int) -> None:
    """Nothing may be said about what the server would have answered."""
    error = classify(code, "gone")
    assert type(error) is StoreAway
    assert not error.answered


@pytest.mark.parametrize("code", sorted(REFUSED))
def test_a_rows_fault_is_refused(code: int) -> None:
    """Constraints, data and types: repeating the statement would fail again."""
    assert type(classify(code, "")) is StoreRefused


@pytest.mark.parametrize("code", sorted(LOCKS))
def test_lost_locks_run_again(code: int) -> None:
    """The whole transaction, whatever took its locks."""
    assert type(classify(code, "")) is LockLost


@pytest.mark.parametrize("code", sorted(BUSY))
def test_a_stopped_statement_is_busy(code: int) -> None:
    """The server answers, it only took too long."""
    error = classify(code, "")
    assert type(error) is StoreBusy
    assert error.answered


def test_an_error_during_commit_that_is_a_lost_certification_runs_again() -> None:
    """1180 with the engine's 149 is a deadlock; with any other number the store is at fault."""
    assert type(classify(1180, 'Got error 149 "Lock deadlock; Retry transaction" during COMMIT')) is LockLost
    assert type(classify(1180, 'Got error 5 "Input/output error" during COMMIT')) is StoreAway
