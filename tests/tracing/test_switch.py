"""Where traces are made: by configuration, by the program's choice, by the environment, or nowhere."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.collector import Collector
from tests.support.daemon import ROOT
from tests.support.eventually import eventually
from workerd.client import Client
from workerd.config.build import load
from workerd.config.otel_config import OtelConfig
from workerd.degradations import degradations
from workerd.errors import ConfigError
from workerd.tracing import switch

ON = OtelConfig(enabled=True)


def test_without_the_extra_nothing_is_traced(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A program that asks for it is told; one whose configuration does goes on, and `check` says so."""
    for name in ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name.startswith("opentelemetry") else found(name)
    )
    assert switch.of_enqueues(None, ON) is None
    assert switch.of_runs(ON) is None
    assert switch.of_exports(ON, "node", print) is None
    switch.prepare_runs(ON)
    with pytest.raises(ConfigError, match=r"pip install \"workerd\[otel\]\""):
        Client(f"sqlite:///{tmp_path}/store.db", otel=True)
    monkeypatch.setattr("workerd.degradations.become_subreaper", lambda: None)  # it would last
    (tmp_path / "workerd.toml").write_text("[otel]\nenabled = true\n")
    config = load(tmp_path / "workerd.toml", {})
    assert any(sentence.startswith("otel.enabled: ") for sentence in degradations(config))


def test_it_is_off_unless_it_is_switched_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """The program's own choice comes first."""
    assert switch.of_enqueues(None, OtelConfig()) is None
    assert switch.of_enqueues(False, ON) is None
    assert switch.of_runs(None) is None
    assert switch.of_exports(OtelConfig(), "node", print) is None
    monkeypatch.setenv(switch.VARIABLE, "true")
    assert switch.in_environment()
    monkeypatch.setenv(switch.VARIABLE, "false")
    assert not switch.in_environment()


PROGRAM = """
import json, sqlite3, sys
from workerd import enqueue
connection = sqlite3.connect(sys.argv[1])
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
if sys.argv[2] == "own":
    trace.set_tracer_provider(TracerProvider())
with trace.get_tracer("shop").start_as_current_span("request") as span:
    done = enqueue(connection, "noop")
connection.commit()
context = span.get_span_context()
print(json.dumps([done.id, f"{context.trace_id:032x}"]))
"""


@pytest.mark.parametrize("provider", ["own", "none"])
def test_a_transaction_is_traced_by_its_environment(store: Any, store_url: str, provider: str) -> None:
    """By the program's own provider, within its current span, or by one that is made of OTEL_*."""
    if not store_url.startswith("sqlite"):
        pytest.skip("a connection of either kind goes the same way")
    collector = Collector()
    path = store_url.removeprefix("sqlite://")
    env = {**os.environ, switch.VARIABLE: "true", "PYTHONPATH": str(ROOT), **collector.environment()}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, path, provider], env=env, capture_output=True, text=True, check=True
    )
    job, trace = json.loads(done.stdout)
    with contextlib.closing(sqlite3.connect(path)) as connection:
        [meta] = connection.execute("SELECT meta FROM workerd_jobs").fetchone()
    traced = json.loads(meta)["traceparent"].split("-")[1]
    if provider == "own":
        assert traced == trace
        assert collector.requests == 0
    else:
        eventually(lambda: collector.spans, within=30)
        assert [span.job for span in collector.spans] == [job]
        assert collector.spans[0].ref.trace == traced
    collector.close()
