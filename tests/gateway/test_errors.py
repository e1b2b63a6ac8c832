"""Error groups over HTTP and by the client, on both engines."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from tests.support.gateway import Api
from workerd.client import Client
from workerd.errors import InvalidValue, NotFound


def group_of(api: Api, fingerprint: str) -> dict[str, Any]:
    found: dict[str, Any] = api.get(f"/errors/{fingerprint}").json()
    return found


def listed(api: Api, query: str = "") -> list[str]:
    return [group["fingerprint"] for group in api.get(f"/errors?limit=500{query}").json()["errors"]]


def test_a_group_is_seen_resolved_and_comes_back(api: Api) -> None:
    """With its newest failure, its stack, its place in the metric, and what `why` says of it."""
    first = api.ended(api.enqueue("behave", {"kind": "error"}))
    fingerprint = first["fingerprint"]
    assert first["error_class"] == "builtins.ValueError"
    assert first["attempts"][-1]["fingerprint"] == fingerprint
    second = api.ended(api.enqueue("behave", {"kind": "error"}))
    group = group_of(api, fingerprint)
    assert (group["job_id"], group["attempt"], group["handler"]) == (second["id"], 1, "behave")
    assert group["count"] >= 2
    assert sum(group["hours"]) == group["count"]
    assert group["open"]
    assert "ValueError" in group["stack"]
    why = api.get(f"/jobs/{first['id']}/why").json()["why"]
    assert any(fingerprint in sentence for sentence in why)
    resolved = api.post(f"/errors/{fingerprint}/resolve").json()
    assert not resolved["open"]
    assert resolved["resolved_by"]
    assert fingerprint not in listed(api)
    assert fingerprint in listed(api, "&all=true")
    assert fingerprint in listed(api, "&all=1")
    api.ended(api.enqueue("behave", {"kind": "error"}))
    assert group_of(api, fingerprint)["open"]
    assert fingerprint in listed(api, "&handler=behave&since=2020-01-01T00:00:00Z")
    assert fingerprint not in listed(api, "&handler=add")


def test_a_group_is_muted(api: Api) -> None:
    fingerprint = api.ended(api.enqueue("behave", {"kind": "failure"}))["fingerprint"]
    muted = api.post(f"/errors/{fingerprint}/mute", {"for": "1d"}).json()
    assert muted["muted_until"] > datetime.now(UTC).isoformat()
    assert fingerprint not in listed(api)
    api.ended(api.enqueue("behave", {"kind": "failure"}))
    assert group_of(api, fingerprint)["count"] == muted["count"] + 1
    assert fingerprint not in listed(api)
    assert api.post(f"/errors/{fingerprint}/mute", {"for": 0}).json()["open"]


def test_every_ending_has_its_class(api: Api) -> None:
    """Those that raised nothing too, and what is no failure has none."""
    for kind, expected in (
        ("result_false", "workerd.Failure"),
        ("failure", "workerd.Failure"),
        ("kill_self", "workerd.Crashed"),
        ("exit", "builtins.SystemExit"),
        ("ok", None),
        ("ignored", None),
        ("snooze", None),
    ):
        job = api.ended(api.enqueue("behave", {"kind": kind}))
        assert job["error_class"] == expected, kind
        assert (job["fingerprint"] is None) == (expected is None)
    assert api.ended(api.enqueue("behave", {"kind": "loop"}, deadline="100ms"))["error_class"] == (
        "workerd.DeadlineExceeded"
    )


def test_new_errors_are_counted(api: Api) -> None:
    """A handler's count begins with 0, so that a rate sees the first."""
    text = api.get("/metrics").text
    assert 'workerd_errors_new_total{handler="limited"} 0.0' in text


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/errors/xyz", None, 422),
        ("GET", f"/errors/{'0' * 16}", None, 404),
        ("GET", "/errors?all=yes", None, 422),
        ("GET", "/errors?after=1.2", None, 422),
        ("POST", f"/errors/{'0' * 16}/resolve", {}, 404),
        ("POST", "/errors/xyz/resolve", {}, 422),
        ("POST", f"/errors/{'0' * 16}/mute", {"for": "1d"}, 404),
        ("POST", f"/errors/{'0' * 16}/mute", {"for": "soon"}, 422),
        ("POST", f"/errors/{'0' * 16}/mute", {}, 422),
        ("POST", f"/errors/{'0' * 16}/mute", {"for": -1}, 422),
    ],
)
def test_bad_input(api: Api, method: str, path: str, body: Any, status: int) -> None:
    answer = api.http.request(method, path, json=body)
    assert answer.status_code == status, answer.text
    assert answer.json()["detail"]


def test_by_the_client(api: Api) -> None:
    fingerprint = api.ended(api.enqueue("behave", {"kind": "unprintable"}))["fingerprint"]
    with Client(api.daemon.url) as client:
        assert client.error(fingerprint).open
        assert fingerprint in [group.fingerprint for group in client.errors("behave", limit=500)]
        assert client.resolve_error(fingerprint).resolved_at is not None
        assert client.errors("behave", since=datetime.now(UTC)) == []
        muted = client.mute_error(fingerprint, "2h")
        assert muted.muted_until is not None
        assert fingerprint in [group.fingerprint for group in client.errors(all=True, limit=500)]
        with pytest.raises(InvalidValue):
            client.error("nothing")
        with pytest.raises(NotFound):
            client.error("0" * 16)
