"""Texts of a run without the values of its job that are not to be shown."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from workerd import text
from workerd.job import Claim
from workerd.outcome import Outcome
from workerd.redaction import Redaction, Scrubber, scrubber_of

Scrub = Callable[[str], str]


def keep(shown: str) -> str:
    """The text as it is: of a handler that redacts nothing."""
    return shown


def scrubber_of_claim(redaction: Redaction, claim: Claim) -> Scrubber:
    """What removes the redacted values of vars, meta, params, extras and needs."""
    return scrubber_of(
        redaction, claim.vars, claim.meta, claim.params, claim.extras, *(claim.needs or {}).values()
    )


def scrubber_of_results(redaction: Redaction, outcome: Outcome) -> Scrubber:
    """What removes the redacted values that the handler itself returned."""
    payload = outcome.payload if outcome.payload_type == "json" else None
    return scrubber_of(redaction, payload, outcome.extras)


def scrubbed_note(outcome: Outcome, scrub: Scrub) -> Outcome:
    """The outcome with its note without them; the note was written before they were known."""
    if outcome.note is None:
        return outcome
    return msgspec.structs.replace(outcome, note=text.one_line(scrub(outcome.note), text.NOTE_LIMIT))
