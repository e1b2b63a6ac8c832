"""The steps of an order."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

from workerd import Context, Result


def reserve(ctx: Context) -> Result:
    """Pass what was reserved on to the later steps."""
    return Result(payload="reserved", extras={"items": len(ctx.params["items"])})


def charge(ctx: Context) -> str:
    """Charge once, whatever happens to the process."""
    receipt = ctx.step("charge", lambda: _pay(ctx.params["order"]), wait=True)
    if ctx.attempt == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return str(receipt)


def _pay(order: int) -> str:
    """Pretend to pay: a line in the account."""
    with Path(os.environ["EXAMPLE_FOLDER"], "account").open("a") as account:
        account.write(f"order {order}\n")
    return f"receipt {order}"


def ship(ctx: Context) -> str:
    """What earlier steps passed on is in `extras`, what this one needs in `needs`."""
    return f"{ctx.extras['items']} items shipped"


def mail(ctx: Context) -> Any:
    """Of the receipt."""
    return {"to": ctx.params["mail"], "receipt": ctx.needs["charge"]}
