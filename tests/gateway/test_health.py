"""The health of a node: heartbeat, readiness, status and metrics agree."""

from __future__ import annotations

import json
import re
import signal
import sqlite3
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.eventually import eventually
from tests.support.gateway import CONFIG, Api, EventStream
from tests.support.servers import DatabaseServer
from workerd.gateway.health import not_ready_reasons, warnings
from workerd.metrics import families

ROOT = Path(__file__).parents[2]
MEASURED = '[handlers.order]\ncall = "tests.support.metric_handlers:order"\n'
BROKEN = (
    '[handlers.broken]\ncall = "tests.support.nothing:here"\nrestart = { intensity = 1, period = "60s" }\n'
)


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """A node with a quarantined pool and a handler that has its own metric."""
    folder = tmp_path_factory.mktemp("gw")
    with Api(folder / "node", f"sqlite:///{folder}/store.db", CONFIG + MEASURED + BROKEN) as api:
        yield api


def samples(api: Api) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    answer = api.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def test_a_healthy_node(api: Api) -> None:
    """Readiness names the quarantined pool and why, as status does."""
    eventually(lambda: api.daemon.status()["pools"]["broken"]["quarantined"])
    answer = api.get("/ready")
    assert answer.status_code == 200
    status = api.daemon.status()
    assert answer.json()["quarantined"] == {"broken": status["pools"]["broken"]["trouble"]}
    eventually(lambda: api.daemon.cli("status", check=False).returncode == 0)
    assert api.get("/heartbeat").json() == {"status": "ok"}
    page = api.get("/").text
    assert "Pool broken is quarantined" in page
    assert "tests.support.nothing" in page


def test_every_name_is_exported(api: Api) -> None:
    """All families are exported from the start, with help and type."""
    text = api.get("/metrics").text
    for definition in families.ALL:
        assert f"# HELP {definition.name} " in text
        assert f"# TYPE {definition.name} {definition.kind}" in text
    assert samples(api)["workerd_quarantined", (("pool", "broken"),)] == 1


def test_counters(api: Api) -> None:
    """Attempts by outcome, ignored errors as successes, and a handler's own metric."""
    api.ended(api.enqueue("behave", {"kind": "ignored"}))
    api.ended(api.enqueue("behave", {"kind": "failure"}))
    api.ended(api.enqueue("order", {"kind": "books"}))

    def attempts(outcome: str, success: str) -> float:
        labels = (("handler", "behave"), ("outcome", outcome), ("success", success))
        return samples(api).get(("workerd_attempts_total", labels), 0)

    eventually(lambda: attempts("ignored", "true") == 1)
    eventually(lambda: attempts("failure", "false") == 1)
    eventually(lambda: samples(api).get(("shop_orders_total", (("kind", "books"),))) == 1)
    found = samples(api)
    assert found["workerd_lease_seconds", ()] > 0
    assert found["workerd_process_rss_bytes", (("process", "gateway"),)] > 1e6
    assert found["workerd_jobs", (("handler", "noop"), ("status", "new"))] == 0
    answer = api.get("/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    assert answer.text.endswith("# EOF\n")


def test_counters_survive_the_roles_that_count_and_show_them(api: Api) -> None:
    """Killing the ingester or the gateway resets no counter; counting continues."""
    labels = (("handler", "behave"), ("outcome", "error"), ("success", "false"))

    def shown() -> tuple[float, float]:
        try:
            found = samples(api)
        except httpx.TransportError:
            return 0, 0
        runs = ("workerd_run_seconds_count", (("handler", "behave"), ("success", "false")))
        return found.get(("workerd_attempts_total", labels), 0), found.get(runs, 0)

    def fails_once_more() -> tuple[float, float]:
        attempts, runs = shown()
        api.ended(api.enqueue("behave", {"kind": "error"}, max_attempts=1))
        eventually(lambda: shown() == (attempts + 1, runs + 1), state=lambda: str(shown()))
        return shown()

    before = fails_once_more()
    for role in ("ingester", "gateway"):
        pid = api.daemon.kill(role)
        eventually(lambda role=role, pid=pid: api.daemon.pid(role) not in (0, pid))
        eventually(lambda: shown() != (0, 0))
        assert shown() == before
        before = fails_once_more()


@pytest.mark.parametrize("file", ["etc/prometheus/alerts.yml", "etc/grafana/workerd.json"])
def test_examples_use_names_that_are_exported(api: Api, file: str) -> None:
    """The shipped rules and dashboard use only metrics and labels that the gateway exports."""
    api.ended(api.enqueue("noop"))
    text = (ROOT / file).read_text()
    if file.endswith(".json"):
        json.loads(text)
    known = {definition.name: definition for definition in families.ALL}
    used = set(re.findall(r"\bworkerd_[a-z_]+", text))
    assert len(used) >= 8
    shown = {name for name, _ in samples(api)}
    for name in used:
        base = re.sub(r"_(bucket|sum|count)$", "", name)
        assert base in known, name
        assert name in shown, name
    for name, selector in re.findall(r"\b(workerd_[a-z_]+)\{([^}]*)\}", text.replace('\\"', '"')):
        definition = known[re.sub(r"_(bucket|sum|count)$", "", name)]
        for label in re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", selector):
            assert label in (*definition.labels, "instance", "job", "le"), (name, label)


def test_all_jobs_are_counted_however_many_handlers(tmp_path: Path) -> None:
    """Jobs of 1,500 handlers that no node has: the first have series of their own, the rest is `other`."""
    names = [f"nobody{n:04}" for n in range(1500)]
    with Api(tmp_path / "node", f"sqlite:///{tmp_path}/store.db") as api:
        with sqlite3.connect(tmp_path / "store.db") as connection:
            connection.executemany(
                "INSERT INTO workerd_jobs (id, handler) VALUES (?, ?)",
                [(uuid.uuid4().bytes, name) for name in names],
            )
        connection.close()
        found = samples(api)
        counts = {
            dict(labels)["handler"]: value
            for (name, labels), value in found.items()
            if name == "workerd_jobs" and ("status", "new") in labels
        }
        assert sum(counts.values()) == len(names)
        assert counts["other"] > 0
        assert counts["noop"] == 0
        assert len(counts) == 1001
        assert found["workerd_oldest_seconds", (("handler", "other"),)] > 0


def test_every_metric_says_what_it_counts(api: Api) -> None:
    """Each family has a HELP line with a sentence."""
    api.ended(api.enqueue("order", {"kind": "books"}))
    text = api.get("/metrics").text
    helps = dict(re.findall(r"^# HELP (\S+) (.*)$", text, re.MULTILINE))
    for definition in families.ALL:
        assert len(helps[definition.name]) > 40, definition.name
        assert helps[definition.name].endswith(".")


def test_a_handler_of_a_quarantined_pool(api: Api) -> None:
    """Its state is that of the pool, with the reason, also when jobs of it are waiting."""
    api.enqueue("broken")
    eventually(lambda: api.daemon.status()["pools"]["broken"]["quarantined"])
    page = api.get("/ui/handlers").text
    row = page[page.index("handler=broken") :].partition("</tr>")[0]
    assert "quarantined" in row
    assert "tests.support.nothing" in row
    assert "unknown" not in row
    (document,) = [one for one in api.get("/handlers").json()["handlers"] if one["name"] == "broken"]
    assert document["known"] is True


def test_the_store_becomes_unavailable_and_available_again(
    tmp_path: Path, own_server: DatabaseServer
) -> None:
    """While the store is unavailable its routes are 503 with Retry-After, and status shows why."""
    url = own_server.url(own_server.new_database())
    with Api(tmp_path / "node", url) as api:
        assert api.get("/ready").status_code == 200
        own_server.kill9()
        eventually(lambda: api.get("/ready").status_code == 503)
        for answer in (api.post("/jobs", {"handler": "noop"}), api.get("/jobs"), api.get("/handlers")):
            assert answer.status_code == 503
            assert int(answer.headers["retry-after"]) > 0
        assert api.get("/heartbeat").status_code == 200
        assert api.get("/").status_code == 200
        assert "unavailable" in api.get("/").text
        assert api.get("/ui/jobs").status_code == 503
        assert "workerd_spool_bytes" in api.get("/metrics").text
        eventually(lambda: api.daemon.status()["store"]["state"] == "away")
        assert api.daemon.cli("status", check=False).returncode == 1
        own_server.start()
        eventually(
            lambda: api.get("/ready").status_code == 200,
            within=60,
            state=lambda: api.get("/ready").text + api.daemon.tail(),
        )
        assert api.ended(api.enqueue("noop"))["status"] == "completed"


@pytest.mark.slow
def test_a_stuck_gateway_is_replaced(tmp_path: Path) -> None:
    """A stopped gateway misses its watchdog and is replaced on the same address."""
    config = '[supervisor]\nwatchdog = "2s"\n' + CONFIG
    with Api(tmp_path / "node", f"sqlite:///{tmp_path}/store.db", config) as api:
        before = api.daemon.kill("gateway", signal.SIGSTOP)
        eventually(lambda: api.daemon.pid("gateway") not in (0, before))

        def serves() -> bool:
            try:
                return api.get("/heartbeat", timeout=2).status_code == 200
            except httpx.TransportError:
                return False

        eventually(serves)


def test_the_node_stops(tmp_path: Path) -> None:
    """When the node stops, long polls are answered with the job as it is, and event streams are ended."""
    with (
        Api(tmp_path / "node", f"sqlite:///{tmp_path}/store.db") as api,
        ThreadPoolExecutor(1) as executor,
    ):
        job = api.enqueue("noop", delay="1h")
        long_poll = executor.submit(api.get, f"/jobs/{job}?wait=60s")
        streams = [EventStream(api, "/"), EventStream(api, "/ui/jobs")]
        for stream in streams:
            eventually(lambda stream=stream: stream.parts)
        assert api.daemon.stop() == 0
        assert long_poll.result(10).json()["status"] == "scheduled"
        for stream in streams:
            assert stream.ended.wait(10)


@pytest.mark.slow
def test_events(api: Api) -> None:
    """A stream sends what changed on its page; too many streams are refused, other requests are not."""
    job = api.enqueue("noop", delay="1h")
    stream = EventStream(api, f"/ui/jobs/{job}")
    eventually(lambda: "scheduled" in stream.parts.get("head", ""))
    api.post(f"/jobs/{job}/cancel")
    eventually(lambda: "cancelled" in stream.parts.get("head", ""))
    lost = EventStream(api, "/ui/jobs/nothing")
    eventually(lambda: "nothing" in lost.parts.get("", ""))
    more = [EventStream(api, "/ui/handlers") for _ in range(70)]
    eventually(lambda: sum(one.status == 200 for one in more) >= 60)
    eventually(lambda: any(one.status == 503 for one in more))
    assert api.get("/jobs").status_code == 200


def test_a_removed_database_file_is_noticed(tmp_path: Path) -> None:
    """Nothing is accepted into a deleted file; once it is back, all goes on."""
    path = tmp_path / "store.db"
    with Api(tmp_path / "node", f"sqlite:///{path}") as api:
        before = api.enqueue("noop")
        api.ended(before)
        path.rename(tmp_path / "aside")
        answer = api.post("/jobs", {"handler": "noop"})
        assert answer.status_code == 503
        assert f"{path} was removed; put its file back" in answer.json()["detail"]
        assert f"{path} was removed" in api.get("/ready").json()["detail"]
        eventually(lambda: api.daemon.status()["store"]["state"] == "away", state=api.daemon.tail)
        eventually(lambda: '"store.unavailable"' in api.daemon.logged())
        assert not path.exists()
        (tmp_path / "aside").rename(path)
        eventually(lambda: api.get("/ready").status_code == 200, state=api.daemon.tail)
        assert api.get(f"/jobs/{before}").json()["complete"]
        assert api.ended(api.enqueue("noop"))["status"] == "completed"


@pytest.mark.slow
def test_a_missing_privilege_is_one_named_state(tmp_path: Path, own_server: DatabaseServer) -> None:
    """The probe writes as the daemon does, so the store is not back before it can be used."""
    name = own_server.new_database()
    own_server.sql(f"GRANT ALL ON {name}.* TO plain@'%' IDENTIFIED BY 'plain'")
    with Api(tmp_path / "node", f"mysql://plain:plain@127.0.0.1:{own_server.port}/{name}") as api:
        own_server.sql(f"REVOKE ALL ON {name}.* FROM plain@'%'")
        own_server.sql(f"GRANT SELECT, INSERT, UPDATE ON {name}.* TO plain@'%'")
        own_server.sql("KILL USER plain")
        eventually(lambda: api.daemon.status()["store"]["code"] == 1142, state=api.daemon.tail)
        probes = api.daemon.status()["store"]["errors"].get("1142", 0)
        eventually(lambda: api.daemon.status()["store"]["errors"]["1142"] > probes + 5)
        assert "DELETE command denied" in api.daemon.status()["store"]["error"]
        eventually(lambda: "does not answer" not in api.get("/ready").text, state=api.daemon.tail)
        events = [json.loads(line)["event"] for line in api.daemon.logged().splitlines() if line[:1] == "{"]
        assert events.count("store.available") == 0
        own_server.sql(f"GRANT ALL ON {name}.* TO plain@'%'")
        eventually(lambda: api.get("/ready").status_code == 200, state=api.daemon.tail)


def test_a_ready_node_warns_of_what_waits_for_a_person() -> None:
    """Outcomes that were set aside, or wait for locks of others, do not make a node unready."""
    status = {"state": "ready", "roles": {"ingester": {"state": "up", "set_aside": 2, "locked": 1}}}
    assert not_ready_reasons(status) == []
    assert [sentence.split(",")[0] for sentence in warnings(status)] == [
        "2 outcomes set aside",
        "1 outcome for rows locked by other transactions.",
    ]
