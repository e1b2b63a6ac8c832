"""Functions around the run of a handler."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

import workerd
from workerd import Context, Failure, handler, testing
from workerd.errors import InvalidValue

steps: list[str] = []


@pytest.fixture(autouse=True)
def _no_steps() -> None:
    steps.clear()


@handler(max_attempts=7)
def add(a: int, b: int = 1) -> int:
    steps.append("run")
    return a + b


def fails(ctx: Context) -> None:
    raise KeyError(ctx.handler)


def named(name: str) -> Callable[..., Any]:
    def layer(ctx: Context) -> Iterator[None]:
        steps.append(f"{name} in")
        try:
            yield
        finally:
            steps.append(f"{name} out")

    return layer


def traced(ctx: Context, call_next: Callable[[], Any]) -> Any:
    steps.append(f"traced {ctx.handler}")
    return call_next()


def test_layers_are_entered_in_order_and_left_in_reverse_order() -> None:
    """Those of the configuration are outside of those in code; vars are checked before."""
    wrapped = workerd.wrap(add, named("a"), traced)
    outcome = testing.attempt(wrapped, {"a": 2}, around=[named("outer")])
    assert (outcome.status, outcome.payload) == ("completed", 3)
    assert steps == ["outer in", "a in", "traced add", "run", "a out", "outer out"]
    steps.clear()
    assert testing.run(wrapped, a="x").reason == "failure"
    assert steps == []


def test_wrappers_are_stacked_and_unwrapped_one_by_one() -> None:
    """Down to the handler itself."""
    once = workerd.wrap(add, named("inner"))
    twice = workerd.wrap(once, named("outer"), traced)
    assert testing.run(twice, a=1).payload == 2
    assert steps == ["outer in", "traced add", "inner in", "run", "inner out", "outer out"]
    assert workerd.unwrap(twice) is once
    assert workerd.unwrap(once) is add
    assert workerd.unwrap(add) is add


def test_a_wrapped_handler_keeps_name_options_and_signature() -> None:
    """A decorator around the wrapper comes before that of the handler."""
    wrapped = workerd.wrap(add, traced)
    assert wrapped.__name__ == "add"
    assert "a" in (testing.run(wrapped, b=1).error or "")
    assert workerd.wrapping.layers_of(wrapped)[2]["max_attempts"] == 7
    handler(max_attempts=2)(wrapped)
    assert workerd.wrapping.layers_of(wrapped)[2]["max_attempts"] == 2


def test_a_wrapped_handler_can_be_called() -> None:
    """As a plain function, with its layers."""
    assert workerd.wrap(add, named("a"))(2, b=2) == 4
    assert steps == ["a in", "run", "a out"]


def test_classes_and_coroutines_are_wrapped() -> None:
    """The instance is made once; a skipped run enters no layer."""

    class Sync:
        ready = False

        def active(self) -> bool:
            return self.ready

        async def ensure(self, ctx: Context) -> str:
            steps.append("run")
            return ctx.handler

    assert testing.run(workerd.wrap(Sync, named("a"))).reason == "skipped"
    assert steps == []
    Sync.ready = True
    assert testing.run(workerd.wrap(Sync, named("a"))).payload == "Sync"
    assert steps == ["a in", "run", "a out"]


def swallows(ctx: Context) -> Iterator[None]:
    with contextlib.suppress(KeyError):
        yield


def swallows_in_a_call(ctx: Context, call_next: Callable[[], Any]) -> Any:
    try:
        return call_next()
    except KeyError:
        return None


def replaces(ctx: Context) -> Any:
    try:
        yield
    except KeyError as error:
        return f"instead of {error.args[0]}"


def retries(ctx: Context, call_next: Callable[[], Any]) -> Any:
    for _ in range(2):
        try:
            call_next()
        except KeyError:
            steps.append("again")
    return "done"


@pytest.mark.parametrize("layer", [swallows, swallows_in_a_call])
def test_a_swallowed_error_without_a_value_is_an_error(layer: Any) -> None:
    """Which names both."""
    outcome = testing.run(workerd.wrap(fails, layer))
    assert outcome.reason == "error"
    assert f"{layer.__name__} swallowed KeyError and returned no value" in (outcome.error or "")
    assert "KeyError: 'fails'" in (outcome.stack or "")
    assert "workerd/wrapping.py" not in (outcome.stack or "")


def test_a_layer_may_return_a_value_instead_of_an_error() -> None:
    """Or run the handler again."""
    assert testing.run(workerd.wrap(fails, replaces)).payload == "instead of fails"
    assert testing.run(workerd.wrap(fails, retries)).payload == "done"
    assert steps == ["again", "again"]


def test_errors_pass_through_layers_and_layers_may_raise() -> None:
    """Retry and Failure decide as in the handler."""

    def refuses(ctx: Context) -> Iterator[None]:
        raise Failure("not today")
        yield

    assert "KeyError" in (testing.run(workerd.wrap(fails, named("a"), traced)).error or "")
    assert steps[-1] == "a out"
    assert testing.run(workerd.wrap(add, refuses), a=1).reason == "failure"


def test_a_generator_that_does_not_yield_once_is_an_error() -> None:
    """It encloses exactly one run."""

    def never(ctx: Context) -> Iterator[None]:
        if ctx.attempt > 1:
            yield

    def twice(ctx: Context) -> Iterator[None]:
        yield
        yield

    assert "nothing was run" in (testing.run(workerd.wrap(add, never), a=1).error or "")
    assert "more than once" in (testing.run(workerd.wrap(add, twice), a=1).error or "")


async def awaits(ctx: Context, call_next: Any) -> None:
    """Not allowed around a run."""


@pytest.mark.parametrize(
    "wrong", [7, awaits, lambda: None, lambda ctx: None, Context, partial(traced, None, None)]
)
def test_what_cannot_be_around_a_run_is_refused(wrong: Any) -> None:
    """With what was expected."""
    with pytest.raises(InvalidValue, match=r"expected a generator function of \(ctx\)"):
        workerd.wrap(add, wrong)
    with pytest.raises(TypeError, match="expects a handler"):
        workerd.wrap(None, traced)
