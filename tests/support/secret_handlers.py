"""Handlers that leak what they were given by every way out that a handler has."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from typing import Annotated, Any, Literal

from workerd import Context, Failure, Result, Retry, Secret


class Telling:
    """An object whose repr tells."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return f"Telling({self.text!r})"


def tell(ctx: Context, text: str) -> None:
    """Print it and log it, whole, in parts and in a long line; by a program, too."""
    print("printed", text, flush=True)
    print("escaped", repr(text), file=sys.stderr, flush=True)
    half = len(text) // 2
    os.write(1, b"halves " + text[:half].encode())
    time.sleep(0.01)
    os.write(1, text[half:].encode() + b"\n")
    os.write(2, b"x" * (4096 - half) + text.encode() + b"y" * 5000 + b"\n")
    subprocess.run(["/bin/echo", "program", text], check=True)
    ctx.log.warning("logged " + text, value=text, telling=Telling(text))
    logging.getLogger("shop").error("logging %s", text, extra={"more": text})
    try:
        raise KeyError(text)
    except KeyError:
        logging.exception("failed")
    ctx.progress(0.5, f"note {text}")


def leak(  # noqa: C901
    ctx: Context, kind: str, password: Annotated[str, Secret], card: dict[str, Any]
) -> Any:
    """End in the way `kind`, after telling everything."""
    tell(ctx, password)
    print("card", card, flush=True)
    match kind:
        case "ok":
            return {"password": password, "card": card, "kept": 1}
        case "raises":
            raise ValueError(f"wrong: {password!r} {card}")
        case "chained":
            try:
                raise KeyError(password)
            except KeyError as error:
                raise RuntimeError("x" * 1000 + password) from error
        case "failure":
            raise Failure(f"no such user: {password}")
        case "retry":
            if ctx.attempt == 1:
                raise Retry(f"busy with {password}", after=0)
            return None
        case "result":
            return Result({"password": password}, success=False)
        case "unstorable":
            return {Telling(password): 1}
        case "soft":
            time.sleep(60)
        case "swallows":
            try:
                time.sleep(60)
            except BaseException as error:
                raise OSError(f"while {password}") from error
        case "hard":
            os.write(1, b"unfinished " + password.encode())
            sum(range(10**13))
        case "crashes":
            os.write(1, b"unfinished " + password.encode())
            os.kill(os.getpid(), signal.SIGSEGV)
        case "exits":
            os._exit(3)
        case "waits":
            while True:  # not until ctx.stopping, which may come before the Cancelled that is to end it
                time.sleep(0.02)
    return None


def choose(password: Literal["open sesame"]) -> None:
    """Takes one value; the message about another one names it."""


def issue(ctx: Context, token: str, ends: str) -> Any:
    """Make a secret and tell of it; `token`: one that was given."""
    issued = "issued-4712-XYZ"
    print("printed", issued, flush=True)
    ctx.log.warning("logged", issued=issued)
    ctx.progress(1.0, f"issued {issued}")
    if ends == "raises":
        raise type(f"Bad_{token}", (ValueError,), {})("x")
    return Result(success=ends == "ok", payload={"token": issued}, extras={"token": issued})
