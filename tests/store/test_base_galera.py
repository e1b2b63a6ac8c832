"""Single statements on a Galera cluster."""

from __future__ import annotations

import pytest

from tests.support.galera import Galera
from tests.support.storing import Opening
from workerd.store import jobs

pytestmark = pytest.mark.slow


def test_nothing_is_announced_before_all_servers_agree(cluster: Galera, opened: Opening) -> None:
    """Others do not see it earlier than its writer: a claim begun then would find nothing."""
    store = opened(cluster.urls("early")[0])
    store.migrate()
    sent: list[bool] = []
    store.alone(lambda tx: jobs.insert_alone(tx, jobs.NewJob(handler="h"), lambda: sent.append(True)))
    assert not sent
