"""A handler that takes what it is given."""

from typing import Any

from workerd import Context


def run(ctx: Context, **given: Any) -> None:
    ctx.log.info("ran", names=sorted(given))
