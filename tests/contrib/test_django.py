"""Django's tasks on workerd: the backend in a process of the project, the tasks in a daemon's pool.

Runs with the package django-tasks on Django 5.2, and with `django.tasks` where Django 6 is installed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.daemon import ROOT, Daemon
from tests.support.eventually import eventually
from tests.support.rows import Rows
from tests.support.servers import DatabaseServer
from tests.test_transaction import arguments
from workerd.config.model import StoreConfig
from workerd.store.engines import open_store

CONFIG = """
[dispatcher]
poll = "50ms"
[defaults]
path = ["{root}"]
backoff = {{ first = "0s" }}
max_attempts = 2
[defaults.env]
DJANGO_SETTINGS_MODULE = "tests.contrib.django_shop.settings"
SHOP_DATABASE = '{database}'
SHOP_SIGNALS = "{folder}"
[handlers.django]
call = "workerd.contrib.django:run"
[handlers.django-urgent]
call = "workerd.contrib.django:run"
"""
MISSING = "00000000-0000-0000-0000-000000000000"


def database_of(url: str) -> dict[str, Any]:
    if url.startswith("sqlite"):
        return {"ENGINE": "django.db.backends.sqlite3", "NAME": url.removeprefix("sqlite:///")}
    given = arguments(url)
    return {
        "ENGINE": "django.db.backends.mysql", "NAME": given["database"], "USER": given["user"],
        "PASSWORD": given["password"], "HOST": given.get("unix_socket", given["host"]),
        "PORT": "" if "unix_socket" in given else given["port"], "CONN_MAX_AGE": None,
    }  # fmt: skip


class Shop:
    """A process of the project."""

    def __init__(self, folder: Path, url: str) -> None:
        self.url, self.folder = url, folder
        env = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "DJANGO_SETTINGS_MODULE": "tests.contrib.django_shop.settings",
            "SHOP_DATABASE": json.dumps(database_of(url)),
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.contrib.django_shop"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env, text=True,
        )  # fmt: skip

    def __call__(self, call: str, /, **arguments: Any) -> Any:
        answer = self._ask(call, arguments)
        assert "error" not in answer, answer.get("trace")
        return answer["value"]

    def error(self, call: str, /, **arguments: Any) -> str:
        """The error of a call that fails."""
        return str(self._ask(call, arguments)["error"])

    def _ask(self, call: str, arguments: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([call, arguments]) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def ended(self, name: str, *args: Any, **more: Any) -> Any:
        """Enqueue a task and wait for its end."""
        done = self("enqueue", name=name, args=list(args), **more)
        return eventually(lambda: self.if_ended(done["id"]), within=30)

    def if_ended(self, id: str) -> Any:
        result = self("get", id=id)
        return result if result["finished"] else None

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(20)
        self._process.stdout.close()


@pytest.fixture(scope="module", params=["mysql", "sqlite"])
def url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    if request.param == "mysql":
        server: DatabaseServer = request.getfixturevalue("mysql_server")
        made: str = server.url(server.new_database())
    else:
        made = f"sqlite:///{tmp_path_factory.mktemp('django')}/store.db"
    store = open_store(StoreConfig(url=made))
    store.migrate()
    store.close()
    return made


@pytest.fixture(scope="module")
def shop(url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """The project, without a daemon."""
    shop = Shop(tmp_path_factory.mktemp("shop"), url)
    yield shop
    shop.close()


@pytest.fixture(scope="module")
def daemon(shop: Shop) -> Iterator[Daemon]:
    config = CONFIG.format(root=ROOT, database=json.dumps(database_of(shop.url)), folder=shop.folder)
    with Daemon(shop.folder / "node", shop.url, config) as daemon:
        yield daemon


# -- without a daemon: these come first, while nothing runs the jobs


def test_the_backend_supports_everything(shop: Shop) -> None:
    """Deferral, coroutines, results and priorities."""
    assert shop("supports") == [True] * 4


def test_an_enqueued_task_is_ready_and_can_be_looked_up(shop: Shop) -> None:
    """By its id; arguments are as JSON has them, and the signal was sent."""
    done = shop("enqueue", name="add", args=[1], kwargs={"b": [1, {"x": None}]}, using={"priority": 7})
    assert (done["status"], done["finished"], done["attempts"], done["backend"]) == (
        "READY",
        False,
        0,
        "default",
    )
    found = shop("get", id=done["id"])
    for key in (
        "id",
        "task",
        "kind",
        "priority",
        "queue",
        "status",
        "args",
        "kwargs",
        "errors",
        "started_at",
    ):
        assert found[key] == done[key], key
    assert found["kind"] == "WorkerdTask"
    assert found["enqueued_at"] is not None
    assert shop("get_of", name="add", id=done["id"])["id"] == done["id"]
    assert shop.error("get_of", name="later", id=done["id"]).startswith("TaskResultMismatch")
    assert f"WorkerdBackend {done['id']}" in shop("signals")
    (row,) = Rows(shop.url).sql("SELECT handler, priority, vars FROM workerd_jobs")
    assert (row["handler"], row["priority"]) == ("django", -7)
    assert json.loads(row["vars"]) == {
        "task": "tests.contrib.django_shop.tasks.add", "args": [1], "kwargs": {"b": [1, {"x": None}]},
    }  # fmt: skip


@pytest.mark.parametrize("id", [MISSING, "x", "", "0" * 500])
def test_an_unknown_or_malformed_id_has_no_result(shop: Shop, id: str) -> None:
    """And neither has a job that is no task."""
    assert shop.error("get", id=id).startswith("TaskResultDoesNotExist")
    other = Rows(shop.url).insert("other", {"a": 1})
    assert shop.error("get", id=other.hex()).startswith("TaskResultDoesNotExist")


def test_a_rollback_leaves_no_job(shop: Shop) -> None:
    """Though its own transaction saw it; a commit leaves one."""
    assert shop.error("get", id=shop("rolled_back")).startswith("TaskResultDoesNotExist")
    in_block, id = shop("committed")
    assert in_block
    assert shop("get", id=id)["status"] == "READY"


def test_a_deferred_task_keeps_its_time(shop: Shop) -> None:
    """With its zone; it is scheduled."""
    done = shop("enqueue", name="add", args=[1], minutes=90)
    found = shop("get", id=done["id"])
    assert found["run_after"] == done["run_after"]
    (row,) = Rows(shop.url).sql(
        "SELECT status FROM workerd_jobs WHERE id = %s", bytes.fromhex(done["id"].replace("-", ""))
    )
    assert row["status"] == "scheduled"


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("lambda", "module level"),
        ("inner", "module level"),
        ("queue", "Queue 'unknown' is not valid"),
        ("priority", "priority must be a whole number"),
        ("naive", "must be an aware datetime"),
        ("deadline", "deadline: expected a duration"),
        ("handler", "Queue 'mail' has no handler"),
    ],
)
def test_an_invalid_task_is_refused_where_it_is_defined(shop: Shop, kind: str, message: str) -> None:
    """With what is wrong."""
    assert message in shop("invalid", kind=kind)


def test_options_of_the_job_are_options_of_the_task(shop: Shop) -> None:
    """Deadline, attempts, unique key and group; a second one with the key is the first."""
    using = {"deadline": "1m", "max_attempts": 3, "unique_key": "k", "group": "g"}
    done = shop("enqueue", name="add", args=[1], using=using, minutes=5)
    (row,) = Rows(shop.url).sql(
        "SELECT deadline_ms, max_attempts, group_key FROM workerd_jobs WHERE unique_key = 'k'"
    )
    assert (row["deadline_ms"], row["max_attempts"], row["group_key"]) == (60_000, 3, "g")
    assert shop("enqueue", name="add", args=[2], using=using)["id"] == done["id"]


def test_a_unique_key_that_a_job_which_is_no_task_has(shop: Shop) -> None:
    """The message names the job."""
    done = shop("enqueue", name="add", args=[1], using={"unique_key": "plain"}, minutes=5)
    assert shop("enqueue", name="add", args=[2], using={"unique_key": "plain"}, minutes=5)["id"] == done["id"]
    Rows(shop.url).sql("UPDATE workerd_jobs SET vars = '{}' WHERE unique_key = 'plain'")
    error = shop.error("enqueue", name="add", args=[1], using={"unique_key": "plain"}, minutes=5)
    assert error.startswith("InvalidTask")
    assert done["id"] in error


def test_checks_find_queues_without_handler_and_a_wrong_database(shop: Shop) -> None:
    """With what to add."""
    found = shop("check")
    assert any("workerd.E001: Queue 'mail' of the task backend 'wrong'" in message for message in found)
    assert any("[handlers.django-mail] call =" in message for message in found)
    assert any("workerd.E002: The task backend 'wrong' has no database 'absent'" in m for m in found)
    assert not any("backend 'default'" in message for message in found)


def test_what_json_cannot_represent_is_refused_at_enqueue(shop: Shop) -> None:
    """Before anything is inserted."""
    before = Rows(shop.url).sql("SELECT COUNT(*) AS n FROM workerd_jobs")
    assert shop.error("enqueue_object").startswith("TypeError")
    assert Rows(shop.url).sql("SELECT COUNT(*) AS n FROM workerd_jobs") == before


# -- with a daemon


def test_a_task_runs_to_its_value(shop: Shop, daemon: Daemon) -> None:
    """Its times are in order; the same result refreshes."""
    result = shop.ended("add", 4, kwargs={"b": 5})
    assert (result["status"], result["value"], result["errors"], result["attempts"]) == (
        "SUCCESSFUL",
        9,
        [],
        1,
    )
    times = [result[key] for key in ("enqueued_at", "started_at", "last_attempted_at", "finished_at")]
    assert times == sorted(times)
    assert result["workers"][0].startswith("node/")
    assert shop("refreshed", name="add", args=[1], until="SUCCESSFUL")["value"] == 2
    assert shop("aenqueue", name="later", args=["word"])["status"] in ("READY", "RUNNING", "SUCCESSFUL")
    assert shop.ended("later", "word")["value"] == "word"
    assert shop.ended("urgent", "now")["queue"] == "urgent"


def test_the_context_knows_result_and_attempt(shop: Shop, daemon: Daemon) -> None:
    """While it runs."""
    result = shop.ended("about", "k")
    assert result["value"] == [1, "RUNNING", result["id"], ["k"], True, "k"]


@pytest.mark.parametrize(
    ("kind", "path", "attempts", "words"),
    [
        ("own", "tests.contrib.django_shop.tasks.Broken", 2, "second line"),
        ("chained", "builtins.ValueError", 2, "KeyError: 'inner'"),
        ("exit", "builtins.SystemExit", 1, "SystemExit: 3"),
        ("interrupt", "builtins.KeyboardInterrupt", 1, "KeyboardInterrupt"),
    ],
)
def test_a_failing_task_has_an_error_for_each_attempt(
    shop: Shop, daemon: Daemon, kind: str, path: str, attempts: int, words: str
) -> None:
    """With class and traceback; by the policy of its handler."""
    result = shop.ended("fails", kind)
    assert (result["status"], result["value"], result["attempts"]) == ("FAILED", None, attempts)
    assert [error[0] for error in result["errors"]] == [path] * attempts
    assert words in result["errors"][0][1]
    assert shop("error_classes", id=result["id"]) == [path.rpartition(".")[2]] * attempts


@pytest.mark.parametrize(
    ("kind", "value"), [("tuple", [1, 2]), ("none", None), ("nested", {"a": [1, {"b": None}]})]
)
def test_return_values_are_as_json_has_them(shop: Shop, daemon: Daemon, kind: str, value: Any) -> None:
    """None too."""
    result = shop.ended("returns", kind)
    assert (result["status"], result["value"]) == ("SUCCESSFUL", value)


def test_a_value_that_json_cannot_represent_fails_the_task_once(shop: Shop, daemon: Daemon) -> None:
    """A second attempt would return the same."""
    result = shop.ended("returns", "object")
    assert (result["status"], result["attempts"]) == ("FAILED", 1)
    assert "cannot be represented as JSON" in result["errors"][0][1]


def test_between_attempts_it_is_ready_with_the_errors_so_far(
    shop: Shop, daemon: Daemon, tmp_path: Path
) -> None:
    """And a later attempt can succeed."""
    done = shop("enqueue", name="fails_until", args=[str(tmp_path / "go")], using={"max_attempts": 100_000})
    found = eventually(lambda: (r := shop("get", id=done["id"]))["status"] == "READY" and r["errors"] and r)
    assert found["errors"][0][0].endswith("Broken")
    (tmp_path / "go").touch()
    result = eventually(lambda: shop.if_ended(done["id"]), within=30)
    assert (result["status"], result["value"]) == ("SUCCESSFUL", "done")
    assert len(result["errors"]) == result["attempts"] - 1


def test_a_killed_worker_leaves_a_truthful_result(shop: Shop, daemon: Daemon, tmp_path: Path) -> None:
    """An error for the attempt that died; the next one succeeds."""
    result = shop.ended("dies_once", str(tmp_path))
    assert (result["status"], result["value"], result["attempts"]) == ("SUCCESSFUL", "alive", 2)
    assert [error[0] for error in result["errors"]] == ["workerd.Crashed"]
    assert "SIGKILL" in result["errors"][0][1]


@pytest.mark.parametrize("name", ["gone", "not_a_task"])
def test_a_path_that_is_no_task_any_more_is_a_failure_that_names_it(
    shop: Shop, daemon: Daemon, name: str
) -> None:
    """Its result can still be looked up."""
    path = f"tests.contrib.django_shop.tasks.{name}"
    job = Rows(shop.url).insert("django", {"task": path, "args": [1], "kwargs": {}})
    result = eventually(lambda: shop.if_ended(job.hex()), within=30)
    assert (result["task"], result["status"], result["attempts"]) == (path, "FAILED", 1)
    assert path in result["errors"][0][1]


def test_signals_are_sent_around_each_run(shop: Shop, daemon: Daemon) -> None:
    """With the result as it is then."""
    shop.ended("add", 1)
    lines = (shop.folder / "signals").read_text().splitlines()
    assert "started WorkerdBackend add RUNNING" in lines
    assert "finished WorkerdBackend add SUCCESSFUL" in lines


def test_a_connection_that_the_server_closed_is_replaced_before_a_run(shop: Shop, daemon: Daemon) -> None:
    """Though CONN_MAX_AGE keeps it for ever."""
    sqlite = shop.url.startswith("sqlite")
    first = shop.ended("connection_id", sqlite)
    assert first["status"] == "SUCCESSFUL"
    if not sqlite:
        assert shop.ended("connection_id", sqlite)["value"] == first["value"]
        Rows(shop.url).sql(f"KILL {first['value']}")
    again = shop.ended("connection_id", sqlite)
    assert (again["status"], again["attempts"]) == ("SUCCESSFUL", 1)
    assert sqlite or again["value"] != first["value"]


def test_a_transaction_that_a_task_left_open_ends_with_it(shop: Shop, daemon: Daemon) -> None:
    """The next task of the worker writes into one of its own, which others see."""
    rows = Rows(shop.url)
    rows.sql("CREATE TABLE shop_words (word VARCHAR(20))")
    for leaves in ("leaves_transaction_open", "closes_in_transaction"):
        assert shop.ended(leaves)["errors"] == []
        assert shop.ended("writes", leaves[:6])["errors"] == []
    assert sorted(row["word"] for row in rows.sql("SELECT word FROM shop_words")) == ["closes", "leaves"]
    assert "django.transaction_left" in daemon.logged()


def test_a_cancelled_task_has_failed(shop: Shop, daemon: Daemon) -> None:
    """With workerd's own class."""
    done = shop("enqueue", name="add", args=[1], minutes=5)
    daemon.cli("job", "cancel", done["id"])
    result = shop.if_ended(done["id"])
    assert (result["status"], result["attempts"]) == ("FAILED", 0)
    assert shop("error_classes", id=done["id"]) == ["Cancelled"]
