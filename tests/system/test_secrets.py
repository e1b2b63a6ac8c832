"""The store's password is in the memory of the roles that use it, and of no other process."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.support.daemon import ROOT, Daemon
from tests.support.eventually import eventually

PASSWORD = "secret-of-the-store-827364"
# No server listens there; the test needs no connection.
URL = f"mysql://app:{PASSWORD}@127.0.0.1:1/jobs"
CONFIG = f"""
[handlers.record]
call = "tests.support.handlers:record"
path = ["{ROOT}"]
"""
STORE_ROLES = {"ingester", "dispatcher", "gateway"}


def memory_contains(pid: int, text: str) -> bool:
    """Whether the readable memory of a process contains this text."""
    with Path(f"/proc/{pid}/maps").open() as maps, Path(f"/proc/{pid}/mem").open("rb", 0) as memory:
        for line in maps:
            found = re.match(r"([0-9a-f]+)-([0-9a-f]+) r", line)
            if not found or "[v" in line:
                continue
            start, end = (int(address, 16) for address in found.groups())
            try:
                memory.seek(start)
                if text.encode() in memory.read(end - start):
                    return True
            except OSError:
                continue
    return False


def processes_without_store(top: psutil.Process) -> dict[str, int]:
    """Return the pids of a daemon's processes that do not use the store, by title."""
    tree = [top, *top.children(recursive=True)]
    titles = {process.cmdline()[0].split(": ")[1].strip(): process.pid for process in tree}
    return {title: pid for title, pid in titles.items() if title not in STORE_ROLES}


@pytest.fixture(params=["file", "environment"])
def daemon(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Daemon]:
    """A daemon that reads its store URL from the file or from the environment."""
    from_environment = request.param == "environment"
    env = {"WORKERD_STORE__URL": URL, "WORKERD_TOKEN": "hidden"} if from_environment else {}
    made = Daemon(tmp_path / "node", "sqlite:////nowhere/x.db" if from_environment else URL, CONFIG, env=env)
    made.spawn()
    eventually(
        lambda: [
            worker
            for worker in made.status().get("pools", {}).get("record", {}).get("workers", ())
            if worker["state"] == "idle"
        ],
        state=made.tail,
    )
    yield made
    made.end()


def test_only_the_store_roles_hold_the_password(daemon: Daemon) -> None:
    """Supervisor, pools and workers have it neither in memory nor in the environment, also after a reload."""
    assert daemon.process is not None
    found = processes_without_store(psutil.Process(daemon.process.pid))
    assert found.keys() == {"supervisor", "pool record", "worker record/0"}
    daemon.cli("reload")
    eventually(lambda: daemon.status().get("state") != "reloading", state=daemon.tail)
    for title, pid in processes_without_store(psutil.Process(daemon.process.pid)).items():
        environment = Path(f"/proc/{pid}/environ").read_text()
        assert "WORKERD_" not in environment, title
        assert PASSWORD not in environment
        assert not memory_contains(pid, PASSWORD), title
    assert memory_contains(daemon.pid("dispatcher"), PASSWORD)


def test_a_background_daemon_does_not_keep_the_password(tmp_path: Path) -> None:
    """`start` reads the configuration before it detaches; the daemon it leaves must not inherit the text."""
    # A comment: what of the URL is no secret, such as the path of a file, is in the status of each role.
    daemon = Daemon(tmp_path / "node", f"sqlite:///{tmp_path}/store.db", f"{CONFIG}# {PASSWORD}\n")
    daemon.cli("start")
    try:
        assert (daemon.folder / "state").stat().st_mode & 0o777 == 0o750
        top = psutil.Process(int((daemon.folder / "run" / "workerd.pid").read_text()))
        for title, pid in processes_without_store(top).items():
            assert not memory_contains(pid, PASSWORD), title
    finally:
        daemon.cli("stop")
