"""Reload: what is restarted, and which children are reported as failed."""

from __future__ import annotations

import signal
from concurrent.futures import ThreadPoolExecutor

import msgspec
import pytest

from tests.supervisor.conftest import Node
from tests.support.eventually import eventually
from workerd.config.model import Config, PoolConfig
from workerd.supervisor.reload import ReloadPlan, make_plan

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


def test_reload_restarts_only_what_changed(node: Node) -> None:
    """SIGHUP adds, removes and leaves alone exactly what the new configuration says."""
    node.start("a", "b")
    eventually(node.is_ready)
    kept = node.pool("a")["pid"]
    node.configure("a", "c")
    answer = node.reload()
    assert answer == {"ok": True, "changes": ["dispatcher", "pool:c", "pool:b"], "failed": {}}
    assert node.events("reload.finished")
    assert set(node.status()["pools"]) == {"a", "c"}
    assert node.is_ready()
    assert node.pool("a")["pid"] == kept
    assert node.stop() == 0


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("dies", "pool:dies ended with exit status 3"),
        ("falls", "pool:falls ended with exit status 4"),
        ("loops", "pool:loops ended because its workers die without having a job"),
        ("waits", "It waits for something that is not there."),
        ("hangs", "pool:hangs is not up after 1 s"),
    ],
)
def test_a_reload_whose_pool_does_not_stay_up_has_failed(node: Node, name: str, sentence: str) -> None:
    """The answer and the log name the child and its sentence; all other children are restarted."""
    node.start("a")
    eventually(node.is_ready)
    node.configure(name, "b")
    answer = node.reload()
    assert answer["ok"] is False
    assert answer["failed"] == {f"pool:{name}": sentence}
    assert set(answer["changes"]) == {"dispatcher", "pool:a", "pool:b", f"pool:{name}"}
    (event,) = node.events("reload.failed")
    assert event["children"] == f"pool:{name}"
    assert sentence in event["error"]
    assert not node.events("reload.finished")
    assert node.pool("b")["state"] == "up"
    assert set(node.status()["pools"]) == {"b", name}
    assert node.stop() == 0


@pytest.mark.parametrize("fate", ["falls", "waits"])
def test_a_reload_whose_roles_do_not_stay_up_has_failed(node: Node, fate: str) -> None:
    """A reload that breaks a role has failed, though the role is restarted; the next one may mend it."""
    node.start("a")
    eventually(node.is_ready)
    (node.folder / "fate").write_text(fate)
    node.configure("a", "debug")
    answer = node.reload()
    assert answer["ok"] is False
    assert set(answer["failed"]) == {"ingester", "dispatcher"}
    (node.folder / "fate").write_text("")
    node.configure("a")
    assert node.reload()["ok"] is True
    eventually(node.is_ready)
    assert node.stop() == 0


def test_reloads_at_the_same_time_are_one_after_the_other(node: Node) -> None:
    """Each is answered, and each is read afresh."""
    node.start("a")
    eventually(node.is_ready)
    node.configure("b")
    with ThreadPoolExecutor(3) as askers:
        answers = list(askers.map(lambda _: node.reload(), range(3)))
    assert [answer["ok"] for answer in answers] == [True] * 3
    assert sorted(len(answer["changes"]) for answer in answers) == [0, 0, 3]
    assert set(node.status()["pools"]) == {"b"}


def test_a_stop_during_a_reload_answers_it(node: Node) -> None:
    """Who asked for the reload is not left waiting."""
    node.start("a")
    eventually(node.is_ready)
    node.configure("hangs")
    with ThreadPoolExecutor(1) as asker:
        asked = asker.submit(node.reload)
        eventually(lambda: node.status()["state"] == "reloading")
        node.process.send_signal(signal.SIGTERM)
        assert asked.result() == {"ok": False, "errors": ["workerd is stopping."]}
    assert node.process.wait(30) == 0
