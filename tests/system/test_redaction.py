"""A canary goes through every ending of a job: it is found nowhere but in the values that the store keeps."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.eventually import eventually
from tests.support.gateway import Api
from workerd.config.model import StoreConfig
from workerd.gateway.openapi import OPERATIONS
from workerd.store.engines import open_store

CANARY = "кана'рей\"ка-4711-XYZ"
NUMBER = 4929123456781234
TRACES = ("4711-XYZ", "кана", "\\u043a\\u0430\\u043d", "%D0%BA", str(NUMBER))
"""Of the canary in any form."""
SECRETS = "tests.support.secret_handlers"
ENDINGS = {
    "ok": ("completed", "ok"), "raises": ("failure", "error"), "chained": ("failure", "error"),
    "failure": ("failure", "failure"), "retry": ("completed", "ok"), "result": ("failure", "error"),
    "unstorable": ("failure", "failure"), "soft": ("failure", "deadline"),
    "swallows": ("failure", "deadline"), "hard": ("failure", "deadline"), "crashes": ("failure", "crashed"),
    "exits": ("failure", "crashed"), "waits": ("cancelled", "cancelled"),
}  # fmt: skip
SEEN_ONLY_IN = {"vars", "meta", "payload", "params", "extras", "state"}
"""Columns that keep what they were given."""
CONFIG = f"""
[defaults]
redact = ["card.*", "key"]
max_attempts = 1
max_crashes = 1
backoff = {{ first = "1ms" }}
[pools.secret]
workers = 3
[handlers.leak]
call = "{SECRETS}:leak"
pool = "secret"
[handlers.slow]
call = "{SECRETS}:leak"
pool = "secret"
deadline = "1500ms"
grace = "300ms"
[handlers.choose]
call = "{SECRETS}:choose"
pool = "secret"
redact = ["password"]
[handlers.issue]
call = "{SECRETS}:issue"
pool = "secret"
redact = ["token"]
keep_log = "all"
[workflows.flow]
[[workflows.flow.jobs]]
name = "first"
handler = "leak"
vars = {{ kind = "ok", password = "in the configuration", card = {{}} }}
"""


@pytest.fixture(scope="module")
def api(module_store_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """A node with handlers that leak."""
    with Api(tmp_path_factory.mktemp("secret") / "node", module_store_url, CONFIG) as api:
        yield api


def enqueue(api: Api, kind: str) -> str:
    vars_ = {"kind": kind, "password": CANARY, "card": {"number": NUMBER}}
    handler = "slow" if ENDINGS[kind][1] == "deadline" else "leak"
    meta = {"key": CANARY, "tenant": "7"}
    most = 2 if kind == "retry" else 1
    answer = api.post("/jobs", {"handler": handler, "vars": vars_, "meta": meta, "max_attempts": most})
    assert answer.status_code == 201, answer.text
    assert not traces(answer.text)
    return str(answer.json()["id"])


def traces(text: str) -> list[str]:
    return [trace for trace in TRACES if trace.lower() in text.lower()]


@pytest.mark.slow
def test_a_canary_is_found_nowhere(api: Api) -> None:
    """Not in HTTP, dashboard, command line, logs, errors, stacks and notes, nor elsewhere in the store."""
    jobs = {kind: enqueue(api, kind) for kind in ENDINGS}
    eventually(lambda: api.get(f"/jobs/{jobs['waits']}").json()["status"] == "inprogress", within=60)
    eventually(lambda: api.get(f"/jobs/{jobs['waits']}").json()["note"], within=60)
    api.post(f"/jobs/{jobs['waits']}/cancel")
    ended = {}
    for kind, job in jobs.items():
        document = api.ended(job, "60s")
        ended[kind] = document["status"], document["reason"]
        assert document["vars"] == {"kind": kind, "password": "[redacted]", "card": {"number": "[redacted]"}}
        assert document["meta"] == {"key": "[redacted]", "tenant": "7"}
    assert ended == ENDINGS
    refused = api.post("/jobs", {"handler": "choose", "vars": {"password": CANARY}})
    assert refused.status_code == 422
    assert not traces(refused.text)
    ok = api.get(f"/jobs/{jobs['ok']}").json()
    assert ok["payload"] == {"password": "[redacted]", "card": {"number": "[redacted]"}, "kept": 1}
    assert "[redacted]" in api.get(f"/jobs/{jobs['raises']}").json()["error"]
    request = api.post("/requests", {"workflow": "flow", "params": {"password": CANARY, "key": CANARY}})
    assert not traces(request.text)
    api.get(f"/requests/{request.json()['id']}?wait=30s")

    ids = [*jobs.values()]
    for operation in OPERATIONS:
        if operation.method != "get" or operation.path in ("/events", "/metrics"):
            continue
        subjects = [request.json()["id"]] if "requests" in operation.path else ids
        for subject in subjects if "{id}" in operation.path else [""]:
            path = operation.path.replace("{id}", subject).replace("{name}", "leak")
            answer = api.get(path)
            assert not traces(answer.text), (path, traces(answer.text))
            answer = api.http.get(f"{path}?wait=1s") if path in map("/jobs/{}".format, ids) else answer
            assert not traces(answer.text), path
    _check_commands(api, jobs, request.json()["id"])
    _check_store(api)
    logged = api.daemon.logged()
    assert "attempt.failed" in logged
    for event in ("printed", "escaped", "halves", "program", "logged", "logging", "unfinished"):
        assert event in logged, event
    found = [line for line in logged.splitlines() if traces(line)]
    assert not found, found[:3]


def _check_commands(api: Api, jobs: dict[str, str], request: str) -> None:
    for words in (
        *[("job", "show", jobs[kind]) for kind in ("ok", "chained", "swallows")],
        *[("why", jobs[kind]) for kind in ("raises", "crashes")],
        ("job", "show", jobs["ok"], "--json"), ("why", jobs["raises"], "--json"), ("job", "list"),
        ("job", "list", "--json"), ("request", "show", request), ("request", "show", request, "--json"),
        ("request", "list", "--json"), ("audit", "--json"), ("handlers", "--json"), ("status",),
    ):  # fmt: skip
        done = api.daemon.cli(*words, check=False)
        assert done.returncode == 0, (words, done.stderr)
        assert not traces(done.stdout + done.stderr), words
    card = json.dumps({"number": NUMBER})
    done = api.daemon.cli("enqueue", "leak", "kind=ok", f"password={CANARY}", f"card={card}", "--wait", "60s")
    assert "[redacted]" in done.stdout
    assert not traces(done.stdout + done.stderr)


def _check_store(api: Api) -> None:
    store = open_store(StoreConfig(url=api.daemon.url))
    try:
        tables = ("jobs", "requests", "handlers", "nodes", "schedules", "audit", "errors", "logs")
        seen: set[str] = set()
        for table in tables:
            columns = [
                row[0].decode() if isinstance(row[0], bytes) else row[0]
                for row in store.read(lambda tx, t=table: tx.query(_columns(store.dialect.name, t)))
            ]
            for row in store.read(
                lambda tx, t=table, c=columns: tx.query(f"SELECT {', '.join(c)} FROM workerd_{t}")
            ):
                seen |= {c for c, v in zip(columns, row, strict=True) if traces(_text(v))}
        assert seen == {"vars", "meta", "payload", "params"}
    finally:
        store.close()


def _columns(engine: str, table: str) -> str:
    if engine == "sqlite":
        return f"SELECT name FROM pragma_table_info('workerd_{table}')"
    return (
        "SELECT column_name FROM information_schema.columns WHERE table_schema = DATABASE()"
        f" AND table_name = 'workerd_{table}'"
    )


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


@pytest.mark.parametrize("ends", ["ok", "failed"])
def test_what_a_handler_returns_is_in_neither_note_nor_kept_log(api: Api, ends: str) -> None:
    """It wrote them before it returned what is redacted."""
    job = api.enqueue("issue", vars={"token": "given-4711", "ends": ends})
    ended = api.ended(job)
    assert ended["payload"] == {"token": "[redacted]"}
    assert ended["note"] == "issued [redacted]"
    log = api.get(f"/jobs/{job}/log").text
    assert "printed [redacted]" in log
    assert "4712-XYZ" not in log


def test_the_class_of_an_error_is_redacted(api: Api) -> None:
    """A class may be made with a value in its name."""
    job = api.enqueue("issue", vars={"token": "given_4711", "ends": "raises"})
    ended = api.ended(job)
    assert ended["error"] == "Bad_[redacted]: x"
    assert ended["error_class"] == f"{SECRETS}.Bad_[redacted]"
    groups = api.get("/errors?handler=issue").json()["errors"]
    assert "given_4711" not in json.dumps(groups)
    assert "given_4711" not in api.get(f"/jobs/{job}").text


def test_an_operator_may_see_them(api: Api) -> None:
    """With X-Reveal: 1 or --reveal; who saw what is in the audit."""
    job = enqueue(api, "ok")
    api.ended(job)
    reveal = {"X-Reveal": "1"}
    assert api.get(f"/jobs/{job}", headers={"X-Reveal": "yes"}).status_code == 422
    shown = api.get(f"/jobs/{job}", headers=reveal).json()
    assert shown["vars"]["password"] == CANARY
    assert shown["payload"]["card"] == {"number": NUMBER}
    assert json.loads(api.get(f"/jobs/{job}/payload", headers=reveal).content)["password"] == CANARY
    assert (
        api.get("/jobs?handler=leak&limit=1", headers=reveal).json()["jobs"][0]["vars"]["password"] == CANARY
    )
    assert (
        json.loads(api.daemon.cli("job", "show", job, "--json", "--reveal").stdout)["vars"] == shown["vars"]
    )
    assert traces(api.daemon.cli("job", "show", job, "--reveal").stdout)
    acts = [act for act in api.get("/audit").json()["audit"] if act["action"] == "reveal"]
    assert [act["target"] for act in acts[-3:]] == ["leak", job, job]
    assert acts[0]["via"] == "cli"
    assert all(act["target"] in (job, "leak") for act in acts)
