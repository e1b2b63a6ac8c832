"""Reload: which children are restarted and which are reported as failed."""

from __future__ import annotations

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from tests.supervisor.conftest import SupervisorHarness
from tests.support.eventually import eventually
from workerd.config.handler_config import PoolConfig
from workerd.config.model import Config
from workerd.runtime.loop import Loop
from workerd.supervisor.reload import Reload, ReloadPlan, make_plan

ROLES = ("ingester", "dispatcher", "gateway")


def planned(
    old: Config, new: Config, *, store_changed: bool = False, stale: set[str] | None = None
) -> ReloadPlan:
    return make_plan(old, new, ROLES, store_changed=store_changed, stale=stale or set())


def with_pools(*names: str) -> Config:
    return Config(pools={name: PoolConfig(name=name) for name in names})


def test_without_a_change_nothing_is_restarted() -> None:
    assert planned(with_pools("a"), with_pools("a")) == ReloadPlan()


def test_each_section_restarts_what_reads_it() -> None:
    """A pool is touched by its own change, or one that every process reads."""
    old = with_pools("a", "b")
    batch = msgspec.structs.replace(old, dispatcher=msgspec.structs.replace(old.dispatcher, batch=7))
    assert planned(old, batch) == ReloadPlan(roles=("dispatcher",))
    level = msgspec.structs.replace(old, log=msgspec.structs.replace(old.log, level="debug"))
    assert planned(old, level) == ReloadPlan(roles=ROLES, changed=("a", "b"))
    workers = msgspec.structs.replace(old, pools={**old.pools, "b": PoolConfig(name="b", workers=7)})
    assert planned(old, workers) == ReloadPlan(roles=("dispatcher", "gateway"), changed=("b",))
    assert planned(old, with_pools("b", "c")).children == [
        "dispatcher", "gateway", "pool:c", "pool:a",
    ]  # fmt: skip


def test_a_new_store_restarts_the_roles_and_new_code_its_pool() -> None:
    """Pools hold no store, and the roles hold no handlers."""
    old = with_pools("a", "b")
    assert planned(old, old, store_changed=True) == ReloadPlan(roles=ROLES)
    assert planned(old, old, stale={"b", "gone"}) == ReloadPlan(changed=("b",))


def test_reload_restarts_only_what_changed(harness: SupervisorHarness) -> None:
    """SIGHUP adds and removes exactly what the new configuration changes."""
    harness.start("a", "b")
    eventually(harness.is_ready)
    kept = harness.pool("a")["pid"]
    harness.configure("a", "c")
    answer = harness.reload()
    assert answer == {"ok": True, "changes": ["dispatcher", "pool:c", "pool:b"], "failed": {}}
    assert harness.events("reload.finished")
    assert set(harness.status()["pools"]) == {"a", "c"}
    assert harness.is_ready()
    assert harness.pool("a")["pid"] == kept
    assert harness.stop() == 0


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("dies", "pool:dies ended while its handlers were loaded: it ended with exit status 3"),
        ("falls", "pool:falls ended with exit status 4"),
        ("loops", "pool:loops ended because its workers die without having a job"),
        ("waits", "It waits for something that is not there."),
        ("hangs", "pool:hangs is not up after 1 s"),
    ],
)
def test_a_reload_whose_pool_does_not_stay_up_has_failed(
    harness: SupervisorHarness, name: str, sentence: str
) -> None:
    """The answer and the log name the child and its sentence; all other children are restarted."""
    harness.start("a")
    eventually(harness.is_ready)
    harness.configure(name, "b")
    answer = harness.reload()
    assert answer["ok"] is False
    assert answer["failed"] == {f"pool:{name}": sentence}
    assert set(answer["changes"]) == {"dispatcher", "pool:a", "pool:b", f"pool:{name}"}
    (event,) = harness.events("reload.failed")
    assert event["children"] == f"pool:{name}"
    assert sentence in event["error"]
    assert not harness.events("reload.finished")
    assert harness.pool("b")["state"] == "up"
    assert set(harness.status()["pools"]) == {"b", name}
    assert harness.stop() == 0


@pytest.mark.slow
@pytest.mark.parametrize("fate", ["falls", "waits"])
def test_a_reload_whose_roles_do_not_stay_up_has_failed(harness: SupervisorHarness, fate: str) -> None:
    """A reload that breaks a role has failed, though the role is restarted; the next one may mend it."""
    harness.start("a")
    eventually(harness.is_ready)
    (harness.folder / "fate").write_text(fate)
    harness.configure("a", "debug")
    answer = harness.reload()
    assert answer["ok"] is False
    assert set(answer["failed"]) == {"ingester", "dispatcher"}
    (harness.folder / "fate").write_text("")
    harness.configure("a")
    assert harness.reload()["ok"] is True
    eventually(harness.is_ready)
    assert harness.stop() == 0


def test_reloads_at_the_same_time_are_one_after_the_other(harness: SupervisorHarness) -> None:
    """Each is answered, and each is read afresh."""
    harness.start("a")
    eventually(harness.is_ready)
    harness.configure("b")
    with ThreadPoolExecutor(3) as askers:
        answers = list(askers.map(lambda _: harness.reload(), range(3)))
    assert [answer["ok"] for answer in answers] == [True] * 3
    assert sorted(len(answer["changes"]) for answer in answers) == [0, 0, 3]
    assert set(harness.status()["pools"]) == {"b"}


def test_a_stop_during_a_reload_answers_it(harness: SupervisorHarness) -> None:
    """Who asked for the reload is not left waiting."""
    harness.start("a")
    eventually(harness.is_ready)
    harness.configure("hangs")
    with ThreadPoolExecutor(1) as asker:
        asked = asker.submit(harness.reload)
        eventually(lambda: harness.status()["state"] == "reloading")
        harness.process.send_signal(signal.SIGTERM)
        assert asked.result() == {"ok": False, "stopping": True}
    assert harness.process.wait(30) == 0


# -- code that changed, quarantine, and one pool


def test_a_pool_that_does_not_say_whether_its_code_changed_is_named(harness: SupervisorHarness) -> None:
    """It may run on with old code, so the reload has failed for it."""
    harness.start("a", "b")
    eventually(harness.is_ready)
    os.kill(harness.pool("a")["pid"], signal.SIGSTOP)
    answer = harness.reload()
    assert answer["ok"] is False
    assert set(answer["failed"]) == {"pool:a"}
    assert "`workerd restart a`" in answer["failed"]["pool:a"]
    assert answer["changes"] == []
    eventually(harness.is_ready)
    assert harness.reload()["ok"] is True


def test_a_pool_that_is_slow_to_say_that_its_code_changed_is_reloaded(harness: SupervisorHarness) -> None:
    """On a busy machine too."""
    harness.start("slow-and-stale")
    eventually(harness.is_ready)
    pid = harness.pool("slow-and-stale")["pid"]
    answer = harness.reload()
    assert answer == {"ok": True, "changes": ["pool:slow-and-stale"], "failed": {}}
    assert harness.pool("slow-and-stale")["pid"] != pid


def test_a_quarantined_pool_is_tried_again_at_a_reload(harness: SupervisorHarness) -> None:
    """However long its pause; the status says how long. It stays quarantined, and the node ready."""
    harness.start("a", "loops")
    eventually(lambda: harness.is_ready() and harness.pool("loops")["restarts"] >= 4)
    assert harness.pool("loops")["retry_in_s"] is not None
    before = harness.pool("loops")["restarts"]
    answer = harness.reload()
    assert answer["changes"] == ["pool:loops"]
    assert set(answer["failed"]) == {"pool:loops"}
    pool = harness.pool("loops")
    assert pool["restarts"] > before
    assert pool["quarantined"]
    assert harness.is_ready()


@pytest.mark.slow
def test_a_quarantined_pool_that_dies_when_a_reload_asks_it_is_tried_again(
    harness: SupervisorHarness,
) -> None:
    """The reload begins at its death, and has an answer; so has the next one."""
    harness.start("dies-when-asked")
    eventually(harness.is_ready, within=20)
    eventually(lambda: harness.pool("dies-when-asked")["pid"])
    (harness.folder / "asked").touch()
    answer = harness.reload()
    assert (answer["ok"], list(answer["failed"])) == (False, ["pool:dies-when-asked"])
    assert harness.reload()["failed"]
    assert "AssertionError" not in harness.log.read_text()
    assert harness.stop() == 0


def test_a_reload_that_meets_a_bug_has_an_answer() -> None:
    """Else no later one would begin; the error itself is the loop's to log."""
    loop = Loop()
    answers: list[dict[str, str]] = []
    children: Any = SimpleNamespace(draining=False)  # has none of what a reload needs
    made = Reload(loop, children, Config(), ReloadPlan(removed=("a",)), 0.0, answers.append)
    with pytest.raises(AttributeError):
        made.start()
    loop.close()
    assert [list(answer) for answer in answers] == [["supervisor"]]


def test_one_pool_is_restarted_by_its_name(harness: SupervisorHarness) -> None:
    """Nothing else is, and the configuration is not read again; an unknown one is answered with the known."""
    harness.start("a", "b")
    eventually(harness.is_ready)
    before = {name: harness.pool(name)["pid"] for name in ("a", "b")}
    harness.configure("a", "c")
    assert harness.restart("c") == {"ok": False, "unknown": "c", "pools": ["a", "b"]}
    with ThreadPoolExecutor(2) as askers:
        answers = list(askers.map(lambda _: harness.restart("a"), range(2)))
    assert answers == [{"ok": True, "changes": ["pool:a"], "failed": {}}] * 2
    assert harness.pool("a")["pid"] != before["a"]
    assert harness.pool("b")["pid"] == before["b"]
    assert harness.stop() == 0
