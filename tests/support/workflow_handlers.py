"""Handlers of requests and schedules; the request's params or files on disk select what a run does."""

from __future__ import annotations

import functools
import json
import os
import signal
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from tests.support.handlers import Ignored, wait_for_file
from workerd.handler import Context, Failure, Result, Retry

# -- the workflow `delete_user` ----------------------------------------------------------------


def _call(method: str, service: str, path: str) -> Any:
    request = urllib.request.Request(os.environ[service] + path, method=method)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        if error.code == 503:
            raise Retry(f"{service} is busy", after=0.02) from None
        raise Failure(f"{service} answered {error.code}") from None


def service1_get_user(ctx: Context) -> Result:
    """Look up the e-mail address and pass it on in the extras."""
    user = _call("GET", "SERVICE1", f"/users/{ctx.params['id']}")
    return Result(payload=user, extras={"email": user["email"]})


def service1_delete_user(ctx: Context) -> None:
    """Delete by id."""
    _call("DELETE", "SERVICE1", f"/users/{ctx.params['id']}")


def service2_delete_user(ctx: Context) -> None:
    """Delete by id."""
    _call("DELETE", "SERVICE2", f"/users/{ctx.params['id']}")


def service3_delete_user(ctx: Context) -> None:
    """Delete by the address from the first step's extras."""
    _call("DELETE", "SERVICE3", f"/users/{ctx.extras['email']}")


# -- any workflow ------------------------------------------------------------------------------


def _fail(message: str) -> None:
    raise Failure(message)


def _ignored() -> None:
    raise Ignored("nothing to do")


def _error(message: str) -> None:
    raise ValueError(message)


def _fail_unless_exists(path: str) -> str:
    if not Path(path).exists():
        raise Failure(f"{path} does not exist")
    return "repaired"


ACTIONS: dict[str, Any] = {
    "ok": lambda: "done",
    "return": lambda value: value,
    "bytes": lambda text: text.encode(),
    "fail": _fail,
    "ignored": _ignored,
    "error": _error,
    "wait": wait_for_file,
    "fail_unless_exists": _fail_unless_exists,
    "extras": lambda **extras: Result(payload="passed on", extras=extras),
    "spawn": lambda jobs, payload=None: Result(spawn=jobs, payload=payload),
}


def act(ctx: Context, role: str = "", action: dict[str, Any] | None = None) -> Any:
    """Run `action` = {name: argument}, else the request's params[role or handler name], else `ok`."""
    selected = action or ctx.params.get(role or ctx.handler, {"ok": None})
    (name, argument), *_ = selected.items()
    match argument:
        case None:
            return ACTIONS[name]()
        case dict():
            return ACTIONS[name](**argument)
        case _:
            return ACTIONS[name](argument)


def show_inputs(ctx: Context, **vars: Any) -> dict[str, Any]:
    """Return its vars and everything it received from its request."""
    return {
        "request_id": ctx.request_id, "vars": vars, "params": ctx.params, "extras": ctx.extras,
        "needs": ctx.needs,
    }  # fmt: skip


class Inactive:
    """Never active: every run is skipped."""

    def active(self) -> bool:
        """Always false."""
        return False

    def ensure(self, ctx: Context) -> None:
        """Never called."""
        raise AssertionError("ensure() called although active() is false")


# -- recurring ---------------------------------------------------------------------------------


def _log(path: str, line: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(fd, f"{line}\n".encode())
    finally:
        os.close(fd)


def beat(ctx: Context) -> None:
    """Append a line at start and at end: evidence of when runs happened, independent of the store."""
    path = f"{os.environ['BEATS']}.{ctx.handler}"
    _log(path, f"begin {ctx.job_id} {time.monotonic_ns()}")
    time.sleep(float(os.environ.get("BEAT_SECONDS", "0")))
    _log(path, f"end {ctx.job_id} {time.monotonic_ns()}")


def each_outcome(ctx: Context) -> str:
    """End each run with another unsuccessful outcome, and from the eighth on successfully."""
    path = f"{os.environ['BEATS']}.{ctx.handler}"
    _log(path, ctx.job_id)
    match len(Path(path).read_text().splitlines()):
        case 1:
            raise ValueError("the first run")
        case 2:
            os.kill(os.getpid(), signal.SIGKILL)
        case 3:
            os._exit(3)
        case 4:
            time.sleep(60)  # over its deadline
        case 5:
            raise Failure("the fifth run")
        case 6:
            raise Ignored("the sixth run")
        case 7:
            raise Retry("the seventh run")
    return "done"


class ActiveEverySecondTime:
    """Active at every second call of `active()`, with a `cooler()` of its own."""

    def __init__(self) -> None:
        self.asked = 0

    def active(self) -> bool:
        """True at every second call."""
        self.asked += 1
        return self.asked % 2 == 0

    def cooler(self) -> float:
        """Seconds; much shorter than the configured pause."""
        return 0.03

    def ensure(self, ctx: Context) -> int:
        """Return how often `active()` was called."""
        return self.asked


def _decorator(function: Any) -> Any:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return wrapper


@_decorator
def _wrapped(ctx: Context) -> str:
    return ctx.handler


wrapped = _wrapped
partial = functools.partial(_wrapped)


class CallableInstance:
    """Its instance is the handler."""

    def __call__(self, ctx: Context) -> str:
        """Return the handler's name."""
        return ctx.handler


instance = CallableInstance()


def gated() -> str:
    """Run until the file named by GATE in the pool's environment exists."""
    return wait_for_file(os.environ["GATE"])
