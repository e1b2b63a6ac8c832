"""Webhooks of a daemon: each event once, as durable jobs that are tried again."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.daemon import HANDLERS, Daemon
from tests.support.eventually import eventually
from tests.support.rows import Rows
from tests.support.webhook_receiver import SECRET, WebhookReceiver

CONFIG = """
[dispatcher]
poll = "50ms"
[webhooks.ops]
url = "{url}"
secret_file = "{secret}"
allow_private = true
[webhooks.errors]
url = "{url}"
secret_file = "{secret}"
allow_private = true
on = ["new_error"]
handlers = ["beh*", "nothing"]
[webhooks.public]
url = "{url}"
secret_file = "{secret}"
on = ["quarantine"]
[handlers.behave]
call = "{handlers}:behave"
redact = ["token"]
max_attempts = 2
backoff = {{ first = "0s" }}
[handlers.noop]
call = "{handlers}:noop"
[handlers.broken]
call = "no_such_module:run"
restart = {{ intensity = 1, period = "60s" }}
[workflows.fails]
steps = [{{ name = "one", jobs = ["behave"] }}, {{ name = "two", jobs = ["noop"] }}]
"""


@pytest.fixture
def receiver() -> Iterator[WebhookReceiver]:
    made = WebhookReceiver()
    yield made
    made.close()


@pytest.fixture
def configuration(tmp_path: Path, receiver: WebhookReceiver) -> str:
    (tmp_path / "secret").write_bytes(SECRET)
    return CONFIG.format(url=receiver.url, secret=tmp_path / "secret", handlers=HANDLERS)


def test_every_event_is_delivered_once(
    start_daemon: Callable[..., Daemon], store_url: str, configuration: str, receiver: WebhookReceiver
) -> None:
    """With the document of what it tells of; a delivery that fails is tried again with the same key."""
    receiver.answers += [500]
    daemon, rows = start_daemon(configuration), Rows(store_url)

    # The pool that does not load. Another webhook may not reach this address: its delivery fails for good.
    eventually(lambda: receiver.events() == ["quarantine"] * 2, within=40, state=daemon.tail)
    (first, body), (second, again) = receiver.deliveries
    assert body == again
    assert first["Idempotency-Key"] == second["Idempotency-Key"]
    assert (body["pool"]["name"], body["pool"]["node"], body["pool"]["handlers"]) == (
        "broken",
        "one",
        ["broken"],
    )
    assert "no_such_module" in body["pool"]["error"]
    refused = "SELECT error FROM workerd_jobs WHERE handler = '~webhook' AND status = 'failure'"
    eventually(lambda: rows.sql(refused), within=20, state=daemon.tail)
    assert "allow_private" in rows.sql(refused)[0]["error"]

    # A job that has failed for good, not one that is tried again; a failure that is new, once.
    receiver.deliveries.clear()
    job = rows.insert("behave", {"kind": "error"}, meta='{"token": "not for others"}')
    eventually(lambda: sorted(receiver.events()) == ["failure", "new_error", "new_error"], within=20)
    told = {body["event"]: body for _, body in receiver.deliveries}
    assert told["failure"]["job"]["id"] == str(uuid.UUID(bytes=job))
    assert (told["failure"]["job"]["attempt"], told["failure"]["job"]["reason"]) == (2, "error")
    assert told["failure"]["job"]["meta"] == {"token": "[redacted]"}
    assert told["new_error"]["error"]["error_class"] == "builtins.ValueError"
    receiver.deliveries.clear()
    rows.insert("behave", {"kind": "error"})
    eventually(lambda: receiver.events() == ["failure"], within=20, state=daemon.tail)

    # A request.
    receiver.deliveries.clear()
    request = daemon.cli("request", "submit", "fails", "kind=failure").stdout.strip()
    eventually(lambda: "request_failed" in receiver.events(), within=20, state=daemon.tail)
    [told_of] = [body for _, body in receiver.deliveries if body["event"] == "request_failed"]
    assert (told_of["request"]["id"], told_of["request"]["status"]) == (request, "failed")
    assert told_of["request"]["error"]

    # Deliveries are jobs like others, and those that fail are told of by nobody.
    deliveries = rows.sql("SELECT DISTINCT id FROM workerd_jobs WHERE handler = '~webhook'")
    live = "handler = '~webhook' AND status IN ('new', 'scheduled', 'inprogress')"
    eventually(lambda: not rows.sql(f"SELECT 1 FROM workerd_jobs WHERE {live}"), within=20, state=daemon.tail)
    assert rows.sql("SELECT DISTINCT id FROM workerd_jobs WHERE handler = '~webhook'") == deliveries
    refused_by_cli = daemon.cli("enqueue", "~webhook", "webhook=ops", check=False)
    assert refused_by_cli.returncode == 2


def test_an_event_survives_the_death_of_the_daemon(
    start_daemon: Callable[..., Daemon], store_url: str, configuration: str, receiver: WebhookReceiver
) -> None:
    """Its delivery was inserted by the transaction that recorded the failure; the receiver hung."""
    receiver.hang.clear()
    daemon, rows = start_daemon(configuration), Rows(store_url)
    job = rows.insert("behave", {"kind": "failure"})
    eventually(lambda: rows.ended(job), within=20, state=daemon.tail)
    waiting = "SELECT id FROM workerd_jobs WHERE handler = '~webhook' AND meta LIKE '%%\"failure\"%%'"
    [delivery] = rows.sql(waiting)
    daemon.kill_tree()
    assert daemon.process is not None
    daemon.process.wait()
    receiver.hang.set()
    receiver.deliveries.clear()
    daemon.start()
    eventually(lambda: "failure" in receiver.events(), within=60, state=daemon.tail)
    keys = {h["Idempotency-Key"] for h, body in receiver.deliveries if body["event"] == "failure"}
    assert keys == {str(uuid.UUID(bytes=delivery["id"]))}
