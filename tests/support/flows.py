"""Handlers of requests and schedules: what a run does is said by its request's params, or by a file."""

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

from tests.support.handlers import Ignored
from workerd.handler import Context, Failure, Result, Retry

# -- "delete user" -----------------------------------------------------------------------------


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
    """Looks the e-mail address up and hands it on."""
    user = _call("GET", "SERVICE1", f"/users/{ctx.params['id']}")
    return Result(payload=user, extras={"email": user["email"]})


def service1_delete_user(ctx: Context) -> None:
    """Deletes by id."""
    _call("DELETE", "SERVICE1", f"/users/{ctx.params['id']}")


def service2_delete_user(ctx: Context) -> None:
    """Deletes by id."""
    _call("DELETE", "SERVICE2", f"/users/{ctx.params['id']}")


def service3_delete_user(ctx: Context) -> None:
    """Deletes by the address that the first step found."""
    _call("DELETE", "SERVICE3", f"/users/{ctx.extras['email']}")


# -- any workflow ------------------------------------------------------------------------------


def _fail(what: str) -> None:
    raise Failure(what)


def _ignored() -> None:
    raise Ignored("nothing to do")


def _error(what: str) -> None:
    raise ValueError(what)


def _wait(path: str) -> str:
    end = time.monotonic() + 60
    while not Path(path).exists() and time.monotonic() < end:
        time.sleep(0.005)
    return "seen"


def _unless(path: str) -> str:
    if not Path(path).exists():
        raise Failure(f"{path} is not there")
    return "mended"


ACTS: dict[str, Any] = {
    "ok": lambda: "well",
    "return": lambda value: value,
    "bytes": lambda text: text.encode(),
    "fail": _fail,
    "ignored": _ignored,
    "error": _error,
    "wait": _wait,
    "unless": _unless,
    "extras": lambda **extras: Result(payload="handed on", extras=extras),
    "spawn": lambda jobs, payload=None: Result(spawn=jobs, payload=payload),
}


def act(ctx: Context, role: str = "", what: dict[str, Any] | None = None) -> Any:
    """Does what `what`, or the params under its role (else its handler's name), say: {act: argument}."""
    todo = what or ctx.params.get(role or ctx.handler, {"ok": None})
    (name, argument), *_ = todo.items()
    match argument:
        case None:
            return ACTS[name]()
        case dict():
            return ACTS[name](**argument)
        case _:
            return ACTS[name](argument)


def tell(ctx: Context, **vars: Any) -> dict[str, Any]:
    """All that its request handed it."""
    return {
        "request_id": ctx.request_id, "vars": vars, "params": ctx.params, "extras": ctx.extras,
        "needs": ctx.needs,
    }  # fmt: skip


class Inactive:
    """Never has anything to do."""

    def active(self) -> bool:
        """Not now."""
        return False

    def ensure(self, ctx: Context) -> None:
        """Is never called."""
        raise AssertionError("it was not active")


# -- recurring ---------------------------------------------------------------------------------


def _log(path: str, line: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(fd, f"{line}\n".encode())
    finally:
        os.close(fd)


def beat(ctx: Context) -> None:
    """Writes a line when it begins and one when it ends: where runs were, outside of workerd."""
    path = f"{os.environ['BEATS']}.{ctx.handler}"
    _log(path, f"begin {ctx.job_id} {time.monotonic_ns()}")
    time.sleep(float(os.environ.get("BEAT_SECONDS", "0")))
    _log(path, f"end {ctx.job_id} {time.monotonic_ns()}")


def in_turn(ctx: Context) -> str:
    """Ends in another way at each run: every way in which a run can end badly, and then well."""
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
    return "well"


class Choosy:
    """Is active at every second look, and asks for a pause of its own."""

    def __init__(self) -> None:
        self.looks = 0

    def active(self) -> bool:
        """Every second time."""
        self.looks += 1
        return self.looks % 2 == 0

    def cooler(self) -> float:
        """Much shorter than the configured pause."""
        return 0.03

    def ensure(self, ctx: Context) -> int:
        """How often it was asked."""
        return self.looks


def _logged(function: Any) -> Any:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return wrapper


@_logged
def _wrapped(ctx: Context) -> str:
    return ctx.handler


wrapped = _wrapped
partial = functools.partial(_wrapped)


class Caller:
    """An instance that can be called."""

    def __call__(self, ctx: Context) -> str:
        """The name under which it runs."""
        return ctx.handler


instance = Caller()


def gated() -> str:
    """Runs until the file that its pool's environment names is there."""
    return _wait(os.environ["GATE"])
