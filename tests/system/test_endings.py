"""Every way an attempt can end, with the real daemon on both engines."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.support.daemon import ROOT, Daemon
from tests.support.eventually import eventually
from tests.support.rows import Rows, assert_settled

CONFIG = f"""
[defaults]
path = ["{ROOT}"]
backoff = {{ first = "10ms", factor = 1.0, max = "10ms", jitter = 0.0 }}

[handlers.faces]
call = "tests.support.handlers:faces"
workers = 2
max_attempts = 2
ignore = ["tests.support.handlers.Ignored"]

[handlers.brief]
call = "tests.support.handlers:faces"
deadline = "200ms"
grace = "100ms"
max_attempts = 1

[handlers.add]
call = "tests.support.handlers:add"

[handlers.getsize]
call = "os.path:getsize"

[ingester]
max_payload = "1MiB"
"""


@dataclass
class Case:
    """A job, and what its rows must say in the end: the reasons of all attempts, and of the last one more."""

    vars: Any
    status: str
    reasons: list[str]
    handler: str = "faces"
    columns: dict[str, Any] = field(default_factory=dict)
    error: str = ""
    payload: Any = ...
    check: Callable[[dict[str, Any]], bool] = lambda row: True


def face(name: str, **more: Any) -> dict[str, Any]:
    return {"face": name, **more}


CASES: dict[str, Case] = {
    "ok": Case(face("ok"), "completed", ["ok"], payload={"attempt": 1}, check=lambda r: r["success"] == 1),
    "bytes": Case(
        face("payload"), "completed", ["ok"], check=lambda r: r["payload"] == b"\x00\xff\xfe bytes"
    ),
    "none": Case(face("none"), "completed", ["ok"], payload=None),
    "result false": Case(face("result_false"), "failure", ["failure"], payload={"half": "done"}),
    "retry": Case(face("retry_then_ok"), "completed", ["retry", "ok"], payload="done"),
    "retry used up": Case(face("retry_then_ok", times=9), "failure", ["retry", "retry"]),
    "snooze": Case(face("snooze"), "completed", ["retry", "retry", "retry", "ok"], payload="woken"),
    "failure": Case(face("failure"), "failure", ["failure"], error="for good"),
    "error": Case(face("error"), "failure", ["error", "error"], error="ValueError"),
    "error, own attempts": Case(face("error"), "failure", ["error"] * 3, columns={"max_attempts": 3}),
    "ignored": Case(face("ignored"), "completed", ["ignored"], check=lambda r: r["success"] == 1),
    "unprintable": Case(face("unprintable"), "failure", ["error", "error"], error="Unprintable"),
    "SystemExit": Case(face("exit"), "failure", ["error"], error="SystemExit"),
    "KeyboardInterrupt": Case(face("interrupt"), "failure", ["error"], error="KeyboardInterrupt"),
    "os._exit": Case(face("os_exit"), "failure", ["crashed"] * 3, check=lambda r: r["exit_code"] == 3),
    "SIGKILL": Case(face("kill_self"), "failure", ["crashed"] * 3, check=lambda r: r["exit_signal"] == 9),
    "SIGSEGV": Case(face("segfault"), "failure", ["crashed"] * 3, check=lambda r: r["exit_signal"] == 11),
    "orphan holds all": Case(
        face("orphan_holding_all"), "failure", ["crashed"] * 3, check=lambda r: r["exit_signal"] == 9
    ),
    "soft deadline": Case(
        face("loop"), "failure", ["deadline"], handler="brief", check=lambda r: "_loop" in r["stack"]
    ),
    "regex": Case(
        face("regex"), "failure", ["deadline"], handler="brief", check=lambda r: "_regex" in r["stack"]
    ),
    "C code": Case(
        face("sum"), "failure", ["deadline"], handler="brief", check=lambda r: "_sum" in r["stack"]
    ),
    "swallows": Case(
        face("swallow"), "failure", ["deadline"], handler="brief", check=lambda r: "_swallow" in r["stack"]
    ),
    "own deadline": Case(face("loop"), "failure", ["deadline"] * 2, columns={"deadline_ms": 100}),
    "unencodable": Case(face("unencodable"), "failure", ["failure"], error="lock"),
    "payload too large": Case(face("big", size=2 << 20), "failure", ["failure"], error="limit"),
    "long error": Case(
        face("long_error"), "failure", ["error"] * 2, check=lambda r: 900 < len(as_bytes(r["error"])) <= 1024
    ),
    "surrogate": Case(face("surrogate"), "failure", ["error"] * 2, error="lone"),
    "prints": Case(face("prints", count=5_000_000), "completed", ["ok"], payload="printed"),
    "closes fds": Case(face("closes_everything"), "completed", ["ok"], payload="closed"),
    "forks": Case(face("forks"), "completed", ["ok"], payload="forked"),
    "threads": Case(face("threads"), "completed", ["ok"], payload="threaded"),
    "sane surroundings": Case(face("leaves_its_mark"), "completed", ["ok"], payload="marked"),
    "no secrets": Case(face("environment"), "completed", ["ok"], payload={"names": [], "environ": False}),
    "converted": Case({"a": 1, "b": 2}, "completed", ["ok"], handler="add", payload=3),
    "missing": Case({"b": 2}, "failure", ["failure"], handler="add", error="a"),
    "unknown": Case({"a": 1, "zz": 2}, "failure", ["failure"], handler="add", error="zz"),
    "mistyped": Case({"a": "one"}, "failure", ["failure"], handler="add", error="a"),
    "no object": Case([1, 2], "failure", ["failure"], handler="add", error="object"),
    "no JSON": Case("{nope", "failure", ["failure"], handler="add", error="JSON"),
    "emoji": Case(face("error", **{"🙂": 1}), "failure", ["error"] * 2, error="🙂"),
    "plain callable": Case({"filename": "/etc/hostname"}, "completed", ["ok"], handler="getsize"),
}


def as_bytes(text: str | bytes) -> bytes:
    return text.encode() if isinstance(text, str) else text


@pytest.fixture
def daemon(tmp_path: Path, store_url: str, store: Any) -> Iterator[Daemon]:
    with Daemon(tmp_path / "node", store_url, CONFIG) as daemon:
        yield daemon


def assert_case(rows: Rows, job_id: bytes, case: Case) -> None:
    attempts = rows.attempts(job_id)
    last = attempts[-1]
    assert [row["reason"] for row in attempts] == case.reasons, last
    assert [row["status"] for row in attempts] == ["retry"] * (len(attempts) - 1) + [case.status]
    if case.error:
        assert case.error in (last["error"] or ""), last
    if case.payload is not ...:
        assert last["payload_type"] == "json"
        assert json.loads(last["payload"]) == case.payload
    assert case.check(last), last


def test_every_ending(daemon: Daemon, store_url: str) -> None:
    """Each face of the handler ends as the table says, and nothing else is disturbed by it."""
    rows = Rows(store_url)
    ids = {name: rows.insert(case.handler, case.vars, **case.columns) for name, case in CASES.items()}
    eventually(lambda: rows.ended(*ids.values()), within=60, every=0.1, state=daemon.tail)
    wrong: list[str] = []
    for name, case in CASES.items():
        try:
            assert_case(rows, ids[name], case)
        except AssertionError as error:
            wrong.append(f"{name}: {error}")
    assert wrong == []
    assert daemon.stop() == 0
    assert_settled(rows)
