"""Who may know the store's password: the roles that use it, nobody who runs or starts other code."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.support.daemon import ROOT, Daemon
from tests.support.eventually import eventually

PASSWORD = "secret-of-the-store-827364"
# Nobody listens there: who may know it is no matter of whether it is right.
URL = f"mysql://app:{PASSWORD}@127.0.0.1:1/jobs"
CONFIG = f"""
[handlers.record]
call = "tests.support.handlers:record"
path = ["{ROOT}"]
"""
MAY_KNOW = {"ingester", "dispatcher", "gateway"}


def holds(pid: int, what: str) -> bool:
    """Whether anything readable in the memory of a process is this text."""
    with Path(f"/proc/{pid}/maps").open() as maps, Path(f"/proc/{pid}/mem").open("rb", 0) as memory:
        for line in maps:
            found = re.match(r"([0-9a-f]+)-([0-9a-f]+) r", line)
            if not found or "[v" in line:
                continue
            start, end = (int(text, 16) for text in found.groups())
            try:
                memory.seek(start)
                if what.encode() in memory.read(end - start):
                    return True
            except OSError:
                continue
    return False


def others(top: psutil.Process) -> dict[str, int]:
    """The processes of a daemon that have nothing to do with the store, by title."""
    tree = [top, *top.children(recursive=True)]
    titles = {process.cmdline()[0].split(": ")[1].strip(): process.pid for process in tree}
    return {title: pid for title, pid in titles.items() if title not in MAY_KNOW}


@pytest.fixture(params=["file", "environment"])
def daemon(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Daemon]:
    """A daemon that was told its store, and something else, one way or the other."""
    told = request.param == "environment"
    env = {"WORKERD_STORE__URL": URL, "WORKERD_TOKEN": "hidden"} if told else {}
    made = Daemon(tmp_path / "node", "sqlite:////nowhere/x.db" if told else URL, CONFIG, env=env)
    made.spawn()
    eventually(lambda: made.status().get("pools", {}).get("record", {}).get("workers"), state=made.tail)
    yield made
    made.end()


def test_only_the_store_roles_hold_the_password(daemon: Daemon) -> None:
    """Neither memory nor environment of supervisor, pools and workers has it, also after a reload."""
    assert daemon.process is not None
    found = others(psutil.Process(daemon.process.pid))
    assert found.keys() == {"supervisor", "pool record", "worker record/0"}
    daemon.cli("reload")
    eventually(lambda: daemon.status().get("state") != "reloading", state=daemon.tail)
    for title, pid in others(psutil.Process(daemon.process.pid)).items():
        environment = Path(f"/proc/{pid}/environ").read_text()
        assert "WORKERD_" not in environment, title
        assert PASSWORD not in environment
        assert not holds(pid, PASSWORD), title
    assert holds(daemon.pid("dispatcher"), PASSWORD)


def test_a_daemon_in_the_background_holds_it_no_more_than_one_in_the_foreground(tmp_path: Path) -> None:
    """`start` has read the configuration before it detaches; what it leaves running has not."""
    daemon = Daemon(tmp_path / "node", f"sqlite:///{tmp_path}/{PASSWORD}", CONFIG)
    daemon.cli("start")
    try:
        assert (daemon.folder / "state").stat().st_mode & 0o777 == 0o750
        top = psutil.Process(int((daemon.folder / "run" / "workerd.pid").read_text()))
        for title, pid in others(top).items():
            assert not holds(pid, PASSWORD), title
    finally:
        daemon.cli("stop")
