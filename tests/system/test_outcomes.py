"""Every way an attempt can end, in a running daemon on both engines."""

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

[handlers.behave]
call = "tests.support.handlers:behave"
workers = 2
max_attempts = 2
ignore = ["tests.support.handlers.Ignored"]

[handlers.brief]
call = "tests.support.handlers:behave"
deadline = "1s"
grace = "200ms"
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
    """A job and its expected rows: the reasons of all attempts, and details of the last attempt."""

    vars: Any
    status: str
    reasons: list[str]
    handler: str = "behave"
    columns: dict[str, Any] = field(default_factory=dict)
    error: str = ""
    payload: Any = ...
    check: Callable[[dict[str, Any]], bool] = lambda row: True


def kind(name: str, **arguments: Any) -> dict[str, Any]:
    return {"kind": name, **arguments}


def shows(function: str) -> Callable[[dict[str, Any]], bool]:
    """Whether the stack of an attempt shows the function."""
    return lambda row: function in row["stack"]


CASES: dict[str, Case] = {
    "ok": Case(kind("ok"), "completed", ["ok"], payload={"attempt": 1}, check=lambda r: r["success"] == 1),
    "bytes": Case(
        kind("payload"), "completed", ["ok"], check=lambda r: r["payload"] == b"\x00\xff\xfe bytes"
    ),
    "none": Case(kind("none"), "completed", ["ok"], payload=None),
    "result false": Case(kind("result_false"), "failure", ["failure"], payload={"half": "done"}),
    "retry": Case(kind("retry_then_ok"), "completed", ["retry", "ok"], payload="done"),
    "retries exhausted": Case(kind("retry_then_ok", times=9), "failure", ["retry", "retry"]),
    "snooze": Case(kind("snooze"), "completed", ["retry", "retry", "retry", "ok"], payload="woken"),
    "failure": Case(kind("failure"), "failure", ["failure"], error="for good"),
    "error": Case(kind("error"), "failure", ["error", "error"], error="ValueError"),
    "error, max_attempts of the job": Case(
        kind("error"), "failure", ["error"] * 3, columns={"max_attempts": 3}
    ),
    "ignored": Case(kind("ignored"), "completed", ["ignored"], check=lambda r: r["success"] == 1),
    "unprintable": Case(kind("unprintable"), "failure", ["error", "error"], error="Unprintable"),
    "SystemExit": Case(kind("exit"), "failure", ["error"], error="SystemExit"),
    "KeyboardInterrupt": Case(kind("interrupt"), "failure", ["error"], error="KeyboardInterrupt"),
    "os._exit": Case(kind("os_exit"), "failure", ["crashed"] * 3, check=lambda r: r["exit_code"] == 3),
    "SIGKILL": Case(kind("kill_self"), "failure", ["crashed"] * 3, check=lambda r: r["exit_signal"] == 9),
    "SIGSEGV": Case(kind("segfault"), "failure", ["crashed"] * 3, check=lambda r: r["exit_signal"] == 11),
    "orphan holds all descriptors": Case(
        kind("orphan_holding_all"), "failure", ["crashed"] * 3, check=lambda r: r["exit_signal"] == 9
    ),
    "soft deadline": Case(kind("loop"), "failure", ["deadline"], handler="brief", check=shows("_loop")),
    "regex": Case(kind("regex"), "failure", ["deadline"], handler="brief", check=shows("_regex")),
    "C code": Case(kind("sum"), "failure", ["deadline"], handler="brief", check=shows("_sum")),
    "swallows": Case(kind("swallow"), "failure", ["deadline"], handler="brief", check=shows("_swallow")),
    "deadline of the job": Case(kind("loop"), "failure", ["deadline"] * 2, columns={"deadline_ms": 100}),
    "unencodable": Case(kind("unencodable"), "failure", ["failure"], error="lock"),
    "payload too large": Case(kind("big", size=2 << 20), "failure", ["failure"], error="limit"),
    "long error": Case(
        kind("long_error"), "failure", ["error"] * 2, check=lambda r: 900 < len(as_bytes(r["error"])) <= 1024
    ),
    "surrogate": Case(kind("surrogate"), "failure", ["error"] * 2, error="lone"),
    "prints": Case(kind("prints", count=5_000_000), "completed", ["ok"], payload="printed"),
    "closes fds": Case(kind("closes_everything"), "completed", ["ok"], payload="closed"),
    "forks": Case(kind("forks"), "completed", ["ok"], payload="forked"),
    "threads": Case(kind("threads"), "completed", ["ok"], payload="threaded"),
    "changed process state": Case(kind("changes_process_state"), "completed", ["ok"], payload="changed"),
    "no WORKERD_ variables": Case(
        kind("environment"), "completed", ["ok"], payload={"names": [], "environ": False}
    ),
    "converted arguments": Case({"a": 1, "b": 2}, "completed", ["ok"], handler="add", payload=3),
    "missing argument": Case({"b": 2}, "failure", ["failure"], handler="add", error="a"),
    "unknown argument": Case({"a": 1, "zz": 2}, "failure", ["failure"], handler="add", error="zz"),
    "argument of wrong type": Case({"a": "one"}, "failure", ["failure"], handler="add", error="a"),
    "vars not an object": Case([1, 2], "failure", ["failure"], handler="add", error="object"),
    "vars not JSON": Case("{nope", "failure", ["failure"], handler="add", error="JSON"),
    "emoji": Case(kind("error", **{"🙂": 1}), "failure", ["error"] * 2, error="🙂"),
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


def without_stack(rows: Rows, ids: dict[str, bytes]) -> list[str]:
    """The cases whose worker did not run in the 0.1 s that it had to write its stack, on a busy machine."""
    stacks = {name: rows.attempts(job_id)[-1]["stack"] or "" for name, job_id in ids.items()}
    return [name for name, stack in stacks.items() if "no Python stack was written" in stack]


@pytest.mark.slow
def test_every_outcome(daemon: Daemon, store_url: str) -> None:
    """Each behaviour produces the rows of its case while all the others run beside it."""
    rows = Rows(store_url)
    ids: dict[str, bytes] = {}
    to_run = list(CASES)
    for _ in range(3):
        for name in to_run:
            case = CASES[name]
            ids[name] = rows.insert(case.handler, case.vars, **case.columns)
        eventually(lambda: rows.ended(*ids.values()), within=60, every=0.1, state=daemon.tail)
        to_run = without_stack(rows, ids)
    wrong: list[str] = []
    for name, case in CASES.items():
        try:
            assert_case(rows, ids[name], case)
        except AssertionError as error:
            wrong.append(f"{name}: {error}")
    assert wrong == []
    assert daemon.stop() == 0
    assert_settled(rows)
