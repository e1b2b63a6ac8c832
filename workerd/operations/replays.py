"""What running an attempt once more beside the daemon takes; nothing is written."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from workerd.config.model import Config
from workerd.errors import HandlerNotFound
from workerd.job import Claim
from workerd.operations.edit import merged_vars
from workerd.operations.enqueue import unknown
from workerd.store import replays
from workerd.store.base import Tx


def prepare(tx: Tx, config: Config, job_id: bytes, attempt: int | None, texts: Mapping[str, str]) -> Claim:
    """The attempt, None for the newest, as its pool would get it, with `texts` merged into its vars.

    Raises NotFound, HandlerNotFound for a handler that this configuration has not, InvalidValue for vars that
    do not fit, UnreadableRow.
    """
    claim = replays.claim_of(tx, job_id, attempt)
    if claim.handler not in config.handlers:
        raise HandlerNotFound(unknown(claim.handler, set(config.handlers)))
    if texts:
        vars_ = merged_vars(tx, config, claim.handler, claim.vars, texts)
        claim = msgspec.structs.replace(claim, vars=vars_)
    return claim
