"""The spool: acknowledged outcomes are replayed in order, whatever happens to process and disk."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import signal
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.outcomes import outcome
from workerd.ingester import spool as spools
from workerd.ingester.spool import LOG_BYTES, Spool
from workerd.outcome import Outcome

LIMIT = 16 << 20
ANY = 1 << 30


def opened(folder: Path, limit: int = LIMIT) -> Spool:
    spool = Spool(folder / "spool", limit)
    spool.open()
    return spool


def left_by_a_dead(folder: Path) -> Path:
    """A folder with what would be on disk if the process that uses `folder` were killed now."""
    copy = folder.with_name(f"{folder.name}-after")
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(folder, copy)
    return copy


def drained(spool: Spool, rows: int = 7) -> list[Outcome]:
    found: list[Outcome] = []
    while batch := spool.peek(rows, ANY):
        found += batch
        spool.advance(len(batch))
    assert spool.empty
    assert (spool.rows, spool.bytes) == (0, 0)
    return found


def numbered(first: int, count: int, size: int = 0) -> list[Outcome]:
    """Outcomes that can be identified by `numbers_of`."""
    return [outcome(payload=f"{n:06}".encode() + b"x" * size) for n in range(first, first + count)]


def numbers_of(rows: list[Outcome]) -> list[int]:
    return [int((row.payload or b"")[:6]) for row in rows]


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "spool").iterdir())


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in (folder / "spool").iterdir())


def test_appended_outcomes_are_read_in_order_and_then_deleted(tmp_path: Path) -> None:
    """A queue: first in, first out, and no file is left."""
    spool = opened(tmp_path)
    rows = [outcome(payload=str(n).encode()) for n in range(50)]
    assert spool.append(rows[:20]) == 20
    assert spool.append(rows[20:]) == 30
    assert spool.rows == 50
    assert spool.bytes > 50 * 60
    assert drained(spool) == rows
    assert files(tmp_path) == []


def test_another_process_finds_the_spool_of_a_dead_one(tmp_path: Path) -> None:
    """The folder alone suffices to continue; new outcomes come after the old."""
    first, second = [outcome() for _ in range(5)], [outcome() for _ in range(5)]
    opened(tmp_path).append(first)
    spool = opened(left_by_a_dead(tmp_path))
    assert spool.rows == 5
    assert spool.bytes > 0
    spool.append(second)
    assert drained(spool) == first + second


def test_a_closed_spool_is_found_again(tmp_path: Path) -> None:
    """The end of the ingester leaves the files as they are."""
    rows = [outcome() for _ in range(5)]
    spool = opened(tmp_path)
    spool.append(rows)
    spool.close()
    assert drained(opened(tmp_path)) == rows


def test_appends_continue_while_the_oldest_file_is_read(tmp_path: Path) -> None:
    """Outcomes that arrive during a replay are replayed after it."""
    spool = opened(tmp_path)
    rows = [outcome() for _ in range(6)]
    spool.append(rows[:4])
    assert spool.peek(2, ANY) == rows[:2]
    spool.append(rows[4:])
    spool.advance(2)
    assert spool.rows == 4
    assert drained(spool) == rows[2:]


def test_unadvanced_outcomes_are_read_again(tmp_path: Path) -> None:
    """By this process, which may have written a part of it to the store, and by the next one."""
    spool = opened(tmp_path)
    rows = [outcome() for _ in range(10)]
    spool.append(rows)
    assert spool.peek(5, ANY) == rows[:5]
    spool.advance(2)
    assert spool.peek(5, ANY) == rows[2:7]
    assert drained(opened(left_by_a_dead(tmp_path)))[-8:] == rows[2:]
    assert drained(spool) == rows[2:]


def test_a_batch_holds_a_job_once_and_no_more_than_it_may_weigh(tmp_path: Path) -> None:
    """Two outcomes of one job are decided by order, which needs two transactions."""
    spool = opened(tmp_path)
    one, two = outcome(), outcome(payload=b"x" * 4000)
    spool.append([one, two, one])
    assert spool.peek(10, ANY) == [one, two]
    assert spool.peek(10, 5000) == [one]
    assert spool.peek(10, 1) == [one]


def test_an_append_is_synced_before_it_returns(tmp_path: Path) -> None:
    """SQLite syncs its log at every COMMIT in this mode, and only in this (law 6)."""
    spool = opened(tmp_path)
    spool.append([outcome()])
    (file,) = spool._files
    assert file._db.execute("PRAGMA journal_mode").fetchone() == (b"wal",)
    assert file._db.execute("PRAGMA synchronous").fetchone() == (2,)


# -- bounds


def test_a_full_spool_takes_what_fits_and_reports_it(tmp_path: Path) -> None:
    """The bound holds for the outcomes, and there is room again after the replay."""
    spool = opened(tmp_path, limit=10_000)
    rows = [outcome(payload=b"x" * 900) for _ in range(20)]
    taken = spool.append(rows)
    assert 5 < taken < 12
    assert "full" in spool.trouble
    assert spool.append(rows[taken:]) == 0
    assert spool.bytes <= 10_000
    assert drained(spool) == rows[:taken]
    assert spool.append(rows[taken : taken + 5]) == 5
    assert spool.trouble == ""


def test_a_spool_of_zero_bytes_accepts_nothing(tmp_path: Path) -> None:
    """`ingester.spool = 0` turns it off."""
    spool = opened(tmp_path, limit=0)
    assert spool.append([outcome()]) == 0
    assert spool.empty
    assert files(tmp_path) == []


def test_the_disk_is_used_no_more_than_the_limit_and_the_log(tmp_path: Path) -> None:
    """However often it fills up and is replayed in part, without ever becoming empty."""
    spool = opened(tmp_path, limit=4 << 20)
    for _ in range(6):
        while spool.append([outcome(payload=b"x" * 20_000) for _ in range(50)]):
            pass
        assert size(tmp_path) <= 1.3 * (4 << 20) + 4 * LOG_BYTES
        while spool.rows > 20:
            spool.advance(len(spool.peek(20, ANY)))
    drained(spool)
    assert files(tmp_path) == []


# -- a disk that fails


@contextlib.contextmanager
def no_file_beyond(limit: int) -> Iterator[None]:
    """Writes past this size fail in the kernel, as on a full disk, in the middle of a write too."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextlib.contextmanager
def no_more_descriptors() -> Iterator[None]:
    """No file can be opened."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("room", [0, 1, 100, 4096, 10_000])
def test_a_full_disk_counts_as_full_and_durable_outcomes_stay(tmp_path: Path, room: int) -> None:
    """A failed append leaves nothing counted or stored; the next successful one is complete."""
    spool = opened(tmp_path)
    before, after = [outcome() for _ in range(3)], [outcome() for _ in range(3)]
    spool.append(before)
    log_size = max(path.stat().st_size for path in (tmp_path / "spool").iterdir())
    with no_file_beyond(log_size + room):
        assert spool.append([outcome(payload=b"x" * 50_000)]) == 0
    assert "cannot be written" in spool.trouble
    assert spool.rows == 3
    assert drained(opened(left_by_a_dead(tmp_path))) == before
    assert spool.append(after) == 3
    assert spool.trouble == ""
    assert drained(spool) == before + after


@pytest.mark.parametrize("room", [0, 100, 4096, 5000])
def test_a_file_that_cannot_be_created_is_created_later(tmp_path: Path, room: int) -> None:
    """A full disk at the start of an outage costs nothing but the wait."""
    spool = opened(tmp_path)
    rows = [outcome() for _ in range(30)]
    with no_file_beyond(room):
        assert spool.append(rows) == 0
        assert "cannot be written" in spool.trouble
    with no_more_descriptors():
        assert spool.append(rows) == 0
        assert "cannot be written" in spool.trouble
    assert spool.append(rows) == 30
    assert drained(spool) == rows
    assert files(tmp_path) == []


def test_a_full_disk_does_not_stop_the_replay(tmp_path: Path) -> None:
    """Records that cannot be deleted yet are deleted with their file."""
    spool = opened(tmp_path)
    rows = numbered(0, 300, size=40_000)
    for start in range(0, 300, 50):
        assert spool.append(rows[start : start + 50]) == 50
    with no_file_beyond(0):
        assert drained(spool) == rows
    assert files(tmp_path) == []


# -- death at any moment


def work(folder: Path, report: int) -> None:
    """In a child: append and replay, and report what is durable and what was replayed."""
    spool = opened(folder)
    number = 0
    for turn in range(40):
        assert spool.append(numbered(number, 4, size=500)) == 4
        number += 4
        os.write(report, f"+{number}\n".encode())
        if turn % 3 == 2:
            batch = spool.peek(7 if turn % 2 else 100, ANY)
            os.write(report, f"-{len(batch)}\n".encode())
            spool.advance(len(batch))


@pytest.mark.slow
def test_a_kill_at_any_moment_loses_no_acknowledged_outcome(tmp_path: Path) -> None:
    """Whatever was durable and not in the store yet is found by the next process, in order."""
    ends = []
    for number in range(60):
        folder = tmp_path / str(number)
        folder.mkdir()
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                work(folder, writer)
                os._exit(0)
            finally:
                os._exit(1)
        os.close(writer)
        with os.fdopen(reader, "rb", buffering=0) as report:
            reported = b""
            while reported.count(b"\n") < number and (more := report.read(1 << 16)):
                reported += more
            os.kill(pid, signal.SIGKILL)
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            lines = (reported + report.read()).decode().split()
        assert code in (0, -signal.SIGKILL)
        ends.append(len(lines))
        durable = max([int(line[1:]) for line in lines if line[0] == "+"], default=0)
        replayed = sum(int(line[1:]) for line in lines if line[0] == "-")
        found = numbers_of(drained(opened(folder)))
        assert found == sorted(set(found))
        assert set(range(replayed, durable)) <= set(found)
        assert files(folder) == []
    assert len(set(ends)) > 5  # it died at many different points


# -- a disk that loses unsynced writes


def torn(folder: Path, unsynced: bytes) -> Path:
    """What a power cut leaves of `folder` when the next write to its log got as far as `unsynced`."""
    copy = left_by_a_dead(folder)
    for log in (copy / "spool").glob("*-wal"):
        log.write_bytes(log.read_bytes() + unsynced)
    return copy


def test_a_torn_write_is_cut_off(tmp_path: Path) -> None:
    """Whatever part of an unfinished append is on disk, exactly the acknowledged outcomes are found."""
    spool = opened(tmp_path)
    rows = [outcome() for _ in range(3)]
    spool.append(rows)
    (log,) = (tmp_path / "spool").glob("*-wal")
    synced = log.stat().st_size
    spool.append([outcome(payload=b"x" * 9000)])
    written = log.read_bytes()[synced:]
    assert len(written) > 8000
    spool = opened(tmp_path / "again")
    spool.append(rows)
    for cut in [*range(60), *range(60, len(written), 97)]:
        for tail in (b"", bytes(300), b"\xff" * 300):
            found = drained(opened(torn(tmp_path / "again", written[:cut] + tail)))
            assert found == rows, cut


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.integers(1, 9)),
        st.tuples(st.just("refused"), st.integers(1, 9)),
        st.tuples(st.just("replay"), st.integers(1, 9)),
        st.tuples(st.just("restart"), st.just(0)),
        st.tuples(st.just("power cut"), st.integers(0, 100)),
    ),
    max_size=25,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS, garbage=st.binary(max_size=50))
def test_acknowledged_is_durable_against_a_power_cut(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int]], garbage: bytes
) -> None:
    """Every outcome whose append returned is replayed, in order, and nothing that was never sent."""
    folder = tmp_path_factory.mktemp("disk")
    spool = opened(folder)
    number, owed = 0, list[int]()
    for step, count in steps:
        rows = numbered(number, count)
        match step:
            case "append":
                assert spool.append(rows) == count
                owed += range(number, number + count)
                number += count
            case "refused":
                with no_file_beyond(50):
                    assert spool.append(rows) == 0
                number += count
            case "replay":
                batch = spool.peek(count, ANY)
                spool.advance(len(batch))
                owed = [n for n in owed if n not in numbers_of(batch)]
            case "restart":
                folder = left_by_a_dead(folder)
                spool = opened(folder)
            case "power cut":
                folder = torn(folder, garbage * (count // 10))
                spool = opened(folder)
    found = numbers_of(drained(opened(left_by_a_dead(folder))))
    assert set(owed) <= set(found)
    assert [n for n in found if n in set(owed)] == owed
    assert set(found) <= set(range(number))


# -- damage


def closed(folder: Path, rows: list[Outcome]) -> Path:
    """The one file of a spool that holds these rows, not opened by any process."""
    spool = opened(folder)
    for start in range(0, len(rows), 100):
        assert spool.append(rows[start : start + 100]) == len(rows[start : start + 100])
    spool.close()
    (path,) = (folder / "spool").iterdir()
    return path


def overwrite(path: Path, at: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data)


def test_a_damaged_row_is_skipped_and_kept_for_inspection(tmp_path: Path) -> None:
    """The rows before and behind it are replayed, and it is logged once."""
    rows = numbered(0, 3)
    path = closed(tmp_path, rows)
    overwrite(path, path.read_bytes().index(b"000001"), b"000009")
    spool = opened(tmp_path)
    assert spool.peek(10, ANY) == rows[:1]
    assert drained(spool) == [rows[0], rows[2]]
    (copy,) = (tmp_path / "spool").iterdir()
    assert copy.name == "damaged-000000000001-2"
    assert b"000009" in copy.read_bytes()


def test_a_row_that_is_no_outcome_is_skipped(tmp_path: Path) -> None:
    """A checksum shows that bytes are as written, not that they can be decoded."""
    rows = [outcome() for _ in range(2)]
    path = closed(tmp_path, rows)
    with contextlib.closing(sqlite3.connect(path)) as other:
        other.execute("INSERT INTO outcomes VALUES (3, 'x', 'nonsense')")
        other.commit()
    assert drained(opened(tmp_path)) == rows


VERSION_1 = (
    "id", "attempt", "claimed_at", "handler", "status", "reason", "success", "payload", "payload_type",
    "extras", "spawn", "error", "stack", "exit_signal", "exit_code", "run_at", "started_at", "finished_at",
    "usage", "pid", "progress", "note", "next", "next_run_us", "node_id", "request_id", "step", "name",
    "unique_key",
)  # fmt: skip


def test_outcomes_that_version_1_spooled_are_replayed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An upgrade may find them: the store was away when the former daemon was killed."""
    ended = outcome(request_id=b"r" * 16, step=2, name="n", unique_key="k", node_id=b"i" * 16)
    former, spool = Spool(tmp_path, 1 << 20), Spool(tmp_path, 1 << 20)
    former.open()
    with monkeypatch.context() as before:
        before.setattr(
            spools, "_encode", lambda one: msgspec.msgpack.encode([getattr(one, name) for name in VERSION_1])
        )
        assert former.append([ended]) == 1
    former.close()
    spool.open()
    assert spool.peek(10, 1 << 20) == [ended]


@pytest.mark.parametrize("page", [3, 10, -1])
def test_a_damaged_page_costs_its_rows_and_no_others(tmp_path: Path, page: int) -> None:
    """New outcomes go to a new file; the damaged one is kept for inspection."""
    path = closed(tmp_path, numbered(0, 1000, size=60))
    pages = path.stat().st_size // 4096
    overwrite(path, (page % pages) * 4096, b"\xff" * 4096)
    spool = opened(tmp_path)
    found = numbers_of(spool.peek(10_000, ANY))
    spool.advance(len(found))
    if page >= 0:
        assert spool.peek(1, ANY)
    spool.append(numbered(1000, 5))
    found += numbers_of(drained(spool, rows=100))
    assert found == sorted(set(found))
    assert found[-5:] == list(range(1000, 1005))
    assert len(found) > 950
    assert files(tmp_path) == ["damaged-000000000001.db"]
    spool.append(numbered(0, 1))
    assert numbers_of(drained(opened(left_by_a_dead(tmp_path)))) == [0]


def test_a_file_that_is_no_database_is_put_aside(tmp_path: Path) -> None:
    """The next process creates a new one, and the others are replayed."""
    path = closed(tmp_path, numbered(0, 3))
    overwrite(path, 0, b"rubbish" * 20)
    spool = opened(tmp_path)
    assert spool.empty
    assert spool.append(numbered(3, 2)) == 2
    assert numbers_of(drained(spool)) == [3, 4]
    assert files(tmp_path) == ["damaged-000000000001.db"]


def test_an_unreadable_file_is_left_in_place(tmp_path: Path) -> None:
    """The others are replayed; the next process may be able to open it."""
    closed(tmp_path, numbered(0, 2))
    (tmp_path / "spool" / "000000000002.db").mkdir()
    spool = opened(tmp_path)
    spool.append(numbered(2, 2))
    assert numbers_of(drained(spool)) == [0, 1, 2, 3]
    assert files(tmp_path) == ["000000000002.db"]


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(hits=st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=30)), min_size=1, max_size=5))
def test_damage_anywhere_stops_nothing_and_yields_no_false_outcome(
    tmp_path_factory: pytest.TempPathFactory, hits: list[tuple[float, bytes]]
) -> None:
    """No hit at any place ends the process or changes an outcome, and the spool becomes empty."""
    folder = tmp_path_factory.mktemp("damaged")
    rows = numbered(0, 150, size=60)
    path = closed(folder, rows)
    for place, data in hits:
        overwrite(path, int(place * (path.stat().st_size - len(data))), data)
    spool = opened(folder)
    assert spool.append(numbered(150, 3)) == 3
    found = drained(spool)
    assert numbers_of(found)[-3:] == [150, 151, 152]
    assert all(row == rows[number] for row, number in zip(found[:-3], numbers_of(found), strict=False))
