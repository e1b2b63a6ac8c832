"""Figures are read once a poll, however many ask."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from tests.support.gateway_state import gateway_state
from workerd.config.model import Config, StoreConfig
from workerd.gateway.stats import StatsCache
from workerd.operations import stats


@pytest.mark.usefixtures("store")
def test_many_who_ask_read_the_store_once(store_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those who ask later than a poll get new figures."""
    config = Config(store=StoreConfig(url=store_url))
    read, reads = stats.read, []
    monkeypatch.setattr(stats, "read", lambda tx, config: reads.append(1) or read(tx, config))

    async def ask(poll: float) -> int:
        cache = StatsCache(backend, msgspec.structs.replace(config, dispatcher=_polling(config, poll)))
        before = len(reads)
        await asyncio.gather(*(cache.read() for _ in range(20)))
        await cache.read()
        return len(reads) - before

    backend = gateway_state(config).backend
    try:
        assert asyncio.run(ask(3600)) == 1
        assert asyncio.run(ask(0)) == 21
    finally:
        backend.close()


def _polling(config: Config, poll: float) -> object:
    return msgspec.structs.replace(config.dispatcher, poll=poll)
