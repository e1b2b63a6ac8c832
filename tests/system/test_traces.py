"""Traces of a daemon, as a collector gets them: a span for each enqueue and each run, however it ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.collector import CollectedSpan, Collector, SpanRef
from tests.support.daemon import ROOT, Daemon
from tests.support.eventually import eventually
from tests.support.rows import Rows
from tests.support.servers import free_port

TRACE = "tests.support.trace_handlers"
SECRET = "tok-3141592653"
CALLER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
ON_ONE_ENGINE = pytest.mark.parametrize("store_url", ["sqlite"], indirect=True)
"""Of what no store has a part in."""
LINK = """
[otel]
enabled = true
link = "{link}"
"""
CONFIG = """
[dispatcher]
poll = "50ms"
[defaults]
backoff = {{ first = "0s", jitter = 0.0 }}
redact = ["token"]
max_crashes = 1
[gateway]
listen = "127.0.0.1:{port}"
[pools.many]
workers = 2
[handlers.noop]
call = "{handlers}:noop"
max_jobs = 1
workers = 2
[handlers.own]
call = "{handlers}:child"
init = "{handlers}:own_provider"
max_jobs = 1
[handlers.program]
command = ["/bin/sh", "-c", "printf %s $TRACEPARENT"]
[workflows.pair]
steps = [{{ name = "one", jobs = ["plain"] }}, {{ name = "two", jobs = ["asks"] }}]
"""
HANDLERS = (
    "plain", "child", "async_child", "fails", "asks", "killed", "overdue", "modules", "many", "hold", "large",
    "many_then_killed",
)  # fmt: skip


def configuration(port: int = 0, link: str = "link", more: str = "") -> str:
    config = CONFIG.format(port=port, handlers=TRACE)
    for name in HANDLERS:
        config += f'[handlers.{name}]\ncall = "{TRACE}:{name}"\npool = "many"\n'
        config += 'deadline = "100ms"\nmax_attempts = 1\n' if name == "overdue" else ""
    return config + LINK.format(link=link) + more


@pytest.fixture
def collector() -> Iterator[Collector]:
    made = Collector()
    yield made
    made.close()


def program(code: str, env: dict[str, str]) -> Any:
    """What a program that enqueues prints, JSON."""
    env = {**os.environ, **env, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


ENQUEUES = """
import asyncio, json, sys
from workerd import AsyncClient, Client, JobSpec, enqueue
url, token = sys.argv[1:] if len(sys.argv) > 1 else URL_AND_TOKEN
with Client(url, otel=True) as client:
    ids = {{name: client.enqueue(name).id for name in ("plain", "asks", "killed", "overdue", "program")}}
    ids["child"] = client.enqueue("child", {{"token": token}}).id
    ids["async_child"] = client.enqueue("async_child").id
    ids["fails"] = client.enqueue("fails", {{"token": token}}).id
    ids["given"] = client.enqueue("plain", meta={{"traceparent": "{caller}", "mine": 1}}).id
    ids["text"] = client.enqueue("plain", meta="text").id
    ids["bulk"] = [done.id for done in client.enqueue_many([JobSpec(handler="noop") for _ in range(100)])]
    try:
        client.enqueue("missing", {{"token": token}})
    except Exception:
        pass

async def more():
    async with AsyncClient(url, otel=True) as client:
        return (await client.enqueue("plain")).id

ids["async"] = asyncio.run(more())
print(json.dumps(ids))
"""


def enqueues(url: str) -> str:
    return ENQUEUES.format(caller=CALLER).replace("URL_AND_TOKEN", repr((url, SECRET)))


@pytest.mark.slow
def test_each_enqueue_and_each_run_is_a_span(
    start_daemon: Callable[..., Daemon], store_url: str, collector: Collector
) -> None:
    """By every way in, for every way to end; linked, and without what is redacted."""
    port = free_port()
    daemon = start_daemon(configuration(port), env=collector.environment())
    ids = program(enqueues(store_url), collector.environment(OTEL_SERVICE_NAME="shop"))
    with httpx.Client(base_url=f"http://127.0.0.1:{port}") as http:
        answer = http.post("/jobs", json={"handler": "plain"}, headers={"traceparent": CALLER})
        ids["http"] = answer.json()["id"]
        bulk = http.post("/jobs/bulk", json={"jobs": [{"handler": "plain"}] * 2}).json()["items"]
    daemon.env["TRACEPARENT"] = CALLER
    ids["cli"] = daemon.cli("enqueue", "plain").stdout.strip()
    rows = Rows(store_url)
    wanted = 100 + 11 + 4

    def runs() -> list[CollectedSpan]:
        return [span for span in collector.spans if span.kind == "consumer"]

    eventually(lambda: len(runs()) >= wanted + 2, within=60, state=lambda: (len(runs()), daemon.tail()))
    sent = {span.job: span for span in collector.spans if span.kind == "producer"}
    refs = {span.ref for span in collector.spans}

    def run_of(name: str) -> CollectedSpan:
        [span] = collector.of_job(ids[name])
        return span

    def payload(name: str) -> bytes:
        return bytes(rows.last(uuid.UUID(ids[name]).bytes)["payload"])

    # Every run has one span, and every span an id of its own.
    assert len(refs) == len(collector.spans)
    assert len(runs()) == wanted + 2
    assert len({span.job for span in runs() if span.name == "process noop"}) == 100

    plain = run_of("plain")
    assert (plain.name, plain.links, plain.parent) == ("process plain", [sent[ids["plain"]].ref], "")
    assert plain.attributes["workerd.reason"] == "ok"
    assert plain.attributes["messaging.operation.type"] == "process"
    assert plain.attributes["workerd.queue_ms"] >= 0
    assert (plain.resource["service.name"], plain.resource["workerd.node"]) == ("workerd", "one")
    assert sent[ids["plain"]].resource["service.name"] == "shop"
    assert run_of("async").links == [sent[ids["async"]].ref]
    # A library that is called by the run sends on its span.
    assert json.loads(payload("plain"))["traceparent"].split("-")[1:3] == list(plain.ref)
    assert payload("program").decode().split("-")[1:3] == list(run_of("program").ref)

    # HTTP, the command line, a context that the caller gave, one that meta cannot take.
    caller = SpanRef(*CALLER.split("-")[1:3])
    for name in ("http", "cli"):
        assert (sent[ids[name]].ref.trace, sent[ids[name]].parent) == caller
        assert run_of(name).links == [sent[ids[name]].ref]
    assert run_of("given").links == [caller]
    assert sent[ids["given"]].links == [caller]
    assert run_of("text").links == []

    # A bulk has one `send`, and a `create` for each job.
    [whole] = collector.named("send noop")
    assert (whole.kind, whole.attributes["messaging.batch.message_count"]) == ("client", 100)
    creates = {span.job: span for span in collector.named("create noop")}
    assert {span.parent for span in creates.values()} == {whole.ref.span}
    assert all(collector.of_job(job)[0].links == [creates[job].ref] for job in ids["bulk"])
    assert {span.job for span in collector.named("create plain")} == {done["id"] for done in bulk}

    # How they ended.
    failed, again = collector.of_job(ids["fails"])
    assert (failed.status, failed.attributes["workerd.reason"]) == (2, "error")
    assert failed.attributes["error.type"] == "builtins.ValueError"
    assert "cannot log in with [redacted]" in failed.description
    assert "raise ValueError" in failed.events["exception"]["exception.stacktrace"]
    assert (again.status, again.attributes["workerd.attempt"]) == (0, 2)
    assert failed.links == again.links
    asked, _ = collector.of_job(ids["asks"])
    assert (asked.status, asked.attributes["workerd.reason"]) == (0, "retry")
    late = run_of("overdue")
    assert (late.status, late.attributes["workerd.reason"]) == (2, "deadline")
    assert "DeadlineExceeded" in late.events
    killed = run_of("killed")
    assert (killed.status, killed.attributes["workerd.reason"]) == (2, "crashed")
    assert killed.attributes["error.type"] == "workerd.Crashed"
    assert killed.links == [sent[ids["killed"]].ref]
    [refused] = collector.named("send missing")
    assert (refused.status, refused.attributes["error.type"]) == (2, "workerd.errors.HandlerNotFound")

    # What libraries and steps add.
    parent = run_of("child")
    assert parent.attributes["shop.order"] == 7
    [query] = collector.named("query")
    assert (query.parent, query.ref.trace, query.scope) == (parent.ref.span, parent.ref.trace, "shop")
    assert query.attributes["sql"] == "[redacted]"
    assert query.events["found"] == {"rows": 3, "who": ["[redacted]", "x"]}
    steps = {span.name: span.parent for span in collector.spans if span.name.startswith("step ")}
    assert steps == {
        "step charge": parent.ref.span,
        "step ship": parent.ref.span,
        "step async step": run_of("async_child").ref.span,
    }
    assert not any(SECRET.encode() in body for body in collector.bodies)


def ended(rows: Rows, ids: list[str]) -> Callable[[], bool]:
    return lambda: rows.ended(*(uuid.UUID(job).bytes for job in ids))


def test_the_jobs_of_a_request_come_from_its_submit(
    start_daemon: Callable[..., Daemon], store_url: str, collector: Collector
) -> None:
    """Of workflows, graphs and batches, by client, HTTP and command line; as a part of one trace."""
    port = free_port()
    daemon = start_daemon(configuration(port, link="parent"), env=collector.environment())
    requests = program(
        "import json\nfrom workerd import Client, JobSpec\n"
        f"with Client({store_url!r}, otel=True) as client:\n"
        "    graph = [{'name': 'one', 'handler': 'plain'},"
        " {'name': 'two', 'handler': 'plain', 'needs': ['one']}]\n"
        "    specs = [JobSpec(handler='plain', meta={'n': n}) for n in range(2)]\n"
        "    print(json.dumps([client.submit('pair').id, client.batch(graph).id, client.batch(specs).id]))",
        collector.environment(),
    )
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", headers={"traceparent": CALLER}) as http:
        requests.append(http.post("/requests", json={"workflow": "pair"}).json()["id"])
        graph = {"jobs": [{"name": "one", "handler": "plain"}, {"name": "b", "handler": "plain"}]}
        requests.append(http.post("/requests", json=graph).json()["id"])
    requests.append(daemon.cli("request", "submit", "pair").stdout.strip())

    def jobs(request: str) -> list[CollectedSpan]:
        found = [span for span in collector.spans if span.kind == "consumer"]
        return [s for s in found if s.attributes.get("messaging.message.conversation_id") == request]

    sizes = {request: 3 if n in (0, 3, 5) else 2 for n, request in enumerate(requests)}  # `asks` runs twice
    eventually(
        lambda: {request: len(jobs(request)) for request in requests} == sizes, within=60, state=daemon.tail
    )
    sent = {span.job: span for span in collector.spans if span.kind == "producer"}
    for request in requests:
        assert {(span.parent, span.ref.trace) for span in jobs(request)} == {
            (sent[request].ref.span, sent[request].ref.trace)
        }
    assert {span.attributes["workerd.step"] for span in jobs(requests[0])} == {"plain", "asks"}
    assert {sent[request].ref.trace for request in requests[3:5]} == {CALLER.split("-")[1]}


def test_a_run_whose_pool_was_killed_has_its_span(
    start_daemon: Callable[..., Daemon], store_url: str, collector: Collector, marks: Path
) -> None:
    """Made from its row. And a program's own provider is flushed before its worker is recycled."""
    daemon = start_daemon(configuration(), env=collector.environment(MARKS=str(marks)))
    rows = Rows(store_url)
    held = str(uuid.UUID(bytes=rows.insert("hold", meta=json.dumps({"traceparent": CALLER}))))
    eventually(lambda: rows.last(uuid.UUID(held).bytes)["progress"], within=30, state=daemon.tail)
    daemon.kill("pool:many")
    eventually(lambda: collector.of_job(held), within=60, state=daemon.tail)
    lost = collector.of_job(held)[0]
    assert (lost.status, lost.attributes["workerd.reason"]) == (2, "lost")
    assert lost.links == [SpanRef(*CALLER.split("-")[1:3])]
    assert lost.end > lost.start

    own = str(uuid.UUID(bytes=rows.insert("own")))
    many = str(uuid.UUID(bytes=rows.insert("many", {"count": 1003})))
    large = str(uuid.UUID(bytes=rows.insert("large")))
    eventually(ended(rows, [own, many, large]), within=30, state=daemon.tail)
    eventually(lambda: collector.of_job(large), within=30, state=daemon.tail)
    assert len(collector.of_job(large)[0].attributes["a0"]) == 1000
    eventually(lambda: collector.of_job(own) and collector.of_job(many), within=30, state=daemon.tail)
    eventually(lambda: list(marks.iterdir()), within=30, state=daemon.tail)
    [run] = collector.of_job(own)
    [file] = marks.iterdir()
    assert f"query {run.ref.span}" in file.read_text()
    # Spans are sent while the run goes on: none of many is left out, some are there of one that is killed.
    assert "workerd.dropped_spans" not in collector.of_job(many)[0].attributes
    eventually(lambda: len(collector.named("tiny")) == 1003, within=30, state=daemon.tail)
    killed = str(uuid.UUID(bytes=rows.insert("many_then_killed")))
    eventually(lambda: collector.of_job(killed), within=30, state=daemon.tail)
    eventually(lambda: len(collector.named("tiny")) == 1003 + 64, within=30, state=daemon.tail)
    [run] = collector.of_job(killed)
    assert sum(span.parent == run.ref.span for span in collector.named("tiny")) == 64


@pytest.mark.slow
@ON_ONE_ENGINE
def test_a_collector_that_hangs_or_refuses_delays_no_job(
    start_daemon: Callable[..., Daemon], store_url: str, collector: Collector
) -> None:
    """Spans that find the queue full are dropped and counted, and the daemon stops in time."""
    port = free_port()
    collector.status = 400
    environment = collector.environment(OTEL_BSP_MAX_QUEUE_SIZE="20", OTEL_BSP_MAX_EXPORT_BATCH_SIZE="10")
    daemon, rows = start_daemon(configuration(port), env=environment), Rows(store_url)
    first = rows.insert("plain")
    eventually(lambda: "spans.export_failed" in daemon.logged(), within=30, state=daemon.tail)
    assert rows.ended(first)
    collector.status = 200
    rows.insert("plain")
    eventually(lambda: "spans.export_resumed" in daemon.logged(), within=30, state=daemon.tail)

    collector.answering.clear()
    ids = [str(uuid.UUID(bytes=job)) for job in rows.insert_many("plain", [{}] * 200)]
    eventually(ended(rows, ids), within=30, state=daemon.tail)

    def counted() -> dict[str, float]:
        text = httpx.get(f"http://127.0.0.1:{port}/metrics").text
        lines = [line for line in text.splitlines() if line.startswith("workerd_spans_total{")]
        return {line.split('"')[1]: float(line.split()[-1]) for line in lines}

    eventually(lambda: counted().get("dropped", 0) >= 200 - 20 - 10, within=30, state=counted)
    assert counted()["failed"] == 1
    assert daemon.stop(within=15) == 0


@pytest.mark.slow
@ON_ONE_ENGINE
def test_nothing_is_imported_where_traces_are_off(
    start_daemon: Callable[..., Daemon], store_url: str, collector: Collector
) -> None:
    """Neither by pools nor by programs that enqueue; a reload switches them on."""
    config = configuration()
    daemon = start_daemon(config.replace("enabled = true", "enabled = false"), env=collector.environment())
    rows = Rows(store_url)
    job, imported = program(
        "import asyncio, json, sys\nfrom workerd import AsyncClient, Client, JobSpec\n"
        "import workerd.gateway.server, workerd.ingester.ingester, workerd.dispatcher.dispatcher\n"
        f"with Client({store_url!r}) as client:\n"
        "    job = client.enqueue('modules').id\n"
        "    client.enqueue_many([JobSpec(handler='noop')] * 2)\n"
        "print(json.dumps([job, [n for n in sys.modules if n.startswith('opentelemetry')]]))",
        collector.environment(),
    )
    assert imported == []
    eventually(ended(rows, [job]), within=30, state=daemon.tail)
    last = rows.last(uuid.UUID(job).bytes)
    assert json.loads(last["payload"]) == []
    assert last["meta"] is None
    assert collector.requests == 0

    daemon.write(config)
    daemon.cli("reload")
    rows.insert("plain")
    eventually(lambda: collector.named("process plain"), within=30, state=daemon.tail)


@ON_ONE_ENGINE
@pytest.mark.parametrize(
    "variables",
    [
        {"OTEL_TRACES_SAMPLER": "always_off"},
        {"OTEL_TRACES_EXPORTER": "none"},
        {"OTEL_SDK_DISABLED": "true"},
        {"OTEL_BSP_MAX_QUEUE_SIZE": "1", "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT": "wrong"},
    ],
    ids=["no sampling", "no exporter", "disabled", "wrong"],
)
def test_variables_may_leave_nothing_of_the_traces(
    start_daemon: Callable[..., Daemon], store_url: str, collector: Collector, variables: dict[str, str]
) -> None:
    """Neither of runs that end, nor of those whose worker is killed; jobs go on, also by wrong values."""
    port = free_port()
    daemon, rows = start_daemon(configuration(port), env=collector.environment(**variables)), Rows(store_url)
    jobs = [str(uuid.UUID(bytes=rows.insert(name))) for name in ("plain", "child", "killed")]
    with httpx.Client(base_url=f"http://127.0.0.1:{port}") as http:
        jobs.append(http.post("/jobs", json={"handler": "plain"}).json()["id"])
    eventually(ended(rows, jobs), within=30, state=daemon.tail)
    assert daemon.stop() == 0
    assert collector.requests == 0
    assert ("spans.not_exported" in daemon.logged()) is ("OTEL_BSP_MAX_QUEUE_SIZE" in variables)
