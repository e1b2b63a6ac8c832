"""A decorated handler enqueues itself."""

from __future__ import annotations

import dataclasses
import functools
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import workerd
from workerd import Client, JobOptions, JobSpec, handler, testing
from workerd.config.model import StoreConfig
from workerd.errors import InvalidValue
from workerd.store import handlers
from workerd.store.engines import open_store

if TYPE_CHECKING:
    from workerd import Context


@handler
def plain(image: str, width: int = 3) -> str:
    return f"{image}@{width}"


@handler(name="with-context", deadline=5)
def contextual(ctx: Context, image: str, **more: Any) -> str:
    return image


@handler(max_attempts=2)
class Ensured:
    def ensure(self, ctx: Context, size: int) -> int:
        return size


@handler
class OwnEnqueue:
    def ensure(self) -> None:
        """Nothing."""

    @staticmethod
    def enqueue() -> str:
        return "own"


def test_a_decorated_function_is_still_the_plain_function() -> None:
    """Called directly, and as a handler."""
    assert plain("cat.png") == "cat.png@3"
    assert testing.run(plain, image="a").payload == "a@3"
    assert testing.run(contextual, image="a").payload == "a"


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (plain.spec(image="c", width=4), JobSpec(handler="plain", vars={"image": "c", "width": 4})),
        (plain.spec("c"), JobSpec(handler="plain", vars={"image": "c"})),
        (contextual.spec(image="c", x=1), JobSpec(handler="with-context", vars={"image": "c", "x": 1})),
        (
            plain.spec(image="c", _options=JobOptions(delay="5m", unique_key="k")),
            JobSpec(handler="plain", vars={"image": "c"}, delay="5m", unique_key="k"),
        ),
        (Ensured.spec(size=3), JobSpec(handler="Ensured", vars={"size": 3})),
    ],
)
def test_a_spec_is_made_of_the_arguments_of_a_call(spec: JobSpec, expected: JobSpec) -> None:
    """Without the context, which no caller gives."""
    assert spec == expected


@pytest.mark.parametrize("wrong", [{}, {"imag": 1}, {"image": "c", "height": 1}])
def test_arguments_that_the_handler_lacks_are_refused_where_they_are_given(wrong: dict[str, Any]) -> None:
    """As a call would refuse them."""
    with pytest.raises(TypeError):
        plain.spec(**wrong)


def test_a_class_keeps_its_own_method_and_a_wrapper_passes_the_methods_on() -> None:
    """`functools.wraps` copies them with the function's other attributes."""
    assert OwnEnqueue.enqueue() == "own"

    @functools.wraps(plain)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return plain(*args, **kwargs)

    assert wrapper.spec(image="c").handler == "plain"  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["", "x" * 192, "x "])
def test_a_wrong_name_is_refused(name: str) -> None:
    """By the rules of the configuration."""
    with pytest.raises(InvalidValue, match="@handler\\(name"):
        handler(name=name)


def test_it_is_enqueued_by_a_client_or_in_a_transaction(tmp_path: Path) -> None:
    """Of any connection that `workerd.enqueue` takes; a rollback leaves no job."""
    url = f"sqlite:///{tmp_path}/store.db"
    store = open_store(StoreConfig(url=url))
    store.migrate()
    connection = sqlite3.connect(tmp_path / "store.db")
    plain.enqueue(connection, image="inside", _options=JobOptions(priority=4))
    connection.rollback()
    plain.enqueue(connection, image="inside", _options=JobOptions(priority=5))
    connection.commit()
    rows = connection.execute("SELECT handler, vars, priority FROM workerd_jobs").fetchall()
    assert rows == [("plain", '{"image":"inside"}', 5)]
    store.run(lambda tx: handlers.seen(tx, "plain", None, "node"))
    seen: list[JobSpec] = []

    def hook(spec: JobSpec) -> JobSpec:
        seen.append(spec)
        return dataclasses.replace(spec, meta={"by": "hook"})

    with Client(url, before_enqueue=[hook]) as client:
        job = client.get(plain.enqueue(client, image="by client").id)
        assert (job.vars, job.meta) == ({"image": "by client"}, {"by": "hook"})
        client.enqueue_many([plain.spec(image="many")])
        assert [spec.vars["image"] for spec in seen] == ["by client", "many"]
    with (
        Client(url, before_enqueue=[lambda spec: None]) as client,  # type: ignore[list-item, return-value]
        pytest.raises(InvalidValue, match="to return a JobSpec, got None"),
    ):
        plain.enqueue(client, image="x")
    connection.close()
    store.close()


def test_workerd_offers_them() -> None:
    """Loaded when used."""
    assert workerd.JobOptions is JobOptions
    assert workerd.AsyncClient.__name__ == "AsyncClient"
