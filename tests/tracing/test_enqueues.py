"""Spans of enqueues by processes of workerd's own, where no collector takes them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.collector import Collector
from tests.support.daemon import Daemon
from tests.support.servers import free_port
from workerd.tracing.enqueues import NOT_TAKEN

CONFIG = '[otel]\nenabled = true\n[handlers.noop]\ncall = "tests.support.handlers:noop"\n'


@pytest.fixture
def node(tmp_path: Path) -> Daemon:
    """A configuration with a migrated store; nothing runs."""
    made = Daemon(tmp_path / "node", f"sqlite:///{tmp_path}/store.db", CONFIG)
    made.cli("migrate")
    return made


def test_a_command_says_once_that_its_span_was_not_taken(node: Daemon) -> None:
    """The job is enqueued, and its id is all that is printed."""
    collector = Collector()
    try:
        collector.answering.clear()
        node.env |= collector.environment()
        done = node.cli("enqueue", "noop")
    finally:
        collector.close()
    assert len(done.stdout.split()) == 1
    assert done.stderr.splitlines() == [NOT_TAKEN]


def test_what_the_sdk_logs_at_each_try_is_not_shown(node: Daemon) -> None:
    """Where nothing listens at the collector's address."""
    node.env["OTEL_EXPORTER_OTLP_ENDPOINT"] = f"http://127.0.0.1:{free_port()}"
    assert set(node.cli("enqueue", "noop").stderr.splitlines()) <= {NOT_TAKEN}
