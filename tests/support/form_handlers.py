"""A handler whose signature has each kind of field that a form can have."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from workerd import Context, Failure, Secret


def order(
    ctx: Context,
    item: str,
    count: int = 1,
    size: Literal["S", "M", "L"] = "M",
    gift: bool = False,
    tags: list[str] | None = None,
    card: Annotated[str, Secret] = "",
    plan: Annotated[Literal["gold", "tin"], Secret] = "tin",
) -> dict[str, Any]:
    """Fails for coffee; else returns what it was given, but not the card."""
    if item == "coffee":
        raise Failure("out of coffee")
    return {"item": item, "count": count, "size": size, "gift": gift, "tags": tags, "paid": len(card)}
