"""Workers are recycled at their limits, replaced when they die, and given up in a crash loop."""

from __future__ import annotations

import os
import select
import signal
from pathlib import Path

import msgspec
import pytest

from tests.pool.harness import PoolHarness, make_pool
from tests.pool.recorder import Recorder, SilentLog, loaded_here
from tests.runtime.conftest import turn_until
from tests.support.worker import claim_of, forked_worker
from workerd.config.handler_config import Policy, RestartConfig
from workerd.outcome import Reason
from workerd.pool.attempt import AssignedAttempt, KillReason
from workerd.pool.worker_manager import WorkerManager
from workerd.pool.worker_messages import Loaded
from workerd.pool.worker_process import WorkerProcess
from workerd.runtime.loop import Loop


@pytest.mark.parametrize("preload", [True, False])
def test_a_worker_is_recycled_at_max_jobs(tmp_path: Path, preload: bool) -> None:
    """`max_jobs = 1` runs every job in its own process."""
    with PoolHarness(tmp_path, make_pool("pid", max_jobs=1, preload=preload)) as harness:
        pids = [harness.run("pid").pid for _ in range(5)]
        assert len(set(pids)) == 5
        assert harness.info()["strangers_killed"] == 0


def test_a_worker_is_recycled_at_max_rss(tmp_path: Path) -> None:
    """When it has grown by more than that since its fork."""
    with PoolHarness(tmp_path, make_pool("grows", "pid", max_rss=20 << 20)) as harness:
        first = harness.run("pid").pid
        # More than once: what the worker frees of its inherited memory is not growth.
        harness.until(lambda: harness.run("grows", mebibytes=64).pid != first)
        harness.until(lambda: harness.info()["worker_restarts"].get("max_rss"))


def test_an_idle_worker_is_recycled_at_max_age(tmp_path: Path) -> None:
    """Without a job."""
    with PoolHarness(tmp_path, make_pool("pid", max_age=0.3)) as harness:
        harness.run("pid")
        harness.until(lambda: harness.info()["worker_restarts"].get("max_age"))


def test_an_idle_worker_that_dies_is_replaced_without_an_outcome(tmp_path: Path) -> None:
    """No attempt is used."""
    with PoolHarness(tmp_path, make_pool("pid")) as harness:
        first = harness.run("pid")
        assert first.pid is not None
        os.kill(first.pid, signal.SIGKILL)
        second = harness.run("pid")
        assert (second.reason, len(harness.ingester.outcomes)) == (Reason.OK, 2)
        assert second.pid != first.pid


class Replacing(Recorder):
    """A WorkerOwner that has dead workers replaced, as the pool does."""

    manager: WorkerManager

    def on_ready(self, worker: WorkerProcess, loaded: Loaded) -> None:
        self.manager.add_ready(worker)
        self.ready.append(worker)

    def on_death(self, worker: WorkerProcess, attempt: AssignedAttempt | None, status: int) -> None:
        super().on_death(worker, attempt, status)
        self.manager.replace_dead(worker, had_job=attempt is not None)


def test_a_worker_that_reports_its_result_while_it_is_killed_is_replaced_at_once(
    tmp_path: Path, loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Code that ends as its hard deadline passes is no worker that died without a job."""
    monkeypatch.setattr("workerd.pool.worker_manager.worker_main", forked_worker)
    owner = Replacing()
    pool = make_pool("gate")
    manager = owner.manager = WorkerManager(loop, pool, SilentLog(), tmp_path / "metrics", "test")
    manager.start(loaded_here(pool), owner, owner)
    turn_until(loop, lambda: owner.ready)
    worker = owner.ready[0]
    worker.assign(claim_of("gate", {"folder": str(tmp_path)}), Policy(), 1 << 20)
    turn_until(loop, (tmp_path / "gate").exists)
    (tmp_path / "go").touch()
    select.select([worker.channel], [], [], 20)  # its result is there, and not read yet
    worker.kill(KillReason.DEADLINE)
    turn_until(loop, lambda: owner.deaths)
    assert (owner.results, owner.deaths) == ([(1, "returned")], [(None, -signal.SIGKILL)])
    replaced = list(manager.workers)
    manager.close()
    for worker in list(manager.workers.values()):
        worker.kill(KillReason.RETIRED)
    turn_until(loop, lambda: not manager.workers)
    assert (replaced, manager.restarts["no_job"]) == (["test/0"], 0)


def test_a_pool_whose_workers_die_at_once_exits(tmp_path: Path) -> None:
    """After its restart intensity, with its own exit status and the reason."""
    pool = make_pool("noop", init="pool_faults:dies", restart=RestartConfig(intensity=2, period=60.0))
    with PoolHarness(tmp_path, pool) as harness:
        harness.until(lambda: harness.status is not None)
        assert harness.status == 75
        assert harness.beats[-1].state == "failed"
        assert "died without a job" in harness.beats[-1].trouble
        assert "exit status 5 while it loaded its handlers or ran `init`" in harness.beats[-1].trouble
        assert not harness.dispatcher.demand.handlers


def test_the_error_of_a_failing_init_is_the_pools_trouble(tmp_path: Path) -> None:
    """As `workerd status` and `why` show it: on one line; the stack is in the log."""
    pool = make_pool("noop", init="pool_faults:raises", restart=RestartConfig(intensity=1, period=60.0))
    with PoolHarness(tmp_path, pool) as harness:
        harness.until(lambda: harness.status is not None)
        assert harness.beats[-1].trouble.endswith("init failed: RuntimeError: no database today")


@pytest.mark.parametrize("module", ["pool_hangs", "pool_exits", "pool_broken"])
def test_a_pool_whose_workers_cannot_import_exits(tmp_path: Path, module: str) -> None:
    """With `preload = false` the pool is not affected by the import and reports why."""
    pool = make_pool(
        "noop",
        module=module,
        preload=False,
        load_timeout=0.2,
        restart=RestartConfig(intensity=1, period=60.0),
    )
    with PoolHarness(tmp_path, pool) as harness:
        harness.until(lambda: harness.status is not None)
        assert harness.status == 75
        assert harness.beats[-1].trouble


def test_exit_functions_run_when_a_worker_is_recycled_and_at_the_drain(tmp_path: Path) -> None:
    """In each worker, not in the pool."""
    pool = make_pool("pid", module="pool_leaves", max_jobs=1, env={"LEAVES_IN": str(tmp_path)})
    with PoolHarness(tmp_path, pool) as harness:
        first = harness.run("pid").pid
        harness.until((tmp_path / f"left-{first}").exists)
        harness.up()
        harness.until(lambda: harness.info().get("workers") and harness.info()["workers"][0]["pid"] != first)
        last = harness.info()["workers"][0]["pid"]
        harness.drain(5.0)
        harness.until(lambda: harness.status is not None)
        assert sorted(path.name for path in tmp_path.glob("left-*")) == sorted(
            [f"left-{first}", f"left-{last}"]
        )


def test_exit_functions_that_take_too_long_are_cut_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker is killed and replaced."""
    monkeypatch.setattr("workerd.pool.worker_process.RETIRE_TIMEOUT_S", 1.0)
    (tmp_path / "hang").touch()
    pool = make_pool("pid", module="pool_leaves", max_jobs=1, env={"LEAVES_IN": str(tmp_path)})
    with PoolHarness(tmp_path, pool) as harness:
        first = harness.run("pid").pid
        assert harness.run("pid").pid != first
        assert (tmp_path / f"began-{first}").exists()
        assert not (tmp_path / f"left-{first}").exists()


def test_workers_yield_to_pools_and_pools_to_roles(tmp_path: Path) -> None:
    """In processor time, and when memory runs out; a job's own children too."""
    with PoolHarness(tmp_path, make_pool("standing")) as harness:
        worker = msgspec.json.decode(harness.run("standing").payload or b"")
        assert harness.child is not None
        pool = os.getpriority(os.PRIO_PROCESS, harness.child.pid)
        own = os.getpriority(os.PRIO_PROCESS, 0)
        assert own < pool < worker["niceness"] == worker["child"]
        score = int(Path("/proc/self/oom_score_adj").read_text())
        assert int(Path(f"/proc/{harness.child.pid}/oom_score_adj").read_text()) == score
        assert worker["score"] == min(1000, score + 500)
