"""Acts on many jobs through several servers of a Galera cluster, where locks do not reach the others."""

from __future__ import annotations

import threading

import pytest

from tests.support import storing as s
from tests.support.galera import Galera
from workerd.errors import StoreAway
from workerd.job import Status, id_text
from workerd.job_filter import JobFilter
from workerd.operations import audit, bulk
from workerd.operations.actor import Actor
from workerd.operations.bulk import Act, Search
from workerd.store import jobs
from workerd.store.base import Store

pytestmark = pytest.mark.slow

ANN = Actor("ann", "http")
JOBS = 1200


@pytest.mark.parametrize("act", Act)
def test_each_job_is_changed_once(act: Act, cluster: Galera, opened: s.Opening) -> None:
    """What certification refuses is done again as a whole: counts and audit agree with the rows."""
    stores = [opened(url) for url in cluster.urls(f"bulk_{act}")]
    stores[0].migrate()
    made = stores[0].run(lambda tx: jobs.insert(tx, [jobs.NewJob(handler="h") for _ in range(JOBS)]))
    if act is Act.RETRY:
        for claim in iter(lambda: s.claims(stores[0], "h", 500), []):
            s.close(stores[0], [s.outcome(one, Status.FAILURE, error="503") for one in claim])
    done: list[int] = []

    def work(store: Store) -> None:
        search = Search(act, JobFilter(handler="h"))
        search.finish(store.read)
        count = 0
        for refs in search.slices():
            while True:
                try:
                    count += store.run(
                        lambda tx, refs=refs: bulk.change(tx, ANN, search, refs), retry_for_s=60
                    )
                    break
                except StoreAway:
                    continue
        done.append(count)

    threads = [threading.Thread(target=work, args=(store,)) for store in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(done) == JOBS
    status = "cancelled" if act is Act.CANCEL else "new"
    query = "SELECT COUNT(*) FROM workerd_jobs WHERE status = %s"
    cluster.catch_up()
    for store in stores:
        assert s.value(store, query, status) == JOBS
    acts = stores[1].read(lambda tx: audit.list_(tx, limit=500)).audit
    named = [one for act in acts for one in act["detail"]["ids"]]
    assert sorted(named) == sorted(id_text(one.id) for one in made)
