"""The metrics: names, numbers that outlive processes, and what a scrape shows."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from prometheus_client.mmap_dict import mmap_key
from prometheus_client.parser import text_string_to_metric_families

from workerd.metrics import exposition, values
from workerd.metrics import families as metrics_families
from workerd.metrics import values as metrics_values

HANDLER = """
import sys
from pathlib import Path
from workerd import metrics
metrics.install()
import prometheus_client
thumbnails = prometheus_client.Counter("shop_thumbnails", "made", ["size"])
sizes = prometheus_client.Histogram("shop_bytes", "size", buckets=(10, 100))
queue = prometheus_client.Gauge("shop_queue", "left", multiprocess_mode="livesum")
for slot in sys.argv[2:]:
    metrics.enter(Path(sys.argv[1]), slot)
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
    text, _ = exposition.render(exposition.collect(folder), {})
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


def test_a_library_that_was_imported_earlier_is_taken_too(tmp_path: Path) -> None:
    """`install` comes before or after the import, and what is defined then has its file."""
    script = HANDLER.replace("import sys\n", "import prometheus_client\nimport sys\n", 1)
    subprocess.run([sys.executable, "-c", script, str(tmp_path), "w-0"], check=True)
    assert samples(tmp_path)[key("shop_thumbnails_total", size="small")] == 2


def test_a_restarted_process_goes_on_counting_where_its_slot_stopped(tmp_path: Path) -> None:
    """A restart of a role is no reset, and leaves no second file."""

    def work() -> None:
        metrics_values.enter(tmp_path, "ingester")
        counter = metrics_families.Counter(metrics_families.ATTEMPTS)
        counter.add(("a", "ok", "true"), 2)
        histogram = metrics_families.Histogram(metrics_families.INGEST_BATCH)
        counts = histogram.buckets()
        counts[2] = 3
        histogram.add((), counts, 12)

    in_child(work)
    before = sorted(path.name for path in tmp_path.iterdir())
    in_child(work)
    found = samples(tmp_path)
    assert found[key("workerd_attempts_total", handler="a", outcome="ok", success="true")] == 4
    assert found[key("workerd_ingest_batch_bucket", le="2.0")] == 0
    assert found[key("workerd_ingest_batch_bucket", le="5.0")] == 6
    assert found[key("workerd_ingest_batch_bucket", le="+Inf")] == 6
    assert found[key("workerd_ingest_batch_count")] == 6
    assert found[key("workerd_ingest_batch_sum")] == 24
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_what_a_handler_defines_itself_is_shown_over_all_workers(tmp_path: Path) -> None:
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
        metrics_values.enter(tmp_path, "a")
        counter = metrics_families.Counter(metrics_families.STORE_ERRORS)
        counter.add(("1213",), 1)
        in_child(lambda: counter.add(("1213",), 100))
        counter.add(("1213",), 1)

    in_child(work)
    assert samples(tmp_path)[key("workerd_store_errors_total", code="1213")] == 2


def test_a_file_is_bounded_and_what_is_beyond_it_costs_nobody(tmp_path: Path) -> None:
    """Endless label values of a handler end at the file's limit."""

    def work() -> None:
        metrics_values.enter(tmp_path, "a")
        counter = metrics_families.Counter(metrics_families.STORE_ERRORS)
        for number in range(9000):
            counter.add((f"{number}" * 10,), 1)

    in_child(work)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= values.LIMIT
    assert len(samples(tmp_path)) > 1000


def test_a_folder_that_cannot_be_written_costs_only_the_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk is no reason for a process to die."""

    def full(fd: int, start: int, size: int) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "posix_fallocate", full)

    def work() -> None:
        metrics_values.enter(tmp_path, "a")
        metrics_families.Counter(metrics_families.STORE_ERRORS).add(("0",), 1)

    in_child(work)
    assert samples(tmp_path) == {}


@pytest.mark.parametrize("rubbish", [b"", b"\xff" * 100, b"\x00\x01\x00\x00" + bytes(5000), b"x" * 70000])
def test_a_damaged_file_hides_no_other(tmp_path: Path, rubbish: bytes) -> None:
    """Neither the reader nor the next process of the slot stumbles over it."""

    def work(slot: str) -> None:
        metrics_values.enter(tmp_path, slot)
        metrics_families.Counter(metrics_families.STORE_ERRORS).add(("0",), 1)

    in_child(lambda: work("a"))
    (tmp_path / "counter_b.db").write_bytes(rubbish)
    assert samples(tmp_path)[key("workerd_store_errors_total", code="0")] == 1
    in_child(lambda: work("b"))
    assert samples(tmp_path)[key("workerd_store_errors_total", code="0")] >= 1


def test_a_scrape_shows_what_the_supervisor_knows(tmp_path: Path) -> None:
    """Restarts, workers, quarantine and the lease come from its answer, with the labels of the node."""
    status = {
        "roles": {
            "dispatcher": {"lease_left": 21.5},
            "ingester": {"pid": os.getpid(), "restart_reasons": {"signal": 2}},
        },
        "pools": {
            "mail": {"quarantined": True, "workers": {"idle": 1, "busy": 3}, "restart_reasons": {}},
            "image": {"quarantined": False, "workers": [{"state": "busy"}, {"state": "busy"}]},
        },
    }
    families = [
        *exposition.from_status(status),
        *exposition.processes({"ingester": os.getpid(), "gone": 2**22}),
    ]
    text, content_type = exposition.render(families, {"env": "prod"})
    found = {
        (s.name, frozenset(s.labels.items())): s.value
        for family in text_string_to_metric_families(text.decode())
        for s in family.samples
    }
    assert "text/plain" in content_type
    assert found[key("workerd_restarts_total", process="ingester", reason="signal", env="prod")] == 2
    assert found[key("workerd_quarantined", pool="mail", env="prod")] == 1
    assert found[key("workerd_quarantined", pool="image", env="prod")] == 0
    assert found[key("workerd_workers", pool="mail", state="busy", env="prod")] == 3
    assert found[key("workerd_workers", pool="image", state="busy", env="prod")] == 2
    assert found[key("workerd_lease_seconds", env="prod")] == 21.5
    assert found[key("workerd_process_rss_bytes", process="ingester", env="prod")] > 1e6
    assert found[key("workerd_process_cpu_seconds_total", process="ingester", env="prod")] > 0


def test_every_family_is_exported_under_its_own_name() -> None:
    """The names that dashboards rely on are the ones that Prometheus sees."""
    for definition in metrics_families.ALL:
        if definition.kind == "histogram":
            continue
        family = exposition.gauge(definition, {tuple("x" for _ in definition.labels): 1.0})
        text, _ = exposition.render([family], {})
        assert f"\n{definition.name}" in text.decode()
