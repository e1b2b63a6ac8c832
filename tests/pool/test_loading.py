"""Importing what the configuration names; all errors are reported at once."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.pool.handlers import worker_handlers
from workerd import handler
from workerd.config.handler_config import HandlerConfig, Policy, PoolConfig
from workerd.errors import LoadError
from workerd.policy import effective
from workerd.pool.loading import load, make


@pytest.fixture(autouse=True)
def _same_path_and_modules() -> Iterator[None]:
    path, modules = list(sys.path), set(sys.modules)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        del sys.modules[name]


def pool(*calls: str, **keys: Any) -> PoolConfig:
    handlers = tuple(HandlerConfig(name=f"h{n}", call=call, pool="p") for n, call in enumerate(calls))
    return PoolConfig(name="p", handlers=handlers, **keys)


def test_any_callable_is_a_handler() -> None:
    """Of the standard library or of the user, decorated or not, by a dotted attribute."""
    loaded = load(
        pool("os.path:getsize", "tests.pool.handlers.worker_handlers:decorated", "builtins:str.upper")
    )
    assert list(loaded.handlers) == ["h0", "h1", "h2"]
    assert loaded.handlers["h0"].target is os.path.getsize
    assert [spec.name for spec in loaded.specs] == ["h0", "h1", "h2"]
    assert loaded.init is None


def test_the_decorators_options_are_plain_data() -> None:
    """Exception classes are names, with the paths they denote."""
    (spec,) = load(pool("tests.pool.handlers.worker_handlers:decorated")).specs
    assert spec.options == {
        "deadline": 30.0,
        "ignore": ["builtins.KeyError"],
        "retry_on": ["OSError", "json.JSONDecodeError"],
        "backoff": {"first": 3.0},
    }
    assert spec.aliases == {
        "builtins.KeyError": "builtins.KeyError",
        "OSError": "builtins.OSError",
        "json.JSONDecodeError": "json.decoder.JSONDecodeError",
    }
    policy = effective(HandlerConfig(name="h", call="", pool="p"), spec.options)
    assert (policy.deadline, policy.backoff.first, policy.grace) == (30.0, 3.0, Policy().grace)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            "no_such_module:f",
            ["importing no_such_module failed", "ModuleNotFoundError", "the handler's `path`"],
        ),
        ("os:nothing", ["os has no nothing"]),
        ("os:sep", ["expected a function or a class with ensure", "got a str"]),
        ("tests.pool.handlers.worker_handlers:generator", ["generator function"]),
        ("broken:f", ["importing broken failed", "SyntaxError", "broken.py, line 1"]),
        ("raises:f", ["importing raises failed", "ValueError: at import", "raises.py, line 2"]),
        ("exits:f", ["importing exits failed", "SystemExit"]),
    ],
)
def test_a_load_error_names_handler_call_and_reason(tmp_path: Path, call: str, words: list[str]) -> None:
    """And where it was raised."""
    (tmp_path / "broken.py").write_text("def f(:\n")
    (tmp_path / "raises.py").write_text("import os\nraise ValueError('at import')\n")
    (tmp_path / "exits.py").write_text("import sys\nsys.exit(3)\n")
    with pytest.raises(LoadError) as caught:
        load(pool(call, path=(str(tmp_path),)))
    assert all(word in str(caught.value) for word in [f'handler "h0" (call = "{call}")', *words])


def test_all_load_errors_are_reported_at_once() -> None:
    """That of `init` too."""
    with pytest.raises(LoadError) as caught:
        load(pool("a_b:f", "os:getcwd", "c_d:f", init="os:nothing"))
    assert str(caught.value).count("handler ") == 2
    assert "init" in str(caught.value)


def test_exception_classes_of_a_policy_must_exist() -> None:
    """A name in fail_on that never matches would silently change the policy."""
    own = HandlerConfig(name="h", call="os:getcwd", pool="p", policy_own={"fail_on": ("shop.Gone",)})
    with pytest.raises(LoadError, match=r'expected an exception class in .*, got "shop.Gone"'):
        load(PoolConfig(name="p", handlers=(own,)))
    with pytest.raises(LoadError, match='got "int"'):
        make("h", os.getcwd, HandlerConfig(name="h", call="", pool="p", policy_own={"ignore": ("int",)}))


def test_exception_classes_without_an_import_path_are_accepted() -> None:
    """A class made in a function cannot be imported by name."""

    class Local(Exception):
        pass

    decorated = handler(ignore=Local)(lambda: None)
    (alias,) = {a for a in make("h", decorated).spec.aliases if "Local" in a}
    assert alias.endswith("<locals>.Local")


def test_deadline_exceeded_has_three_names() -> None:
    """Bare, as imported, and where it is defined."""
    for name in ("DeadlineExceeded", "workerd.DeadlineExceeded", "workerd.handler.DeadlineExceeded"):
        config = HandlerConfig(name="h", call="", pool="p", policy_own={"fail_on": (name,)})
        assert make("h", os.getcwd, config).spec.aliases[name] == "workerd.handler.DeadlineExceeded"


def test_the_pools_path_is_prepended_and_the_working_directory_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A module in the daemon's working directory must not shadow another."""
    (tmp_path / "own.py").write_text("def f(): ...\n")
    elsewhere = tmp_path / "cwd"
    elsewhere.mkdir()
    (elsewhere / "beside.py").write_text("def f(): ...\n")
    monkeypatch.chdir(elsewhere)
    sys.path.insert(0, "")
    load(pool("own:f", path=(str(tmp_path),)))
    assert sys.path[0] == str(tmp_path)
    with pytest.raises(LoadError, match="beside"):
        load(pool("beside:f"))


def test_the_pools_environment_is_set_before_handlers_are_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Modules read it at import."""
    monkeypatch.delenv("SHOP", raising=False)
    (tmp_path / "reads_env.py").write_text("import os\nSHOP = os.environ['SHOP']\ndef f(): ...\n")
    load(pool("reads_env:f", path=(str(tmp_path),), env={"SHOP": "7"}))
    assert os.environ["SHOP"] == "7"


@pytest.mark.parametrize(
    ("target", "fits"),
    [
        (worker_handlers.Recurring, True),
        (worker_handlers.Recurring().ensure, True),
        (partial(worker_handlers.add, 1), True),
        (partial(worker_handlers.generator), False),
        (3, False),
        (type("Generates", (), {"__call__": lambda self: (yield)})(), False),
        (type("Ensures", (), {"ensure": lambda self: (yield)}), False),
    ],
)
def test_wrapped_generator_functions_are_refused(target: Any, fits: bool) -> None:
    """Nothing would iterate them."""
    if fits:
        make("h", target)
    else:
        with pytest.raises(LoadError):
            make("h", target)


def test_setup_is_called_before_the_handlers_are_imported() -> None:
    """What it raises is a load error that names it."""
    handlers = "tests.pool.handlers.worker_handlers"
    before = len(worker_handlers.steps)
    load(pool(f"{handlers}:nothing", setup=f"{handlers}:set_up"))
    assert worker_handlers.steps[before:] == ["setup"]
    with pytest.raises(LoadError, match=r'setup = ".*:fails_to_set_up" failed: RuntimeError: no settings'):
        load(pool("tests.nowhere:nothing", setup=f"{handlers}:fails_to_set_up"))


def test_functions_around_runs_are_loaded_and_checked() -> None:
    """The pool's are outside of the handler's, and those outside of what wraps it in code."""
    handlers = "tests.pool.handlers.worker_handlers"
    config = PoolConfig(
        name="p",
        around=(f"{handlers}:around",),
        handlers=(
            HandlerConfig(name="h", call=f"{handlers}:nothing", pool="p", around=(f"{handlers}:around_it",)),
        ),
    )
    assert load(config).handlers["h"].around == (worker_handlers.around, worker_handlers.around_it)
    with pytest.raises(LoadError, match=r'handler "h0" .*around ".*:nothing": expected a generator function'):
        load(pool(f"{handlers}:nothing", around=(f"{handlers}:nothing",)))
