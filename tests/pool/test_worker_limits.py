"""A worker that the kernel killed for memory, whose memory it was."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from tests.pool.harness import PoolHarness, make_pool
from tests.support.own_group import enter, limit_file, own_group
from workerd.outcome import Reason


def test_a_worker_killed_for_the_memory_of_the_daemons_own_group_is_out_of_memory(tmp_path: Path) -> None:
    """As in a container: the limit is named, and a later death that has another cause is a crash."""
    with (
        own_group("memory", **{limit_file("memory"): str(200 << 20)}) as folder,
        PoolHarness(tmp_path, make_pool("grows", "pid", "killed"), first=partial(enter, folder)) as harness,
    ):
        outcome = harness.run("grows", mebibytes=600)
        assert outcome.reason is Reason.OOM
        assert "204800 KiB" in (outcome.error or "")
        assert "memory_max" in (outcome.error or "")
        harness.run("pid")
        assert harness.run("killed").reason is Reason.CRASHED
