"""The page of metrics, from the families that `/metrics` exports."""

from __future__ import annotations

from workerd.metrics import families

_HEAD = """# Metrics

`GET /metrics` of the gateway, in the text format of Prometheus. A handler's own metrics, made with `prometheus_client`
in its module, are exported beside these. Alert rules and a Grafana dashboard are in `packaging/compose`.

Counters begin at 0 when the daemon starts. A role that is killed loses what it counted in the last two seconds;
the store has every attempt.

At most {most} handlers have series of their own; those beyond share the label `{other}`.

| metric | kind | labels | meaning |
|---|---|---|---|
"""


def page() -> str:
    """Every family."""
    head = _HEAD.format(most=families.MAX_HANDLERS, other=families.OTHER)
    rows = (
        f"| `{one.name}` | {one.kind} | {', '.join(f'`{label}`' for label in one.labels)} | {one.help} |"
        for one in families.ALL
    )
    return head + "\n".join(rows) + "\n"
