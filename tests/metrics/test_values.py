"""Metrics that handlers define: files that outlive the workers of a slot."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from prometheus_client import Counter
from prometheus_client.mmap_dict import mmap_key
from prometheus_client.parser import text_string_to_metric_families

from workerd.metrics import exposition, values

HANDLER = """
import sys
from pathlib import Path
from workerd.metrics import values
values.install()
import prometheus_client
thumbnails = prometheus_client.Counter("shop_thumbnails", "made", ["size"])
sizes = prometheus_client.Histogram("shop_bytes", "size", buckets=(10, 100))
queue = prometheus_client.Gauge("shop_queue", "left", multiprocess_mode="livesum")
for slot in sys.argv[2:]:
    values.enter(Path(sys.argv[1]), slot)
    thumbnails.labels("small").inc(2)
    sizes.observe(50)
    queue.set(3)
"""


def in_child(work: Callable[[], None]) -> None:
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def samples(folder: Path) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    text, _ = exposition.render(exposition.collect([folder]), {})
    return {
        (s.name, frozenset(s.labels.items())): s.value
        for family in text_string_to_metric_families(text.decode())
        for s in family.samples
    }


def key(name: str, **labels: str) -> tuple[str, frozenset[tuple[str, str]]]:
    return name, frozenset(labels.items())


def test_series_are_named_as_the_library_names_them() -> None:
    """Our key of a series is the library's, character by character."""
    for given in (
        ("m", "m_total", ("b", "a"), ("1", 'é"'), "What it is."),
        ("m", "m", (), (), ""),
    ):
        assert values.key_of(*given) == mmap_key(*given)


def test_a_library_imported_earlier_is_included(tmp_path: Path) -> None:
    """`install` comes before or after the import, and what is defined then has its file."""
    script = HANDLER.replace("import sys\n", "import prometheus_client\nimport sys\n", 1)
    subprocess.run([sys.executable, "-c", script, str(tmp_path), "w-0"], check=True)
    assert samples(tmp_path)[key("shop_thumbnails_total", size="small")] == 2


def counting(folder: Path, slot: str, name: str = "shop_errors") -> Counter:
    """In a child: a counter as a handler defines it, in the files of a slot."""
    values.install()
    counter = Counter(name, "What went wrong.", ["code"])
    values.enter(folder, slot)
    return counter


def test_a_recycled_worker_continues_the_counts_of_its_slot(tmp_path: Path) -> None:
    """It is no reset, and leaves no second file."""

    def work() -> None:
        counting(tmp_path, "w-0").labels("7").inc(2)

    in_child(work)
    before = sorted(path.name for path in tmp_path.iterdir())
    in_child(work)
    assert samples(tmp_path)[key("shop_errors_total", code="7")] == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_a_metric_of_a_handler_is_summed_over_all_workers(tmp_path: Path) -> None:
    """Plain prometheus-client in a handler's module; recycled workers leave no file behind."""
    for _ in range(3):
        subprocess.run(
            [sys.executable, "-c", HANDLER, str(tmp_path), "thumb_nail/0"],
            check=True,
            cwd=Path(__file__).parents[2],
        )
    subprocess.run(
        [sys.executable, "-c", HANDLER, str(tmp_path), "thumb_nail/1"],
        check=True,
        cwd=Path(__file__).parents[2],
    )
    found = samples(tmp_path)
    assert found[key("shop_thumbnails_total", size="small")] == 8
    assert found[key("shop_bytes_bucket", le="100.0")] == 4
    assert found[key("shop_bytes_bucket", le="10.0")] == 0
    assert found[key("shop_queue")] == 6
    assert len(list(tmp_path.iterdir())) == 6


def test_a_forked_child_does_not_write_into_its_parents_file(tmp_path: Path) -> None:
    """A handler may fork: what the child counts is its own."""

    def work() -> None:
        counter = counting(tmp_path, "a").labels("7")
        counter.inc()
        in_child(lambda: counter.inc(100))
        counter.inc()

    in_child(work)
    assert samples(tmp_path)[key("shop_errors_total", code="7")] == 2


def test_the_size_of_a_file_is_bounded(tmp_path: Path) -> None:
    """Endless label values of a handler end at the file's limit."""

    def work() -> None:
        counter = counting(tmp_path, "a")
        for number in range(9000):
            counter.labels(f"{number}" * 10).inc()

    in_child(work)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= values.MAX_FILE_BYTES
    assert len(samples(tmp_path)) > 1000


def test_without_disk_space_only_the_metrics_are_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk is no reason for a process to die."""

    def full(fd: int, start: int, size: int) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "posix_fallocate", full)

    def work() -> None:
        counting(tmp_path, "a").labels("0").inc()

    in_child(work)
    assert samples(tmp_path) == {}


@pytest.mark.parametrize("rubbish", [b"", b"\xff" * 100, b"\x00\x01\x00\x00" + bytes(5000), b"x" * 70000])
def test_a_damaged_file_hides_no_other(tmp_path: Path, rubbish: bytes) -> None:
    """Neither the reader nor the next process of the slot stumbles over it."""

    def work(slot: str) -> None:
        counting(tmp_path, slot).labels("0").inc()

    in_child(lambda: work("a"))
    (tmp_path / "counter_b.db").write_bytes(rubbish)
    assert samples(tmp_path)[key("shop_errors_total", code="0")] == 1
    in_child(lambda: work("b"))
    assert samples(tmp_path)[key("shop_errors_total", code="0")] >= 1
