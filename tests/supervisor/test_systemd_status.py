"""The line that `systemctl status` shows, the watchdog, and more time."""

from __future__ import annotations

from typing import Any

from workerd.supervisor.systemd_status import SystemdStatus, status_sentence


def worker(job: str = "", since: float = 0.0) -> dict[str, Any]:
    return {"name": "x/0", "since": since} | ({"job": job, "handler": "slow"} if job else {})


def document(**more: Any) -> dict[str, Any]:
    return {"state": "ready", "roles": {}, "pools": {}} | more


def test_a_quiet_node() -> None:
    """Nothing runs, nothing waits; before a pool has sentence anything too."""
    assert status_sentence(document(), 0) == "Ready: 0 jobs running, 0 waiting"
    assert status_sentence(document(pools={"a": {}}), 0) == "Ready: 0 jobs running, 0 waiting"


def test_depth_and_slowest_job() -> None:
    """The job that runs longest is named, with its handler and whole seconds."""
    pools = {
        "a": {"waiting": 2, "workers": [worker("one", 90.5), worker("two", 95.0)]},
        "b": {"waiting": 1, "workers": [worker()], "quarantined": True},
    }
    sentence = status_sentence(
        document(pools=pools, roles={"ingester": {"trouble": "waits for the store"}}), 100.0
    )
    assert sentence == (
        "Ready: 2 jobs running, 3 waiting, the slowest is slow one for 9 s; held back: b; "
        "ingester waits for the store"
    )


def test_the_status_is_sent_when_it_changes_and_the_watchdog_fed_on_progress() -> None:
    """A node without progress does not feed it; one that starts, reloads or drains asks for time."""
    sent: list[str] = []
    status = SystemdStatus(sent.append)
    status.update(document(state="starting"), progressing=True)
    status.update(document(), progressing=True)
    status.update(document(), progressing=True)
    status.update(document(), progressing=False)
    status.update(document(state="draining"), progressing=False)
    status.update(document(state="reloading"), progressing=False)
    assert sent == [
        "STATUS=Starting: 0 jobs running, 0 waiting\nEXTEND_TIMEOUT_USEC=15000000\nWATCHDOG=1",
        "STATUS=Ready: 0 jobs running, 0 waiting\nWATCHDOG=1",
        "WATCHDOG=1",
        "STATUS=Draining: 0 jobs running, 0 waiting\nEXTEND_TIMEOUT_USEC=15000000",
        "STATUS=Reloading: 0 jobs running, 0 waiting\nEXTEND_TIMEOUT_USEC=15000000",
    ]
