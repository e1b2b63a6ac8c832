"""Version 2: failures grouped, logs kept, audit, limits, groups, expiry, schedules with vars, saved state.

And fewer index entries for each job: two move where six did, since `workerd_holder` is in place of three
indexes. It has a waiting or ended row under its handler and a running one under its node.
`workerd_scheduled` has the due times of scheduled rows, and when those that wait expire; it does not change
for any other.

MariaDB's indexes on virtual columns have crashed servers: MDEV-36281 while one is built beside writers,
MDEV-39261 at the start after a crash, MDEV-36613 and MDEV-26057 in undo and rollback. So there the
generated columns are stored; adding them copies the table, beside writers since MariaDB 11.2. MySQL ignores
the word in MariaDB's comment and adds virtual ones at once. At work both cost the same. The old indexes go
first, because a copy without them takes half as long.
"""

from __future__ import annotations

from workerd.store.schema.column_types import (
    INT32,
    TABLE,
    lite_count,
    lite_id,
    lite_name,
    lite_one_of,
    lite_text,
    lite_time,
)

_ORIGIN = "'config','api'"
_SCOPE = "'limit','group'"
_NODE_STATE = "'open','failed','done','spread'"
_NEED_KIND = "'open','met','spawned'"
# A waiting row in the queue of its group is found under that queue (`store.group_queues`); any other value,
# set by hand, is ignored, or the row would never be found.
_HOLDER = (
    "CASE WHEN status = 'inprogress' THEN COALESCE(HEX(node_id), '')"
    " WHEN status = 'new' AND HEX(SUBSTR(queue, 1, 1)) = 'F48FBFBF' THEN queue ELSE handler END"
)


def _due_at(first: str) -> str:
    """When a row becomes due, and when one that waits expires: a scheduled one by what comes first.

    Without those that wait until another job of their unique key has ended (`store.duplicates`). `first`:
    what a zero date counts as. MySQL sees that in `run_at` before it has its default, and would refuse it.
    """
    return (
        "CASE WHEN status = 'scheduled' AND SUBSTR(COALESCE(unique_key, ''), 1, 6) <> '~next:'"
        " THEN CASE WHEN expires_at < run_at THEN expires_at"
        f" WHEN run_at > {first} THEN run_at ELSE {first} END"
        " WHEN status = 'new' THEN expires_at END"
    )


_LITE_FIRST_TIME = "'1000-01-01 00:00:00'"
_FIRST_TIME = f"TIMESTAMP{_LITE_FIRST_TIME}"

# Columns are added at the end and may be NULL or have a constant default: that is done at once, whatever the
# number of rows, without a lock that a writer would wait for.
MYSQL = [
    """ALTER TABLE workerd_jobs
        ADD COLUMN error_class VARCHAR(191) NULL,
        ADD COLUMN fingerprint BINARY(8) NULL,
        ADD COLUMN group_key VARCHAR(191) NULL,
        ADD COLUMN queue VARCHAR(64) NULL,
        ADD COLUMN given_key VARCHAR(191) NULL,
        ADD COLUMN expires_at DATETIME(6) NULL,
        ADD COLUMN state MEDIUMBLOB NULL""",
    """ALTER TABLE workerd_jobs
        DROP KEY workerd_claim,
        DROP KEY workerd_due,
        DROP KEY workerd_node""",
    f"""ALTER TABLE workerd_jobs
        ADD COLUMN holder VARCHAR(191) GENERATED ALWAYS AS ({_HOLDER}) /*M! STORED */,
        ADD COLUMN due_at DATETIME(6) GENERATED ALWAYS AS ({_due_at(_FIRST_TIME)}) /*M! STORED */""",
    """ALTER TABLE workerd_jobs
        ADD KEY workerd_holder (status, holder, priority, run_at),
        ADD KEY workerd_scheduled (due_at)""",
    """ALTER TABLE workerd_requests
        ADD COLUMN begins_at DATETIME(6) NULL,
        ADD COLUMN name VARCHAR(191) NULL,
        ADD COLUMN total BIGINT UNSIGNED NOT NULL DEFAULT 0,
        ADD COLUMN done BIGINT UNSIGNED NOT NULL DEFAULT 0,
        ADD COLUMN failed BIGINT UNSIGNED NOT NULL DEFAULT 0,
        ADD COLUMN cycle INT UNSIGNED NOT NULL DEFAULT 0,
        ADD COLUMN pending ENUM('fill','release','cancel','reopen','spread') NULL,
        ADD COLUMN pending_after BINARY(16) NULL,
        ADD COLUMN traceparent VARCHAR(64) NULL,
        ADD KEY workerd_request_pending (pending, created_at)""",
    f"""CREATE TABLE IF NOT EXISTS workerd_signals (
        request_id BINARY(16) NOT NULL,
        name VARCHAR(191) NOT NULL,
        payload LONGTEXT NOT NULL,
        source VARCHAR(191) NOT NULL DEFAULT '',
        created_at DATETIME(6) NOT NULL,
        PRIMARY KEY (request_id, name)
    ) {TABLE}""",
    f"""CREATE TABLE IF NOT EXISTS workerd_errors (
        fingerprint BINARY(8) NOT NULL,
        handler VARCHAR(191) NOT NULL,
        error_class VARCHAR(191) NOT NULL,
        error TEXT NULL,
        job_id BINARY(16) NOT NULL,
        attempt INT UNSIGNED NOT NULL,
        first_seen DATETIME(6) NOT NULL,
        last_seen DATETIME(6) NOT NULL,
        count BIGINT UNSIGNED NOT NULL DEFAULT 0,
        resolved_at DATETIME(6) NULL,
        resolved_by VARCHAR(191) NULL,
        muted_until DATETIME(6) NULL,
        kept BIGINT UNSIGNED NOT NULL DEFAULT 0,
        hours TEXT NULL,
        PRIMARY KEY (fingerprint, handler),
        KEY workerd_error_seen (last_seen)
    ) {TABLE}""",
    f"""CREATE TABLE IF NOT EXISTS workerd_request_jobs (
        id BINARY(16) NOT NULL,
        request_id BINARY(16) NOT NULL,
        handler VARCHAR(191) NOT NULL,
        needs INT UNSIGNED NOT NULL DEFAULT 0,
        live INT UNSIGNED NOT NULL DEFAULT 1,
        state ENUM({_NODE_STATE}) NOT NULL DEFAULT 'open',
        on_error VARCHAR(16) NOT NULL DEFAULT 'fail',
        wait MEDIUMTEXT NULL,
        signal_name VARCHAR(191) NULL,
        PRIMARY KEY (id),
        KEY workerd_request_job_state (request_id, state),
        KEY workerd_request_job_signal (request_id, signal_name)
    ) {TABLE}""",
    f"""CREATE TABLE IF NOT EXISTS workerd_request_needs (
        need BINARY(16) NOT NULL,
        job BINARY(16) NOT NULL,
        kind ENUM({_NEED_KIND}) NOT NULL DEFAULT 'open',
        PRIMARY KEY (need, job),
        KEY workerd_request_need_job (job, kind)
    ) {TABLE}""",
    f"""CREATE TABLE IF NOT EXISTS workerd_logs (
        id BINARY(16) NOT NULL,
        attempt INT UNSIGNED NOT NULL,
        text MEDIUMTEXT NOT NULL,
        dropped BIGINT UNSIGNED NOT NULL DEFAULT 0,
        PRIMARY KEY (id, attempt)
    ) {TABLE}""",
    f"""CREATE TABLE IF NOT EXISTS workerd_audit (
        id BINARY(16) NOT NULL,
        at DATETIME(6) NOT NULL,
        actor VARCHAR(191) NOT NULL,
        role VARCHAR(16) NOT NULL,
        via VARCHAR(16) NOT NULL,
        action VARCHAR(32) NOT NULL,
        target VARCHAR(191) NULL,
        detail MEDIUMTEXT NULL,
        address VARCHAR(64) NULL,
        PRIMARY KEY (id),
        KEY workerd_audit_actor (actor, id),
        KEY workerd_audit_target (target, id)
    ) {TABLE}""",
    f"""CREATE TABLE IF NOT EXISTS workerd_slots (
        limit_name VARCHAR(191) NOT NULL,
        scope ENUM({_SCOPE}) NOT NULL DEFAULT 'limit',
        group_key VARCHAR(191) NOT NULL DEFAULT '',
        n INT UNSIGNED NOT NULL,
        id BINARY(16) NULL,
        attempt INT UNSIGNED NULL,
        PRIMARY KEY (limit_name, scope, group_key, n)
    ) {TABLE}""",
    f"""CREATE TABLE IF NOT EXISTS workerd_rates (
        limit_name VARCHAR(191) NOT NULL,
        scope ENUM({_SCOPE}) NOT NULL DEFAULT 'limit',
        group_key VARCHAR(191) NOT NULL DEFAULT '',
        tat DATETIME(6) NULL,
        held_until DATETIME(6) NULL,
        next_handler VARCHAR(191) NULL,
        next_until DATETIME(6) NULL,
        PRIMARY KEY (limit_name, scope, group_key),
        KEY workerd_rate_held (held_until)
    ) {TABLE}""",
    f"""ALTER TABLE workerd_schedules
        ADD COLUMN origin ENUM({_ORIGIN}) NOT NULL DEFAULT 'config',
        ADD COLUMN handler VARCHAR(191) NULL,
        ADD COLUMN workflow VARCHAR(191) NULL,
        ADD COLUMN vars MEDIUMTEXT NULL,
        ADD COLUMN params MEDIUMTEXT NULL,
        ADD COLUMN misfire VARCHAR(16) NULL,
        ADD COLUMN overlap VARCHAR(16) NULL,
        ADD COLUMN jitter_ms BIGINT UNSIGNED NULL,
        ADD COLUMN priority INT NOT NULL DEFAULT 0,
        ADD COLUMN group_key VARCHAR(191) NULL,
        ADD COLUMN enabled TINYINT NOT NULL DEFAULT 1,
        ADD COLUMN revision BIGINT UNSIGNED NOT NULL DEFAULT 0""",
    f"""CREATE TABLE IF NOT EXISTS workerd_ticks (
        name VARCHAR(191) NOT NULL,
        tick DATETIME(6) NOT NULL,
        job_id BINARY(16) NULL,
        PRIMARY KEY (name, tick)
    ) {TABLE}""",
    # How often schedules were set or removed at run time, by which every node sees that it must read them.
    f"""CREATE TABLE IF NOT EXISTS workerd_revisions (
        name VARCHAR(32) NOT NULL,
        revision BIGINT UNSIGNED NOT NULL DEFAULT 0,
        PRIMARY KEY (name)
    ) {TABLE}""",
    "INSERT IGNORE INTO workerd_revisions (name) VALUES ('schedules')",
]

SQLITE = [
    *[
        f"ALTER TABLE workerd_jobs ADD COLUMN {column}"
        for column in (
            lite_name("error_class"),
            "fingerprint BLOB CHECK"
            " (fingerprint IS NULL OR (typeof(fingerprint) = 'blob' AND length(fingerprint) = 8))",
            lite_name("group_key"),
            lite_name("queue"),
            lite_name("given_key"),
            lite_time("expires_at"),
            "state BLOB CHECK (state IS NULL OR typeof(state) = 'blob')",
            f"holder TEXT GENERATED ALWAYS AS ({_HOLDER}) VIRTUAL",
            f"due_at TEXT GENERATED ALWAYS AS ({_due_at(_LITE_FIRST_TIME)}) VIRTUAL",
        )
    ],
    "DROP INDEX workerd_claim",
    "DROP INDEX workerd_due",
    "DROP INDEX workerd_node",
    "CREATE INDEX workerd_holder ON workerd_jobs (status, holder, priority, run_at)",
    "CREATE INDEX workerd_scheduled ON workerd_jobs (due_at) WHERE due_at IS NOT NULL",
    *[
        f"ALTER TABLE workerd_requests ADD COLUMN {column}"
        for column in (
            lite_time("begins_at"),
            lite_name("name"),
            lite_count("total", "NOT NULL DEFAULT 0"),
            lite_count("done", "NOT NULL DEFAULT 0"),
            lite_count("failed", "NOT NULL DEFAULT 0"),
            lite_count("cycle", "NOT NULL DEFAULT 0"),
            lite_one_of("pending", "'fill','release','cancel','reopen','spread'"),
            lite_id("pending_after"),
            lite_name("traceparent"),
        )
    ],
    "CREATE INDEX workerd_request_pending ON workerd_requests (pending, created_at)"
    " WHERE pending IS NOT NULL",
    f"""CREATE TABLE workerd_signals (
        {lite_id("request_id", "NOT NULL")},
        {lite_name("name", "NOT NULL")},
        {lite_text("payload", "NOT NULL")},
        {lite_name("source", "NOT NULL DEFAULT ''")},
        {lite_time("created_at", "NOT NULL")},
        PRIMARY KEY (request_id, name)
    )""",
    f"""CREATE TABLE workerd_errors (
        fingerprint BLOB NOT NULL CHECK (typeof(fingerprint) = 'blob' AND length(fingerprint) = 8),
        {lite_name("handler", "NOT NULL")},
        {lite_name("error_class", "NOT NULL")},
        {lite_text("error")},
        {lite_id("job_id", "NOT NULL")},
        {lite_count("attempt", "NOT NULL", "1")},
        {lite_time("first_seen", "NOT NULL")},
        {lite_time("last_seen", "NOT NULL")},
        {lite_count("count", "NOT NULL DEFAULT 0")},
        {lite_time("resolved_at")},
        {lite_name("resolved_by")},
        {lite_time("muted_until")},
        {lite_count("kept", "NOT NULL DEFAULT 0")},
        {lite_text("hours")},
        PRIMARY KEY (fingerprint, handler)
    )""",
    "CREATE INDEX workerd_error_seen ON workerd_errors (last_seen)",
    f"""CREATE TABLE workerd_request_jobs (
        {lite_id("id", "NOT NULL PRIMARY KEY")},
        {lite_id("request_id", "NOT NULL")},
        {lite_name("handler", "NOT NULL")},
        {lite_count("needs", "NOT NULL DEFAULT 0")},
        {lite_count("live", "NOT NULL DEFAULT 1")},
        {lite_one_of("state", _NODE_STATE, "NOT NULL DEFAULT 'open'")},
        {lite_text("on_error", "NOT NULL DEFAULT 'fail'")},
        {lite_text("wait")},
        {lite_name("signal_name")}
    )""",
    "CREATE INDEX workerd_request_job_state ON workerd_request_jobs (request_id, state)",
    "CREATE INDEX workerd_request_job_signal ON workerd_request_jobs (request_id, signal_name)",
    f"""CREATE TABLE workerd_request_needs (
        {lite_id("need", "NOT NULL")},
        {lite_id("job", "NOT NULL")},
        {lite_one_of("kind", _NEED_KIND, "NOT NULL DEFAULT 'open'")},
        PRIMARY KEY (need, job)
    )""",
    "CREATE INDEX workerd_request_need_job ON workerd_request_needs (job, kind)",
    f"""CREATE TABLE workerd_logs (
        {lite_id("id", "NOT NULL")},
        {lite_count("attempt", "NOT NULL", "1")},
        {lite_text("text", "NOT NULL")},
        {lite_count("dropped", "NOT NULL DEFAULT 0")},
        PRIMARY KEY (id, attempt)
    )""",
    f"""CREATE TABLE workerd_audit (
        {lite_id("id", "NOT NULL PRIMARY KEY")},
        {lite_time("at", "NOT NULL")},
        {lite_name("actor", "NOT NULL")},
        {lite_text("role", "NOT NULL")},
        {lite_text("via", "NOT NULL")},
        {lite_text("action", "NOT NULL")},
        {lite_name("target")},
        {lite_text("detail")},
        {lite_text("address")}
    )""",
    "CREATE INDEX workerd_audit_actor ON workerd_audit (actor, id)",
    "CREATE INDEX workerd_audit_target ON workerd_audit (target, id)",
    f"""CREATE TABLE workerd_slots (
        {lite_name("limit_name", "NOT NULL")},
        {lite_one_of("scope", _SCOPE, "NOT NULL DEFAULT 'limit'")},
        {lite_name("group_key", "NOT NULL DEFAULT ''")},
        {lite_count("n", "NOT NULL")},
        {lite_id("id")},
        {lite_count("attempt", "", "1")},
        PRIMARY KEY (limit_name, scope, group_key, n)
    ) WITHOUT ROWID""",
    f"""CREATE TABLE workerd_rates (
        {lite_name("limit_name", "NOT NULL")},
        {lite_one_of("scope", _SCOPE, "NOT NULL DEFAULT 'limit'")},
        {lite_name("group_key", "NOT NULL DEFAULT ''")},
        {lite_time("tat")},
        {lite_time("held_until")},
        {lite_name("next_handler")},
        {lite_time("next_until")},
        PRIMARY KEY (limit_name, scope, group_key)
    )""",
    "CREATE INDEX workerd_rate_held ON workerd_rates (held_until)",
    *[
        f"ALTER TABLE workerd_schedules ADD COLUMN {column}"
        for column in (
            lite_one_of("origin", _ORIGIN, "NOT NULL DEFAULT 'config'"),
            lite_name("handler"),
            lite_name("workflow"),
            lite_text("vars"),
            lite_text("params"),
            lite_text("misfire"),
            lite_text("overlap"),
            lite_count("jitter_ms"),
            lite_count("priority", "NOT NULL DEFAULT 0", INT32),
            lite_name("group_key"),
            lite_count("enabled", "NOT NULL DEFAULT 1"),
            lite_count("revision", "NOT NULL DEFAULT 0"),
        )
    ],
    f"""CREATE TABLE workerd_ticks (
        {lite_name("name", "NOT NULL")},
        {lite_time("tick", "NOT NULL")},
        {lite_id("job_id")},
        PRIMARY KEY (name, tick)
    )""",
    f"""CREATE TABLE workerd_revisions (
        {lite_text("name", "NOT NULL PRIMARY KEY")},
        {lite_count("revision", "NOT NULL DEFAULT 0")}
    )""",
    "INSERT INTO workerd_revisions (name) VALUES ('schedules')",
]
