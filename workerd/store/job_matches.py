"""Which of the jobs that a list reads fit what no index has: reason, error group, group, request, meta."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from workerd.job import AttemptRef
from workerd.store import columns
from workerd.store.base import Tx

ShownMeta = Callable[[str, bytes], bytes]
"""The meta of a handler's job as whoever asks may see it; both are JSON text."""

Conditions = tuple[tuple[str, object], ...]
"""Columns and the values that they must have."""


def fitting(
    tx: Tx,
    refs: Sequence[AttemptRef],
    conditions: Conditions,
    meta: Mapping[str, str],
    shown: ShownMeta | None,
) -> set[AttemptRef]:
    """Those of these attempts that fit. Meta of over MAX_LISTED_BYTES, which no list shows, fits nothing.

    `shown`: else a caller could find out values that are redacted by asking for them.
    """
    where = "".join(f" AND {name} = %s" for name, _ in conditions)
    values = [value for _, value in conditions]
    size = tx.dialect.byte_length("meta")
    short = f"CASE WHEN {size} <= {columns.MAX_LISTED_BYTES} THEN meta END" if meta else "NULL"
    found = set()
    for part in columns.chunks(refs):
        for job_id, attempt, handler, text in tx.query(
            f"SELECT id, attempt, handler, {short} FROM workerd_jobs WHERE ({columns.keys(part)}){where}",
            values,
        ):
            if not meta or _has(meta, _shown(columns.lenient(handler) or "", text, shown)):
                found.add(AttemptRef(job_id, attempt))
    return found


def _shown(handler: str, text: Any, shown: ShownMeta | None) -> Any:
    if text is None:
        return None
    data = text.encode("utf-8", "replace") if isinstance(text, str) else bytes(text)
    try:
        return json.loads(data if shown is None else shown(handler, data))
    except (ValueError, RecursionError):
        return None


def _has(wanted: Mapping[str, str], meta: Any) -> bool:
    return isinstance(meta, dict) and all(
        key in meta and _text(meta[key]) == value for key, value in wanted.items()
    )


def _text(value: Any) -> str:
    """A text as it is, any other value as JSON has it: `7`, `true`, `null`."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
