"""Figures are read once a poll, however many ask."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from tests.support.gateway_state import gateway_state
from workerd.config.model import Config, StoreConfig
from workerd.document_types import Document
from workerd.errors import StoreAway
from workerd.gateway.stats import StatsCache
from workerd.operations import stats
from workerd.store.base import Tx


@pytest.mark.usefixtures("store")
def test_many_who_ask_read_the_store_once(store_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those who ask later than a poll get new figures, or the ones that are being read."""
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
        assert asyncio.run(ask(0)) == 2
    finally:
        backend.close()


@pytest.mark.usefixtures("store")
def test_many_who_ask_share_an_error(store_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that hangs keeps each of them waiting once, not all of them one after the other."""
    config, reads = Config(store=StoreConfig(url=store_url)), []

    def read(tx: Tx, config: Config) -> Document:
        reads.append(1)
        raise StoreAway("no answer")

    async def ask() -> list[Document | BaseException]:
        cache = StatsCache(backend, config)
        leaving = asyncio.create_task(cache.read())
        many = asyncio.gather(*(cache.read() for _ in range(20)), return_exceptions=True)
        await asyncio.sleep(0)
        leaving.cancel()
        answers = await many
        assert len(reads) == 1
        with pytest.raises(StoreAway):
            await cache.read()
        return answers

    monkeypatch.setattr(stats, "read", read)
    backend = gateway_state(config).backend
    try:
        assert [type(answer) for answer in asyncio.run(ask())] == [StoreAway] * 20
        assert len(reads) == 2
    finally:
        backend.close()


def _polling(config: Config, poll: float) -> object:
    return msgspec.structs.replace(config.dispatcher, poll=poll)
