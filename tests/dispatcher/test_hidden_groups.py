"""Groups whose jobs stand between floods of others, when all were enqueued before the node started."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from tests.support.dispatching import MakeHarness, insert_jobs, node_config
from tests.support.rows import Rows
from workerd.config.handler_config import HandlerConfig, PoolConfig
from workerd.dispatcher.limited_handlers import LimitedHandlers
from workerd.fairness import Waiting
from workerd.job import AttemptRef
from workerd.store.base import Store


def test_three_groups_share_what_is_started(make_harness: MakeHarness, store: Store, store_url: str) -> None:
    """Equally, although the one in the middle is neither among the oldest jobs nor among the newest."""
    groups = {job: group for group in "abc" for job in insert_jobs(store, "h", 600, group_key=group)}
    handler = HandlerConfig(name="h", call="x:y", pool="p", fair=True)
    harness = make_harness(pools={"p": PoolConfig(name="p", handlers=(handler,))})
    harness.start()
    pool = harness.pool("h", name="p").connect()

    def claim(count: int) -> Counter[str]:
        """The groups of so many more jobs."""
        before = set(pool.claims)
        while len(pool.claims) < len(before) + count:
            known = len(pool.claims)
            pool.demand(10)
            harness.until(lambda n=known: len(pool.claims) > n)  # type: ignore[misc]
        return Counter(groups[ref[0]] for ref in pool.claims if ref not in before)

    harness.until(lambda: harness.is_up and harness.settled())
    harness.serve(0.2)  # every task was run once
    claim(10)
    parked = "SELECT 1 FROM workerd_jobs WHERE group_key = 'b' AND queue IS NOT NULL LIMIT 1"
    harness.until(lambda: Rows(store_url).sql(parked))
    claim(30)  # one may have been under way
    shares = claim(240)
    assert min(shares[group] for group in "abc") >= 70, shares


def test_a_more_urgent_job_that_is_found_is_the_first_of_its_queue(tmp_path: Path) -> None:
    """By the first ones claims go to the queues whose turn it is."""
    handler = HandlerConfig(name="h", call="x:y", pool="p", fair=True)
    pools = {"p": PoolConfig(name="p", handlers=(handler,))}
    limited = LimitedHandlers(node_config(tmp_path, "sqlite:///none", pools=pools))
    early, late, urgent = (
        Waiting(priority, run_at, AttemptRef(run_at.encode(), 1))
        for priority, run_at in ((10, "2026-01-01"), (10, "2026-01-03"), (5, "2026-01-02"))
    )
    for found, first in (([early, late], early), ([urgent], urgent), ([late], urgent)):
        limited.found("h", {"a": found})
        assert limited._memory["h"].heads == {"a": first}
