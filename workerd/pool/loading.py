"""Imports what a pool's configuration names: `module:attribute` to a callable. Importing is all it does."""

from __future__ import annotations

import builtins
import contextlib
import importlib
import inspect
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import structlog

from workerd import policy as workerd_policy
from workerd.config.handler_config import Backoff, CommandConfig, HandlerConfig, Policy, PoolConfig
from workerd.config.model import Config
from workerd.config.webhook_config import WebhookConfig
from workerd.errors import InvalidValue, LoadError
from workerd.handler import class_name
from workerd.log import get_logger
from workerd.pool.arguments import Arguments
from workerd.pool.command import Command
from workerd.pool.worker_messages import HandlerSpec
from workerd.redaction import NOTHING, Redaction
from workerd.runtime.child import ignore_terminal_signals
from workerd.runtime.descriptors import OpenDescriptor, named, open_descriptors, opened_since
from workerd.signature import redaction_of, with_redaction
from workerd.wrapping import Around, check_around, layers_of

MISSING_FILE = -1
"""Instead of the modification time of a file that does not exist."""

SHARED_BY_WORKERS = "Its workers share it, and the position in it: open it in `init` if each needs its own."
CONNECT_IN_INIT = "Workers cannot use it: connect in `init`, which runs in each worker."

log = get_logger("pool")


def imported_since(before: Set[str]) -> dict[str, int]:
    """Modification times (ns) by file, of the modules that are not in `before`.

    Modules that are first imported by a running job are not known.
    """
    files = (getattr(sys.modules.get(name), "__file__", None) for name in sys.modules.keys() - before)
    return {file: _changed_at(file) for file in files if isinstance(file, str)}


def changed(sources: Mapping[str, int]) -> bool:
    """Whether any file was modified, added or removed since."""
    return any(_changed_at(file) != changed_at for file, changed_at in sources.items())


def _changed_at(file: str) -> int:
    try:
        return os.stat(file).st_mtime_ns
    except (OSError, ValueError):
        return MISSING_FILE


@dataclass(frozen=True)
class LoadedHandler:
    """A callable, a class of which each worker makes one instance, or a program.

    `around`: the functions around each run, outermost first. `redaction`: of the values of its jobs.
    """

    name: str
    target: Any
    arguments: Arguments | Command
    spec: HandlerSpec
    around: tuple[Around, ...] = ()
    redaction: Redaction = NOTHING

    @property
    def is_class(self) -> bool:
        return is_class_handler(self.target)


@dataclass(frozen=True)
class LoadedHandlers:
    """The handlers of a pool, its `init` function, and what importing them did.

    `sources`: modification times of the imported files. `descriptors`: those that were left open.
    `structlog_config`: how user code configured structlog, None if it did not.
    """

    handlers: dict[str, LoadedHandler]
    init: Callable[[], object] | None = None
    specs: list[HandlerSpec] = field(default_factory=list)
    sources: dict[str, int] = field(default_factory=dict)
    descriptors: tuple[OpenDescriptor, ...] = ()
    structlog_config: Mapping[str, Any] | None = None


def load(pool: PoolConfig) -> LoadedHandlers:
    """Call `setup`, then import every handler of the pool. Raises LoadError, which names what failed."""
    ours = structlog.get_config()
    try:
        loaded = _load(pool)
        theirs = structlog.get_config()
    finally:
        structlog.configure(**ours)  # the daemon's log is not for user code to configure
    return replace(loaded, structlog_config=theirs) if theirs != ours else loaded


def _deliverer(webhooks: Mapping[str, WebhookConfig]) -> Callable[..., Any]:
    # Not before a pool delivers: http.client and email take 0.7 MiB of each node.
    from workerd.webhooks import Deliverer

    return Deliverer(webhooks)


def _load(pool: PoolConfig) -> LoadedHandlers:
    prepare_path(pool.path)
    os.environ.update(pool.env)
    before, open_before = set(sys.modules), open_descriptors()
    if pool.setup:
        _set_up(pool.setup)
    loaded: dict[str, LoadedHandler] = {}
    errors: list[str] = []
    for handler in pool.handlers:
        try:
            around = tuple(map(_around, (*pool.around, *handler.around)))
            if handler.webhooks:
                loaded[handler.name] = make(handler.name, _deliverer(handler.webhooks), handler)
            elif handler.command is not None:
                loaded[handler.name] = make_command(handler, handler.command, around)
            else:
                loaded[handler.name] = make(handler.name, resolve(handler.call), handler, around)
        except LoadError as error:
            errors.append(f"{described(handler)}: {error}")
    init = None
    try:
        init = _function(pool.init) if pool.init else None
    except LoadError as error:
        errors.append(f'init = "{pool.init}": {error}')
    if errors:
        raise LoadError("; ".join(errors))
    specs = [handler.spec for handler in loaded.values()]
    return LoadedHandlers(loaded, init, specs, imported_since(before), opened_since(open_before))


def described(handler: HandlerConfig) -> str:
    """The handler and what it runs, as errors name it."""
    key = "call" if handler.command is None else "command"
    return f'handler "{handler.name}" ({key} = "{handler.target}")'


def prepare_path(folders: Iterable[str]) -> None:
    """Prepend the folders to sys.path, and remove the working directory unless they name it."""
    wanted = [str(folder) for folder in folders]
    working = os.getcwd()
    # `python -m` puts it first; further back it was put on purpose, as by an editable install.
    if sys.path and sys.path[0] in ("", working):
        del sys.path[0]
    sys.path[:] = wanted + [entry for entry in sys.path if entry and entry not in wanted]
    importlib.invalidate_caches()


def _set_up(reference: str) -> None:
    try:
        _function(reference)()
    except LoadError as error:
        raise LoadError(f'setup = "{reference}": {error}') from error
    except BaseException as error:
        raise LoadError(f'setup = "{reference}" failed: {_describe(error)}') from error


def _around(reference: str) -> Around:
    try:
        found: Around = resolve(reference)
        check_around(found)
    except (LoadError, InvalidValue) as error:
        raise LoadError(f'around "{reference}": {error}') from error
    return found


def _function(reference: str) -> Callable[[], object]:
    found = resolve(reference)
    if not callable(found):
        raise LoadError(f"expected a function without parameters, got {_kind(found)}")
    function: Callable[[], object] = found
    return function


def resolve(reference: str) -> Any:
    """The object that `module:attribute` names. Raises LoadError for whatever the import raises."""
    module_name, _, attribute = reference.partition(":")
    try:
        found: Any = importlib.import_module(module_name)
    except BaseException as error:  # an import may raise anything, SystemExit too
        hint = _missing(module_name, error)
        raise LoadError(f"importing {module_name} failed: {_describe(error)}{hint}") from error
    for part in attribute.split("."):
        try:
            found = getattr(found, part)
        except BaseException as error:  # a module's __getattr__ is user code
            raise LoadError(f"{module_name} has no {attribute}: {_describe(error)}") from error
    return found


def _describe(error: BaseException) -> str:
    text = "".join(traceback.format_exception_only(error)).strip().splitlines()[-1]
    frames = traceback.extract_tb(error.__traceback__)
    own = (os.path.dirname(os.__file__) + os.sep + "importlib", "<frozen", __file__)
    frame = next((f for f in reversed(frames) if not f.filename.startswith(own)), None)
    place = (frame.filename, frame.lineno) if frame else None
    if isinstance(error, SyntaxError) and error.filename:
        place = error.filename, error.lineno
    return f"{text} ({place[0]}, line {place[1]})" if place else text


def _missing(module_name: str, error: BaseException) -> str:
    """What to do about a module that was not found, or a package of it."""
    if not isinstance(error, ModuleNotFoundError) or not f"{module_name}.".startswith(f"{error.name}."):
        return ""
    return "; install it, or add its folder to the handler's `path`"


def make(
    name: str, target: Any, config: HandlerConfig | None = None, around: tuple[Around, ...] = ()
) -> LoadedHandler:
    """Make a handler of its object, with its decorator's options, its layers and its signature.

    `around`: what the configuration puts around them. Raises LoadError.
    """
    target, layers, options = layers_of(target)
    check_callable(target)
    policy = workerd_policy.effective(
        config or HandlerConfig(name=name, call="", pool=name), _with_class_names(options)
    )
    spec_options = {k: _as_json_type(v) for k, v in _with_class_names(options).items()}
    if is_class_handler(target):
        arguments = Arguments(target.ensure, method=not _is_static(target, "ensure"))
    else:
        arguments = Arguments(target)
    has_cooler = is_class_handler(target) and callable(getattr(target, "cooler", None))
    signature = with_redaction(arguments.signature, config.redact if config else ())
    spec = HandlerSpec(name, spec_options, signature, aliases_of(policy, options), has_cooler)
    return LoadedHandler(name, target, arguments, spec, (*around, *layers), redaction_of(signature))


def make_command(
    config: HandlerConfig, command: CommandConfig, around: tuple[Around, ...] = ()
) -> LoadedHandler:
    """Make a handler of its program. Raises LoadError."""
    program = Command(command)
    aliases = aliases_of(workerd_policy.effective(config, {}), {})
    signature = with_redaction(program.signature, config.redact)
    spec = HandlerSpec(config.name, {}, signature, aliases, has_cooler=False)
    return LoadedHandler(config.name, program, program, spec, around, redaction_of(signature))


NO_COOLER_KEY = (
    "its class has cooler(), but without the key `cooler` it does not recur: set it, as the pause where "
    "cooler() fails"
)


def lacks_cooler_key(name: str, config: Config) -> bool:
    """Whether a handler, whose class has `cooler()`, starts neither by a schedule nor in a workflow."""
    in_workflows = {job.handler for workflow in config.workflows.values() for job in workflow.jobs}
    return not config.handlers[name].schedule.recurs and name not in in_workflows


def is_class_handler(target: Any) -> bool:
    """Whether it is a class with `ensure`, of which each worker makes one instance."""
    return inspect.isclass(target) and callable(getattr(target, "ensure", None))


def _is_static(cls: type, name: str) -> bool:
    return isinstance(inspect.getattr_static(cls, name), staticmethod | classmethod)


def check_callable(target: Any) -> None:
    """Raises LoadError for an object that cannot be a handler."""
    if not callable(target):
        raise LoadError(f"expected a function or a class with ensure(self, ctx), got {_kind(target)}")
    called = target.ensure if is_class_handler(target) else target
    while isinstance(called, partial):
        called = called.func
    if not inspect.isroutine(called) and not inspect.isclass(called):
        called = type(called).__call__
    if inspect.isgeneratorfunction(called) or inspect.isasyncgenfunction(called):
        raise LoadError(
            "expected a function that returns its value, got a generator function: nothing would iterate it"
        )


def _kind(value: Any) -> str:
    return f"a {type(value).__name__}"


# -- exception classes of the policy ----------------------------------------------------------------------


def _with_class_names(options: Mapping[str, Any]) -> dict[str, Any]:
    """The decorator's options, with classes replaced by their names."""
    return {
        key: tuple(c if isinstance(c, str) else class_name(c) for c in value)
        if isinstance(value, tuple)
        else value
        for key, value in options.items()
    }


def _as_json_type(value: Any) -> Any:
    if isinstance(value, Backoff):
        return {"first": value.first, "factor": value.factor, "max": value.max, "jitter": value.jitter}
    return list(value) if isinstance(value, tuple) else value


def aliases_of(policy: Policy, options: Mapping[str, Any]) -> dict[str, str]:
    """The `module.qualname` of every exception class that the policy names. Raises LoadError."""
    aliases = {
        class_name(item): class_name(item)
        for value in options.values()
        if isinstance(value, tuple)
        for item in value
        if not isinstance(item, str)
    }
    for name in (*policy.retry_on, *policy.fail_on, *policy.ignore):
        if name not in aliases:
            aliases[name] = _resolve_class(name)
    return aliases


def _resolve_class(name: str) -> str:
    own = workerd_policy.canonical(name)
    if own.startswith(("workerd.handler.", workerd_policy.EXIT_PREFIX)):
        return own
    if "." not in name:
        found: Any = getattr(builtins, name, None)
    else:
        found = _dotted(name)
    if not (isinstance(found, type) and issubclass(found, BaseException)):
        raise LoadError(
            f'expected an exception class in retry_on, fail_on and ignore, got "{name}"; '
            'write a builtin\'s name or "package.module.Class"'
        )
    return class_name(found)


def _dotted(name: str) -> Any:
    """The object at a dotted path; its modules are imported."""
    parts = name.split(".")
    for count in range(len(parts) - 1, 0, -1):
        module = ".".join(parts[:count])
        try:
            found: Any = importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name and (module == error.name or module.startswith(error.name + ".")):
                continue
            raise LoadError(f"importing {module} failed: {_describe(error)}") from error
        except BaseException as error:  # importing runs user code
            raise LoadError(f"importing {module} failed: {_describe(error)}") from error
        for part in parts[count:]:
            found = getattr(found, part, None)
        return found
    return None


def preload(pool: PoolConfig) -> LoadedHandlers:
    """Load the pool's handlers within `load_timeout`. Raises LoadError.

    An import that hangs is ended by SIGALRM with its default disposition, which works even if the
    interpreter hangs. The supervisor then sees the pool die of that signal.
    """
    folder = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, pool.load_timeout)
    try:
        loaded = load(pool)
    except LoadError:
        raise
    except BaseException as error:
        raise LoadError(f"The import raised {type(error).__name__}: {error}") from error
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        _restore(folder)
    _warn_of_threads(pool)
    _warn_of_descriptors(pool, loaded.descriptors)
    return loaded


def _restore(folder: int) -> None:
    """Undo what an import may have changed in the process."""
    for signum in (signal.SIGCHLD, signal.SIGALRM, signal.SIGQUIT):
        signal.signal(signum, signal.SIG_DFL)
    ignore_terminal_signals()
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    with contextlib.suppress(OSError):
        os.fchdir(folder)
        os.close(folder)


def _warn_of_threads(pool: PoolConfig) -> None:
    names = [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]
    if names:
        log.warning("handlers.started_threads", pool=pool.name, threads=", ".join(names))


def _warn_of_descriptors(pool: PoolConfig, descriptors: tuple[OpenDescriptor, ...]) -> None:
    if sockets := named(descriptors, shareable=False):
        log.warning(
            "handlers.opened_sockets", pool=pool.name, sockets=", ".join(sockets), advice=CONNECT_IN_INIT
        )
    if files := named(descriptors, shareable=True):
        log.info("handlers.opened_files", pool=pool.name, files=", ".join(files))
