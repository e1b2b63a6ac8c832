"""Quarantine of a handler that does not load, as an operator sees it, and replacement of grown workers."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support.daemon import Daemon
from tests.support.eventually import eventually
from tests.support.rows import Rows


class QuarantineHarness:
    """A daemon with one handler whose code the test writes."""

    def __init__(self, folder: Path, code: str, keys: str) -> None:
        self.code = folder / "code" / "acceptance_handler.py"
        self.code.parent.mkdir()
        self.write(code)
        url = f"sqlite:///{folder}/store.db"
        config = f"""
            [dispatcher]
            poll = "50ms"
            [handlers.it]
            call = "acceptance_handler:it"
            path = ["{self.code.parent}"]
            {keys}
        """
        self.daemon = Daemon(folder / "node", url, config)
        self.rows = Rows(url)

    def write(self, code: str) -> None:
        fresh = self.code.with_suffix(".new")
        fresh.write_text(code)
        fresh.replace(self.code)

    def pool(self) -> dict[str, object]:
        pool: dict[str, object] = self.daemon.status().get("pools", {}).get("it", {})
        return pool


def test_a_quarantined_pool_is_reported_and_recovers(tmp_path: Path) -> None:
    """Status and `why` name the quarantine and its cause; the waiting job runs once the file is fixed."""
    broken = "raise ValueError('not yet')"
    harness = QuarantineHarness(tmp_path, broken, 'restart = { intensity = 1, period = "60s" }')
    with harness.daemon as daemon:
        job = harness.rows.insert("it", {})
        eventually(lambda: harness.pool().get("quarantined"), within=20, state=daemon.tail)
        assert harness.pool()["state"] == "quarantined"
        table = daemon.cli("status").stdout
        assert "quarantined" in table
        assert "ValueError: not yet" in table
        why = daemon.cli("why", job.hex()).stdout
        assert "The pool it is quarantined here" in why
        assert "ValueError: not yet" in why
        assert harness.rows.last(job)["status"] == "new"
        harness.write("def it(): return 'fixed'")
        eventually(lambda: harness.rows.last(job)["status"] == "completed", within=30, state=daemon.tail)
        eventually(lambda: harness.pool()["state"] == "up", within=10, state=daemon.tail)
        assert not harness.pool()["quarantined"]


@pytest.mark.parametrize(
    ("code", "cause"),
    [
        ("import time\ntime.sleep(1000)", "it took longer than `load_timeout`"),
        ("import os\nos._exit(6)", "it ended with exit status 6"),
        ("import os\nos.kill(os.getpid(), 9)", "it was killed by SIGKILL"),
    ],
)
def test_the_death_of_a_pool_that_loads_its_handlers_is_named(tmp_path: Path, code: str, cause: str) -> None:
    """In the status, by `why` and in the log; also while it is being loaded once more."""
    keys = 'load_timeout = "200ms"\nrestart = { intensity = 1, period = "60s" }'
    harness = QuarantineHarness(tmp_path, code, keys)
    sentence = f"pool:it ended while its handlers were loaded: {cause}"
    with harness.daemon as daemon:
        job = harness.rows.insert("it", {})
        eventually(lambda: harness.pool().get("quarantined"), within=20, state=daemon.tail)
        assert harness.pool()["trouble"] == sentence
        assert f"will be restarted later: {sentence}." in daemon.cli("why", job.hex()).stdout
        assert sentence in next(line for line in daemon.logged().splitlines() if "pool.quarantined" in line)
        restarts = harness.pool()["restarts"]
        troubles: set[object] = set()

        def was_restarted() -> bool:
            troubles.add(harness.pool()["trouble"])
            return bool(harness.pool()["restarts"] != restarts)

        eventually(was_restarted, within=30, state=daemon.tail)
        assert troubles == {sentence}


def test_a_pool_that_is_still_loading_does_not_delay_a_stop(tmp_path: Path) -> None:
    """It has no jobs to wait for, and reads no message before its handlers are there."""
    mark = tmp_path / "loading"
    code = f"import pathlib, time\npathlib.Path({str(mark)!r}).touch()\ntime.sleep(1000)"
    harness = QuarantineHarness(tmp_path, code, 'load_timeout = "10m"')
    harness.daemon.spawn()
    try:
        eventually(mark.exists, state=harness.daemon.tail)
        assert harness.daemon.stop() == 0
        assert "still loading its handlers" in harness.daemon.logged()
    finally:
        harness.daemon.end()


def test_a_retry_of_a_quarantined_pool_leaves_the_node_ready(tmp_path: Path) -> None:
    """The node reports ready during the whole trial start."""
    broken = "import time\ntime.sleep(0.3)\nraise ValueError('not yet')"
    harness = QuarantineHarness(tmp_path, broken, 'restart = { intensity = 1, period = "60s" }')
    with harness.daemon as daemon:
        eventually(lambda: harness.pool().get("quarantined"), within=20, state=daemon.tail)
        before = harness.pool()["restarts"]
        readiness: list[bool] = []

        def was_restarted() -> bool:
            readiness.append(daemon.status()["ready"])
            return bool(harness.pool()["restarts"] > before)

        eventually(was_restarted, within=30, state=daemon.tail)
        assert all(readiness)


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="needs /proc")
def test_a_worker_over_max_rss_is_replaced_right_after_the_job(tmp_path: Path) -> None:
    """`max_rss` is checked after each job, also when jobs follow one another without a pause."""
    code = "import os\nheld = []\ndef it():\n    held.append(b'x' * (12 << 20))\n    return os.getpid()\n"
    harness = QuarantineHarness(tmp_path, code, 'max_rss = "20MiB"')
    with harness.daemon as daemon:
        jobs = [harness.rows.insert("it", {}) for _ in range(6)]
        eventually(
            lambda: all(harness.rows.last(job)["status"] == "completed" for job in jobs), state=daemon.tail
        )
        pids = [harness.rows.last(job)["pid"] for job in jobs]
        assert len(set(pids)) == 3


def test_a_reload_tries_a_quarantined_pool_at_once(tmp_path: Path) -> None:
    """Once its code is mended nobody has to wait for the end of its pause."""
    harness = QuarantineHarness(tmp_path, "raise ValueError", 'restart = { intensity = 1, period = "60s" }')
    with harness.daemon as daemon:
        eventually(lambda: harness.pool().get("quarantined"), within=20, state=daemon.tail)
        job = harness.rows.insert("it", {})
        again = daemon.cli("reload", check=False)
        assert (again.returncode, "pool:it" in again.stderr) == (1, True)
        eventually(lambda: "tried again in" in daemon.cli("status", check=False).stdout)
        harness.write("def it(): return 'fixed'")
        daemon.cli("reload")  # its pause may just have ended: then nothing is left to do
        eventually(lambda: harness.rows.ended(job), state=daemon.tail)
        assert not harness.pool()["quarantined"]
