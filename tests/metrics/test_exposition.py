"""The text of a scrape."""

from __future__ import annotations

import os

from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families

from workerd.metrics import exposition, families


def samples(
    collected: list[Metric], labels: dict[str, str] | None = None
) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    text, content_type = exposition.render(collected, labels or {})
    assert "text/plain" in content_type
    return {
        (s.name, frozenset(s.labels.items())): s.value
        for family in text_string_to_metric_families(text.decode())
        for s in family.samples
    }


def key(name: str, **labels: str) -> tuple[str, frozenset[tuple[str, str]]]:
    return name, frozenset(labels.items())


def test_a_scrape_shows_the_counters_of_roles() -> None:
    """Counters, and histograms with cumulative buckets."""
    counts = [0.0] * (len(families.INGEST_BATCH.bounds) + 1)
    counts[2], counts[-1] = 3, 1
    found = samples(
        exposition.from_series(
            [
                (families.ATTEMPTS.name, ("a", "ok", "true"), [4]),
                (families.INGEST_BATCH.name, (), [12.0, *counts]),
            ]
        )
    )
    assert found[key("workerd_attempts_total", handler="a", outcome="ok", success="true")] == 4
    assert found[key("workerd_ingest_batch_bucket", le="2.0")] == 0
    assert found[key("workerd_ingest_batch_bucket", le="5.0")] == 3
    assert found[key("workerd_ingest_batch_bucket", le="+Inf")] == 4
    assert found[key("workerd_ingest_batch_count")] == 4
    assert found[key("workerd_ingest_batch_sum")] == 12


def test_a_scrape_shows_the_status_of_the_supervisor() -> None:
    """Restarts, workers, quarantine and the lease come from its answer, with the labels of the node."""
    status = {
        "roles": {
            "dispatcher": {"lease_left": 21.5},
            "ingester": {"pid": os.getpid(), "restart_reasons": {"signal": 2}},
        },
        "spool": {"bytes": 4096, "rows": 3},
        "pools": {
            "mail": {"quarantined": True, "workers": {"idle": 1, "busy": 3}, "restart_reasons": {}},
            "image": {"quarantined": False, "stale": True, "workers": [{"state": "busy"}, {"state": "busy"}]},
        },
    }
    collected = [
        *exposition.from_status(status),
        *exposition.processes({"ingester": os.getpid(), "gone": 2**22}, {}),
    ]
    found = samples(collected, {"env": "prod"})
    assert found[key("workerd_restarts_total", process="ingester", reason="signal", env="prod")] == 2
    assert found[key("workerd_quarantined", pool="mail", env="prod")] == 1
    assert found[key("workerd_quarantined", pool="image", env="prod")] == 0
    assert found[key("workerd_stale", pool="mail", env="prod")] == 0
    assert found[key("workerd_stale", pool="image", env="prod")] == 1
    assert found[key("workerd_workers", pool="mail", state="busy", env="prod")] == 3
    assert found[key("workerd_workers", pool="image", state="busy", env="prod")] == 2
    assert found[key("workerd_lease_seconds", env="prod")] == 21.5
    assert found[key("workerd_spool_bytes", env="prod")] == 4096
    assert found[key("workerd_process_rss_bytes", process="ingester", env="prod")] > 1e6
    assert found[key("workerd_process_cpu_seconds_total", process="ingester", env="prod")] > 0


def test_every_family_is_exported_under_its_own_name() -> None:
    """The names that dashboards rely on are the ones that Prometheus sees."""
    for definition in families.ALL:
        if definition.kind == "histogram":
            continue
        family = exposition.gauge(definition, {tuple("x" for _ in definition.labels): 1.0})
        text, _ = exposition.render([family], {})
        assert f"\n{definition.name}" in text.decode()
