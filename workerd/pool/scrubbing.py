"""Texts of a run without the values of its job that are not to be shown."""

from __future__ import annotations

from collections.abc import Callable

from workerd.job import Claim
from workerd.redaction import Redaction, Scrubber, scrubber_of

Scrub = Callable[[str], str]


def keep(text: str) -> str:
    """The text as it is: of a handler that redacts nothing."""
    return text


def scrubber_of_claim(redaction: Redaction, claim: Claim) -> Scrubber:
    """What removes the redacted values of vars, meta, params, extras and needs."""
    return scrubber_of(
        redaction, claim.vars, claim.meta, claim.params, claim.extras, *(claim.needs or {}).values()
    )
