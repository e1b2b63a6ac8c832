"""A configuration with each kind of thing that operations work on."""

from __future__ import annotations

import pytest

from workerd.config.handler_config import HandlerConfig, PoolConfig
from workerd.config.model import Config
from workerd.config.schedule_config import ScheduleConfig
from workerd.config.workflow_config import WorkflowConfig
from workerd.operations.actor import Actor


@pytest.fixture
def config() -> Config:
    """One recurring handler, one that is not, one bounded by `max_waiting`, one workflow."""
    beat = HandlerConfig(name="beat", call="m:f", pool="p", schedule=ScheduleConfig(cron="0 * * * *"))
    mail = HandlerConfig(name="mail", call="m:f", pool="p")
    bounded = HandlerConfig(name="bounded", call="m:f", pool="p", max_waiting=2)
    return Config(
        pools={"p": PoolConfig(name="p", handlers=(beat, mail, bounded))},
        workflows={"ship": WorkflowConfig(name="ship", jobs=())},
    )


@pytest.fixture
def actor() -> Actor:
    """Who acts."""
    return Actor("me", "client")
