"""Configurations that differ from another in some keys."""

from __future__ import annotations

from typing import Any

import msgspec

from workerd.config.model import Config


def with_keys(config: Config, handler: str, **keys: Any) -> Config:
    """The configuration with these keys of one handler set."""
    pool = config.pools[config.handlers[handler].pool]
    handlers = tuple(
        msgspec.structs.replace(one, **keys) if one.name == handler else one for one in pool.handlers
    )
    pools = {**config.pools, pool.name: msgspec.structs.replace(pool, handlers=handlers)}
    return msgspec.structs.replace(config, pools=pools)
