"""The steps of an order."""

from __future__ import annotations

import os
import signal
import uuid
from pathlib import Path
from typing import Any

from workerd import Context, Result


def reserve(ctx: Context) -> Result:
    """Pass what was reserved on to the later steps."""
    return Result(payload="reserved", extras={"items": len(ctx.params["items"])})


def charge(ctx: Context) -> dict[str, str]:
    """Charge once, whatever happens to the process, and only what somebody has approved."""
    key = ctx.saved or uuid.uuid4().hex
    ctx.save(key, wait=True)  # a later attempt pays with the same key, which the bank takes once
    receipt = ctx.step("charge", lambda: _pay(ctx.params["order"], key), wait=True)
    if ctx.attempt == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return {"receipt": receipt, "approved_by": ctx.needs["approve"]["by"]}


def _pay(order: int, key: str) -> str:
    """Pretend to be a bank, which knows the keys of its payments: a line in the account."""
    path = Path(os.environ["EXAMPLE_FOLDER"], "account")
    if not path.exists() or key not in path.read_text():
        with path.open("a") as account:
            account.write(f"order {order} {key}\n")
    return f"receipt {order}"


def ship(ctx: Context) -> str:
    """What earlier steps passed on is in `extras`, what this one needs in `needs`."""
    return f"{ctx.extras['items']} items shipped"


def mail(ctx: Context) -> Any:
    """Of the receipt, and who approved it."""
    return {"to": ctx.params["mail"], **ctx.needs["charge"]}
