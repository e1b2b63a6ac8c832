"""Which of the attempts that were read fit what no index has: reason, error group, group, times, meta."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from workerd.job import AttemptRef
from workerd.job_filter import JobFilter
from workerd.store import columns
from workerd.store.base import Tx

ShownMeta = Callable[[str, bytes], bytes]
"""The meta of a handler's job as the caller may see it; both are JSON text."""

MADE = (
    "CASE WHEN j.attempt = 1 THEN j.created_at ELSE"
    " (SELECT f.created_at FROM workerd_jobs AS f WHERE f.id = j.id ORDER BY f.attempt LIMIT 1) END"
)
"""When the job of the row `j` was made: when its first row was."""


def fitting(
    tx: Tx, refs: Sequence[AttemptRef], wanted: JobFilter, shown: ShownMeta | None
) -> set[AttemptRef]:
    """Those of these attempts that fit. Meta of over MAX_LISTED_BYTES, which no list shows, fits nothing.

    `shown`: else a caller could find out values that are redacted by asking for them.
    """
    where, values = _conditions(wanted)
    meta = wanted.meta or {}
    size = tx.dialect.byte_length("j.meta")
    short = f"CASE WHEN {size} <= {columns.MAX_LISTED_BYTES} THEN j.meta END" if meta else "NULL"
    found = set()
    for part in columns.chunks(refs):
        for job_id, attempt, handler, text in tx.query(
            f"SELECT j.id, j.attempt, j.handler, {short} FROM workerd_jobs AS j"
            f" WHERE ({columns.keys(part)}){where}",
            values,
        ):
            if not meta or _has(meta, _shown(columns.lenient(handler) or "", text, shown)):
                found.add(AttemptRef(job_id, attempt))
    return found


def _conditions(wanted: JobFilter) -> tuple[str, list[object]]:
    """What is compared by the server, without meta."""
    where = "".join(f" AND j.{name} = %s" for name, _ in wanted.conditions)
    values = [value for _, value in wanted.conditions]
    for sign, moment in ((">=", wanted.since), ("<", wanted.until)):
        if moment is not None:
            where += f" AND {MADE} {sign} %s"
            values.append(columns.at(moment))
    return where, values


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
