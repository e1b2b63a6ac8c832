"""CPU time of a job in a pool and its workers; printed, not checked (`pytest -s`)."""

from __future__ import annotations

import os
import time
from pathlib import Path

from tests.pool.harness import PoolHarness, make_pool
from workerd.outcome import Reason

JOBS = int(os.environ.get("POOL_JOBS", "20000"))
_TICK = os.sysconf("SC_CLK_TCK")


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / _TICK


def test_no_op_jobs_through_one_pool_and_two_workers(tmp_path: Path) -> None:
    """Every job has exactly one outcome, over real sockets."""
    with PoolHarness(tmp_path, make_pool("noop", workers=2)) as harness:
        harness.up()
        workers = {harness.run("noop").pid for _ in range(50)} | {w["pid"] for w in harness.info()["workers"]}
        assert harness.child is not None
        pids = [harness.child.pid, *filter(None, workers)]
        claims = [harness.claim("noop") for _ in range(JOBS)]
        before, outcomes = [cpu_seconds(pid) for pid in pids], harness.ingester.outcomes
        outcomes.clear()
        began = time.monotonic()
        harness.give(*claims)
        harness.until(lambda: len(outcomes) >= JOBS, within=100)
        took = time.monotonic() - began
        used = [cpu_seconds(pid) - b for pid, b in zip(pids, before, strict=True)]
        print(
            f"\n{JOBS / took:,.0f} jobs/s; CPU per job: pool {used[0] / JOBS * 1e6:.1f} µs, "
            f"workers {sum(used[1:]) / JOBS * 1e6:.1f} µs; {harness.dispatcher.demands} demands"
        )
        assert {o.reason for o in outcomes} == {Reason.OK}
        assert sorted(o.id for o in outcomes) == sorted(c.id for c in claims)
