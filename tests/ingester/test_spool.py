"""The spool: what was acknowledged comes back, in order, whatever became of the process and the disk."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.outcomes import outcome
from workerd.ingester import spool as module
from workerd.ingester.spool import Damage, Record, Spool, pack, records
from workerd.outcome import Outcome

LIMIT = 1 << 20


def opened(folder: Path, limit: int = LIMIT) -> Spool:
    spool = Spool(folder / "spool", limit)
    spool.open()
    return spool


def drained(spool: Spool, rows: int = 7) -> list[Outcome]:
    found: list[Outcome] = []
    while batch := spool.peek(rows, 1 << 30):
        found += batch
        spool.advance(len(batch))
    assert spool.empty
    assert (spool.rows, spool.bytes) == (0, 0)
    return found


def files(folder: Path) -> list[Path]:
    return sorted((folder / "spool").glob("*.spool"))


def test_what_is_appended_is_read_in_order_and_then_deleted(tmp_path: Path) -> None:
    """A queue: first in, first out, and no file is left."""
    spool = opened(tmp_path)
    rows = [outcome(payload=str(n).encode()) for n in range(50)]
    assert spool.append(rows[:20]) == 20
    assert spool.append(rows[20:]) == 30
    assert spool.rows == 50
    assert spool.bytes == sum(path.stat().st_size for path in files(tmp_path))
    assert drained(spool) == rows
    assert files(tmp_path) == []


def test_another_process_finds_what_a_dead_one_left(tmp_path: Path) -> None:
    """Nothing but the folder is needed to go on, and new outcomes come behind the old."""
    first, second = [outcome() for _ in range(5)], [outcome() for _ in range(5)]
    opened(tmp_path).append(first)
    spool = opened(tmp_path)
    assert spool.former
    spool.append(second)
    assert drained(spool) == first + second
    assert not spool.former


def test_appending_goes_on_while_the_oldest_is_being_read(tmp_path: Path) -> None:
    """A file that is being read is never written to."""
    spool = opened(tmp_path)
    rows = [outcome() for _ in range(6)]
    spool.append(rows[:4])
    assert spool.peek(2, 1 << 30) == rows[:2]
    spool.append(rows[4:])
    spool.advance(2)
    assert spool.rows == 4
    assert drained(spool) == rows[2:]


def test_what_is_not_advanced_is_read_again_by_the_next_process(tmp_path: Path) -> None:
    """Files go only when everything in them is in the store."""
    spool = opened(tmp_path)
    rows = [outcome() for _ in range(10)]
    spool.append(rows)
    spool.peek(5, 1 << 30)
    spool.advance(5)
    assert drained(opened(tmp_path)) == rows


def test_a_batch_holds_a_job_once_and_no_more_than_it_may_weigh(tmp_path: Path) -> None:
    """Two outcomes of one job are decided by order, which needs two transactions."""
    spool = opened(tmp_path)
    one, two = outcome(), outcome(payload=b"x" * 4000)
    spool.append([one, two, one])
    assert spool.peek(10, 1 << 30) == [one, two]
    assert spool.peek(10, 5000) == [one]
    assert spool.peek(10, 1) == [one]


def test_a_full_spool_takes_what_fits_and_says_so(tmp_path: Path) -> None:
    """The bound holds for the files on disk, and there is room again after the replay."""
    spool = opened(tmp_path, limit=10_000)
    rows = [outcome(payload=b"x" * 900) for _ in range(20)]
    taken = spool.append(rows)
    assert 5 < taken < 12
    assert "full" in spool.trouble
    assert spool.append(rows[taken:]) == 0
    assert sum(path.stat().st_size for path in files(tmp_path)) <= 10_000
    assert drained(spool) == rows[:taken]
    assert spool.append(rows[taken : taken + 5]) == 5
    assert spool.trouble == ""


@pytest.mark.parametrize("call", ["open", "write", "fdatasync", "fsync"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
def test_a_disk_that_fails_counts_as_full_and_what_was_durable_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int
) -> None:
    """Nothing of a failed append is counted; the next one that works is complete."""
    spool = opened(tmp_path)
    before, after = [outcome() for _ in range(3)], [outcome() for _ in range(3)]
    spool.append(before)
    spool.peek(1, 1 << 30)  # the next append begins a new file

    def failing(*args: Any) -> Any:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(module, "os", Hooked({call: failing}))
        assert spool.append([outcome()]) == 0
        assert os.strerror(code) in spool.trouble
    assert spool.append(after) == 3
    assert spool.trouble == ""
    assert drained(spool) == before + after


def test_a_write_that_is_cut_short_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that fills up in the middle of a write: its half is cut off again."""
    spool = opened(tmp_path)
    before, after = [outcome() for _ in range(3)], [outcome() for _ in range(3)]
    spool.append(before)
    size = files(tmp_path)[0].stat().st_size
    calls: list[int] = []

    def short(fd: int, data: memoryview) -> int:
        calls.append(fd)
        if len(calls) > 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return os.write(fd, data[:10])

    with monkeypatch.context() as patch:
        patch.setattr(module, "os", Hooked({"write": short}))
        assert spool.append(after) == 0
    assert files(tmp_path)[0].stat().st_size == size
    assert spool.append(after) == 3
    assert drained(spool) == before + after


class Hooked:
    """The module `os` with some calls replaced, or every one watched."""

    def __init__(self, replaced: dict[str, Callable[..., Any]]) -> None:
        self._replaced = replaced

    def __getattr__(self, name: str) -> Any:
        return self._replaced.get(name) or getattr(os, name)


# -- death at any instruction


SYSTEM_CALLS = ("open", "write", "fdatasync", "fsync", "close", "ftruncate", "listdir")


def work_until(folder: Path, calls: int, partly: bool, report: int) -> None:
    """In a child: append and replay, report what is durable, die at system call number `calls`."""
    left = [calls]

    def deadly(name: str) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            left[0] -= 1
            if left[0] == 0:
                if name == "write" and partly:
                    os.write(args[0], args[1][: len(args[1]) // 2])
                os._exit(9)
            return getattr(os, name)(*args)

        return call

    vars(module)["os"] = Hooked({name: deadly(name) for name in SYSTEM_CALLS})
    vars(module)["FILE"] = 2000
    real_unlink = Path.unlink

    def unlink(path: Path, missing_ok: bool = False) -> None:
        left[0] -= 1
        if left[0] == 0:
            os._exit(9)
        real_unlink(path, missing_ok)

    Path.unlink = unlink  # type: ignore[method-assign]
    spool = opened(folder)
    number = 0
    for turn in range(8):
        rows = [outcome(payload=str(number + n).encode(), payload_type="bytes") for n in range(4)]
        number += 4
        assert spool.append(rows) == 4
        os.write(report, f"+{number}\n".encode())
        if turn % 3 == 2:
            batch = spool.peek(3, 1 << 30)
            os.write(report, f"-{len(batch)}\n".encode())
            spool.advance(len(batch))
    os._exit(0)


@pytest.mark.parametrize("partly", [False, True])
def test_killed_at_any_system_call_it_loses_nothing_that_was_acknowledged(
    tmp_path: Path, partly: bool
) -> None:
    """Whatever was durable and not in the store yet is found by the next process, in order."""
    for calls in range(1, 200):
        folder = tmp_path / str(calls)
        folder.mkdir()
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                work_until(folder, calls, partly, writer)
            finally:
                os._exit(1)
        os.close(writer)
        with os.fdopen(reader) as told:
            lines = told.read().split()
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        assert code in (0, 9)
        durable = max([int(line[1:]) for line in lines if line[0] == "+"], default=0)
        replayed = sum(int(line[1:]) for line in lines if line[0] == "-")
        found = [int(row.payload or b"") for row in drained(opened(folder))]
        assert found == sorted(found)
        assert set(range(replayed, durable)) <= set(found)
        assert list((folder / "spool").glob("damaged-*")) == []
        if code == 0:
            return
    raise AssertionError("the child never came to its end")


# -- damage


def test_a_torn_tail_is_cut_quietly(tmp_path: Path) -> None:
    """Every length that an unfinished write may have leaves the whole records before it."""
    rows = [outcome() for _ in range(3)]
    opened(tmp_path).append(rows)
    path = files(tmp_path)[0]
    whole = path.read_bytes()
    size = len(whole) // 3
    for cut in range(2 * size + 1, 3 * size):
        path.write_bytes(whole[:cut])
        spool = opened(tmp_path)
        assert spool.peek(10, 1 << 30) == rows[:2]
        assert list((tmp_path / "spool").glob("damaged-*")) == []
    path.write_bytes(whole[: 2 * size] + bytes(300))  # blocks that were allocated and never written
    assert opened(tmp_path).peek(10, 1 << 30) == rows[:2]
    assert list((tmp_path / "spool").glob("damaged-*")) == []


def test_a_damaged_record_is_skipped_and_kept_for_a_person(tmp_path: Path) -> None:
    """The records before and behind it are replayed."""
    rows = [outcome() for _ in range(3)]
    opened(tmp_path).append(rows)
    path = files(tmp_path)[0]
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    assert drained(opened(tmp_path)) == [rows[0], rows[2]]
    (copy,) = (tmp_path / "spool").glob("damaged-*")
    assert len(copy.read_bytes()) == len(data) // 3


def test_a_record_that_is_no_outcome_is_skipped(tmp_path: Path) -> None:
    """A checksum says that bytes are as they were written, not that they can be understood."""
    rows = [outcome() for _ in range(2)]
    spool = opened(tmp_path)
    spool.append(rows)
    spool.close()
    path = files(tmp_path)[0]
    seed = int(path.name.split("-")[1].split(".")[0], 16)
    path.write_bytes(pack(b"\x93nonsense", seed) + path.read_bytes())
    assert drained(opened(tmp_path)) == rows


def test_a_file_that_cannot_be_read_is_left_aside(tmp_path: Path) -> None:
    """The others are replayed."""
    rows = [outcome() for _ in range(2)]
    opened(tmp_path).append(rows[:1])
    spool = opened(tmp_path)
    spool.append(rows[1:])
    first = files(tmp_path)[0]
    first.unlink()
    first.mkdir()
    assert drained(spool) == rows[1:]


@given(
    bodies=st.lists(st.binary(max_size=60), max_size=8),
    seed=st.integers(0, 2**32 - 1),
    hits=st.lists(st.tuples(st.integers(0, 2000), st.integers(1, 255)), max_size=4),
    cut=st.integers(0, 40),
)
def test_whatever_is_damaged_every_other_record_is_found(
    bodies: list[bytes], seed: int, hits: list[tuple[int, int]], cut: int
) -> None:
    """Flipped bytes and a cut end cost the records that they touch and no others."""
    packed = [pack(body, seed) for body in bodies]
    data = bytearray(b"".join(packed))
    data = data[: max(0, len(data) - cut)]
    for at, flip in hits:
        if at < len(data):
            data[at] ^= flip
    whole, at = [], 0
    for body, record in zip(bodies, packed, strict=True):
        if bytes(data[at : at + len(record)]) == record:
            whole.append(body)
        at += len(record)
    found = list(records(bytes(data), seed))
    assert [item.body for item in found if isinstance(item, Record)] == whole
    stretches = [(item.start, item.end) for item in found if isinstance(item, Damage)]
    assert all(start < end for start, end in stretches)


# -- a disk that forgets what was not synced


class Disk:
    """A model of a power cut: what a file held at its last fsync stays, of the rest anything may."""

    def __init__(self) -> None:
        self.synced: dict[str, int] = {}

    def fdatasync(self, fd: int) -> None:
        os.fdatasync(fd)
        self.synced[os.readlink(f"/proc/self/fd/{fd}")] = os.fstat(fd).st_size

    def power_cut(self, folder: Path, keep: float, garbage: bytes) -> None:
        for path in files(folder):
            synced = self.synced.get(str(path), 0)
            size = path.stat().st_size
            kept = synced + int((size - synced) * keep)
            path.write_bytes(path.read_bytes()[:kept] + (garbage if size > synced else b""))


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.integers(1, 9)),
        st.tuples(st.just("unsynced"), st.integers(1, 9)),
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
    disk = Disk()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "FILE", 1500)
        patch.setattr(module, "os", Hooked({"fdatasync": disk.fdatasync}))
        spool = opened(folder)
        number, owed = 0, list[int]()
        for step, count in steps:
            rows = [outcome(payload=str(number + n).encode()) for n in range(count)]
            if step == "append":
                assert spool.append(rows) == count
                owed += range(number, number + count)
                number += count
            elif step == "unsynced":
                patch.setattr(module, "os", Hooked({"fdatasync": _fails, "ftruncate": _fails}))
                assert spool.append(rows) == 0
                patch.setattr(module, "os", Hooked({"fdatasync": disk.fdatasync}))
                number += count
            elif step == "replay":
                batch = spool.peek(count, 1 << 30)
                spool.advance(len(batch))
                done = {int(row.payload or b"") for row in batch}
                owed = [n for n in owed if n not in done]
            else:
                if step == "power cut":
                    disk.power_cut(folder, count / 100, garbage)
                spool = opened(folder)
        found = [int(row.payload or b"") for row in drained(opened(folder))]
    assert set(owed) <= set(found)
    assert [n for n in found if n in set(owed)] == owed
    assert set(found) <= set(range(number))


def _fails(*args: Any) -> Any:
    raise OSError(errno.EIO, os.strerror(errno.EIO))
