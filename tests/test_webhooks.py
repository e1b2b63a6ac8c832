"""Delivery of webhooks: signature, addresses, and what an answer means."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import workerd.webhooks
from tests.support.webhook_receiver import SECRET, WebhookReceiver
from workerd import testing
from workerd.check import check_config
from workerd.config.build import load
from workerd.config.model import Config
from workerd.config.webhook_config import WebhookConfig
from workerd.errors import ConfigError, InvalidValue
from workerd.job_spec import JobSpec, check
from workerd.webhooks import Deliverer, address_of, is_public, signature


@pytest.fixture
def receiver() -> Iterator[WebhookReceiver]:
    made = WebhookReceiver()
    yield made
    made.close()


def deliver(tmp_path: Path, url: str, *, secret: bytes = SECRET + b"\n", private: bool = True) -> Any:
    (tmp_path / "secret").write_bytes(secret)
    config = WebhookConfig(url=url, secret_file=str(tmp_path / "secret"), allow_private=private)
    return testing.attempt(Deliverer({"ops": config}), {"webhook": "ops", "body": '{"event":"é"}'})


def test_a_delivery_is_signed_and_has_the_jobs_id_as_its_key(
    tmp_path: Path, receiver: WebhookReceiver
) -> None:
    """The receiver checks the signature; one newline at the end of the file does not count."""
    assert deliver(tmp_path, receiver.url).payload == 204
    headers, body = receiver.deliveries[0]
    assert body == {"event": "é"}
    assert headers["Content-Type"] == "application/json"
    assert len(headers["Idempotency-Key"]) == 36
    known = "ec1ceb64e9d1e0dbe6a67a72bc67456b853bc92a80adb39414059e96aea60b97"
    assert signature(b"k", b"{}", 12) == f"t=12,v1={known}"


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (200, "ok"), (302, "failure"), (307, "failure"), (400, "failure"), (404, "failure"), (410, "failure"),
        (408, "error"), (429, "error"), (500, "error"), (503, "error"),
    ],
)  # fmt: skip
def test_what_an_answer_means(tmp_path: Path, receiver: WebhookReceiver, status: int, reason: str) -> None:
    """A redirect is never followed; what would be answered again is final."""
    receiver.answers.append(status)
    outcome = deliver(tmp_path, receiver.url)
    assert outcome.reason == reason
    assert len(receiver.deliveries) == 1
    assert reason == "ok" or str(status) in str(outcome.error)


@pytest.mark.parametrize(
    ("url", "private", "reason", "words"),
    [
        ("http://127.0.0.1:1/", True, "error", "refused"),
        ("http://127.0.0.1:1/", False, "failure", "not a public address"),
        ("http://localhost:1/", False, "failure", "not a public address"),
        ("http://[::1]:1/", False, "failure", "not a public address"),
        ("http://no-such-host.invalid/", True, "error", "gaierror"),
    ],
)
def test_private_addresses_are_looked_at_after_resolution(
    tmp_path: Path, url: str, private: bool, reason: str, words: str
) -> None:
    """Nothing is sent there."""
    outcome = deliver(tmp_path, url, private=private)
    assert (outcome.reason, words in str(outcome.error)) == (reason, True), outcome.error


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True), ("2606:4700::1111", True), ("10.1.2.3", False), ("172.16.0.1", False),
        ("192.168.1.1", False), ("169.254.169.254", False), ("100.64.0.1", False), ("127.9.9.9", False),
        ("0.0.0.0", False), ("224.0.0.1", False), ("255.255.255.255", False), ("::1", False), ("::", False),
        ("fe80::1%eth0", False), ("fc00::1", False), ("::ffff:10.0.0.1", False), ("::ffff:8.8.8.8", True),
        ("64:ff9b::a00:1", False), ("64:ff9b::808:808", True), ("2002:a00:1::", False), ("ff02::1", False),
    ],
)  # fmt: skip
def test_which_addresses_are_public(address: str, public: bool) -> None:
    """Those that wrap an IPv4 address are what that is."""
    assert is_public(address) == public


def test_a_name_with_one_private_address_among_others_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The address that was looked at is the one that is connected to."""
    answers = [(0, 0, 0, "", (address, 80)) for address in ("8.8.8.8", "10.0.0.1")]
    monkeypatch.setattr(workerd.webhooks.socket, "getaddrinfo", lambda *args, **more: answers)
    with pytest.raises(Exception, match=r"resolves to 10\.0\.0\.1"):
        address_of("example.org", 80, private=False)
    assert address_of("example.org", 80, private=True) == "8.8.8.8"


def test_a_receiver_that_hangs_is_tried_again(
    tmp_path: Path, receiver: WebhookReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It holds a worker for the time limit alone."""
    monkeypatch.setattr(workerd.webhooks, "TIMEOUT_S", 0.2)
    receiver.hang.clear()
    outcome = deliver(tmp_path, receiver.url)
    assert (outcome.reason, "timed out" in str(outcome.error)) == ("error", True)


def test_a_receiver_that_speaks_no_http_is_tried_again(tmp_path: Path) -> None:
    """Whatever it says instead."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            link, _ = server.accept()
            received = b""
            while not received.endswith(b"}"):  # what is not read would reset the connection
                received += link.recv(1000)
            link.sendall(b"SSH-2.0\r\n\r\n")
            link.close()

        threading.Thread(target=answer, daemon=True).start()
        outcome = deliver(tmp_path, f"http://127.0.0.1:{server.getsockname()[1]}/")
    assert (outcome.reason, "does not speak HTTP" in str(outcome.error)) == ("error", True)


def test_nothing_is_signed_with_an_empty_secret(tmp_path: Path, receiver: WebhookReceiver) -> None:
    """Anybody could sign so; it is tried again, as the file may be mended."""
    outcome = deliver(tmp_path, receiver.url, secret=b"\n")
    assert (outcome.reason, "is empty" in str(outcome.error)) == ("error", True)
    assert not receiver.deliveries


def test_a_webhook_that_was_removed_fails_what_waits_for_it() -> None:
    """For good."""
    outcome = testing.attempt(Deliverer({}), {"webhook": "ops", "body": "{}"})
    assert (outcome.reason, "not configured any more" in str(outcome.error)) == ("failure", True)


# -- configuration


def loaded(tmp_path: Path, text: str) -> Config:
    (tmp_path / "workerd.toml").write_text(text)
    return load(tmp_path / "workerd.toml", {})


def test_webhooks_bring_a_handler_and_a_pool_with_a_policy_of_their_own(tmp_path: Path) -> None:
    """Without one there is none; `[defaults]` does not touch it."""
    assert "~webhook" not in loaded(tmp_path, "").pools
    config = loaded(
        tmp_path,
        '[defaults]\nmax_attempts = 1\ndeadline = "1h"\n[webhooks.ops]\nurl = "https://x.example/"\n'
        'secret_file = "/etc/x"\n',
    )
    handler = config.handlers["~webhook"]
    assert (handler.policy_own["max_attempts"], handler.policy_own["deadline"]) == (8, 10.0)
    assert handler.policy_defaults == {}
    assert (config.webhooks["ops"].handlers, config.webhooks["ops"].allow_private) == (("*",), False)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[webhooks.ops]\n", "webhooks.ops.url: expected a value, as a webhook needs one; got none"),
        ('[webhooks.ops]\nurl = "ftp://x/"\nsecret_file = "/x"', "expected an address"),
        ('[webhooks.ops]\nurl = "https://u:p@x/"\nsecret_file = "/x"', "expected an address"),
        ('[webhooks.ops]\nurl = "https://x:99999/"\nsecret_file = "/x"', "expected an address"),
        ('[webhooks.ops]\nurl = "https://x/ y"\nsecret_file = "/x"', "expected an address"),
        ('[webhooks.ops]\nurl = "https://x/"\nsecret_file = "x"', "expected an absolute path"),
        ('[webhooks.ops]\nurl = "https://x/"\nsecret_file = "/x"\non = ["success"]', 'expected "failure" or'),
        ('[handlers."~webhook"]\ncall = "m:f"', 'names that start with "~" are reserved'),
        ('[schedules.s]\nhandler = "~webhook"\ncron = "* * * * *"', 'names that start with "~" are reserved'),
        ('[workflows.w]\njobs = [{ name = "a", handler = "~webhook" }]', 'that start with "~" are reserved'),
        ('[workflows.w]\njobs = [{ name = "a", handler = "~wait" }]', 'that start with "~" are reserved'),
        ('[workflows.w]\nsteps = [{ name = "a", jobs = ["~wait"] }]', 'that start with "~" are reserved'),
    ],
)
def test_a_wrong_webhook_is_a_configuration_error(tmp_path: Path, text: str, message: str) -> None:
    """Names with ~ are reserved."""
    with pytest.raises(ConfigError) as caught:
        loaded(tmp_path, text)
    assert message in str(caught.value)


def test_check_tells_of_a_webhook_that_cannot_work(tmp_path: Path) -> None:
    """Its secret, an address that is refused whenever it is looked at, handlers that are not there."""
    (tmp_path / "empty").touch(0o600)
    (tmp_path / "good").write_text("s3cr3t")
    (tmp_path / "good").chmod(0o600)
    hooks = "".join(
        f'[webhooks.{name}]\nurl = "http://{host}/"\nsecret_file = "{tmp_path}/{file}"\n{more}\n'
        for name, host, file, more in (
            ("good", "example.org", "good", 'handlers = ["here*"]'),
            ("allowed", "127.0.0.1", "good", "allow_private = true"),
            ("gone", "example.org", "gone", ""),
            ("empty", "example.org", "empty", ""),
            ("inside", "[::1]", "good", ""),
            ("nobody", "8.8.8.8", "good", 'handlers = ["nowhere*", "there"]'),
        )
    )
    config = loaded(tmp_path, f'[handlers.here-it-is]\ncall = "os:getpid"\n{hooks}')
    found = [note for note in check_config(config).notes if note.startswith("webhooks.")]
    assert [note.partition(": ")[0] for note in found] == [
        "webhooks.gone.secret_file", "webhooks.empty.secret_file", "webhooks.inside.url",
        "webhooks.nobody.handlers",
    ]  # fmt: skip
    for note, words in zip(found, ("cannot read", "is empty", "allow_private", "this node"), strict=True):
        assert words in note


def test_nobody_enqueues_deliveries() -> None:
    """By the client, HTTP or command line."""
    with pytest.raises(InvalidValue, match="reserved"):
        check(JobSpec(handler="~webhook"))
