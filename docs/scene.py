"""The handlers of the shop that the pictures of the dashboard show."""

from __future__ import annotations

import os
import signal
import time

from workerd import Context, Failure, Result, handler


@handler
def thumbnail(ctx: Context, image: str, width: int = 200) -> str:
    """One in some images is no picture."""
    ctx.log.info("resizing", image=image, width=width)
    time.sleep(0.05)
    if image.endswith(".gif"):
        raise ValueError(f"{image!r} is no PNG")
    return f"{image} at {width}"


@handler(max_attempts=1)
def charge(ctx: Context, order: int, tenant: str) -> str:
    """The bank is away now and then."""
    time.sleep(0.7)
    if order % 41 == 0:
        ctx.log.warning("no answer", bank="bank.example.org", order=order)
        raise ConnectionError(f"503 for url https://bank.example.org/charges/{order}")
    return f"receipt {order}"


@handler(max_crashes=1)
def convert(video: str) -> None:
    """C code that crashes."""
    os.kill(os.getpid(), signal.SIGSEGV)


@handler(deadline="1s", grace="500ms", max_attempts=1)
def export(table: str) -> None:
    """Does not come back in time."""
    while True:
        time.sleep(60)


@handler(deadline="10m")
def report(ctx: Context, month: str) -> None:
    """Runs while the pictures are taken."""
    for page in range(1, 101):
        ctx.progress(min(0.62, page / 100), f"page {min(62, page)} of 100")
        time.sleep(0.05 if page < 62 else 5)


def reserve(ctx: Context) -> Result:
    return Result(payload={"shelf": 12}, extras={"customer": ctx.params["customer"]})


def pay(ctx: Context) -> str:
    return f"charged {ctx.extras['customer']}"


def pack(ctx: Context) -> str:
    return f"packed from shelf {ctx.needs['reserve']['shelf']}"


def label(ctx: Context) -> str:
    return "printed"


def ship(ctx: Context) -> str:
    return "shipped"


def check_stock() -> str:
    return "1,204 articles"


def refuse(ctx: Context) -> None:
    raise Failure("the customer has no address")
