"""The tables, one list of statements for each engine; a migration is never changed once released."""

from __future__ import annotations

from typing import NamedTuple


class Migration(NamedTuple):
    """One step of the schema; `mysql` must be safe to run twice, and by two nodes at once."""

    version: int
    name: str
    mysql: list[str]
    sqlite: list[str]


_JOB_STATUS = "'scheduled','new','inprogress','completed','retry','failure','cancelled'"
_LIVE = "'scheduled','new','inprogress'"
_REQUEST_STATUS = "'queuing','inprogress','completed','failed','cancelled'"

# A client's session may have any time zone, so the defaults name UTC themselves.
_NOW = "(UTC_TIMESTAMP(6))"
_TABLE = "ENGINE=InnoDB ROW_FORMAT=DYNAMIC DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin"

MYSQL_FIRST = [
    f"""CREATE TABLE IF NOT EXISTS workerd_jobs (
        id BINARY(16) NOT NULL,
        attempt INT UNSIGNED NOT NULL DEFAULT 1,
        handler VARCHAR(191) NOT NULL,
        priority INT NOT NULL DEFAULT 0,
        status ENUM({_JOB_STATUS}) NOT NULL DEFAULT 'new',
        reason VARCHAR(16) NULL,
        run_at DATETIME(6) NOT NULL DEFAULT {_NOW},
        vars LONGTEXT NOT NULL DEFAULT ('{{}}'),
        meta LONGTEXT NULL,
        deadline_ms BIGINT UNSIGNED NULL,
        max_attempts INT UNSIGNED NULL,
        failures INT UNSIGNED NOT NULL DEFAULT 0,
        crashes INT UNSIGNED NOT NULL DEFAULT 0,
        losses INT UNSIGNED NOT NULL DEFAULT 0,
        unique_key VARCHAR(191) NULL,
        request_id BINARY(16) NULL,
        step INT UNSIGNED NULL,
        name VARCHAR(191) NULL,
        node_id BINARY(16) NULL,
        node VARCHAR(191) NULL,
        pid INT UNSIGNED NULL,
        cancel_requested_at DATETIME(6) NULL,
        success TINYINT NULL,
        payload LONGBLOB NULL,
        payload_type ENUM('bytes','json') NULL,
        error TEXT NULL,
        stack MEDIUMTEXT NULL,
        progress DOUBLE NULL,
        note TEXT NULL,
        exit_signal INT NULL,
        exit_code INT NULL,
        created_at DATETIME(6) NOT NULL DEFAULT {_NOW},
        claimed_at DATETIME(6) NULL,
        started_at DATETIME(6) NULL,
        finished_at DATETIME(6) NULL,
        ingested_at DATETIME(6) NULL,
        run_us BIGINT UNSIGNED NULL,
        cpu_us BIGINT UNSIGNED NULL,
        max_rss_kib BIGINT UNSIGNED NULL,
        live_key VARCHAR(191) GENERATED ALWAYS AS
            (CASE WHEN status IN ({_LIVE}) THEN unique_key END) STORED,
        PRIMARY KEY (id, attempt),
        KEY workerd_claim (handler, status, priority, run_at),
        KEY workerd_due (status, run_at),
        UNIQUE KEY workerd_live (handler, live_key),
        KEY workerd_request (request_id),
        KEY workerd_node (node_id, status)
    ) {_TABLE}""",
    f"""CREATE TABLE IF NOT EXISTS workerd_requests (
        id BINARY(16) NOT NULL,
        workflow VARCHAR(191) NOT NULL,
        params LONGTEXT NOT NULL,
        extras LONGTEXT NOT NULL DEFAULT ('{{}}'),
        steps LONGTEXT NULL,
        step INT UNSIGNED NOT NULL DEFAULT 0,
        status ENUM({_REQUEST_STATUS}) NOT NULL DEFAULT 'queuing',
        version BIGINT UNSIGNED NOT NULL DEFAULT 0,
        error TEXT NULL,
        created_at DATETIME(6) NOT NULL DEFAULT {_NOW},
        completed_at DATETIME(6) NULL,
        PRIMARY KEY (id),
        KEY workerd_request_status (status, created_at)
    ) {_TABLE}""",
    f"""CREATE TABLE IF NOT EXISTS workerd_schedules (
        name VARCHAR(191) NOT NULL,
        kind ENUM('cron','cooler') NOT NULL,
        expression VARCHAR(191) NOT NULL DEFAULT '',
        timezone VARCHAR(64) NOT NULL DEFAULT 'UTC',
        last_tick DATETIME(6) NULL,
        last_job BINARY(16) NULL,
        paused_at DATETIME(6) NULL,
        paused_by VARCHAR(191) NULL,
        PRIMARY KEY (name)
    ) {_TABLE}""",
    f"""CREATE TABLE IF NOT EXISTS workerd_nodes (
        id BINARY(16) NOT NULL,
        name VARCHAR(191) NOT NULL,
        host VARCHAR(255) NOT NULL DEFAULT '',
        pid INT UNSIGNED NULL,
        boot_id VARCHAR(64) NULL,
        version VARCHAR(64) NOT NULL DEFAULT '',
        started_at DATETIME(6) NOT NULL DEFAULT {_NOW},
        lease_until DATETIME(6) NOT NULL,
        info LONGTEXT NULL,
        PRIMARY KEY (id),
        KEY workerd_node_name (name)
    ) {_TABLE}""",
    f"""CREATE TABLE IF NOT EXISTS workerd_handlers (
        name VARCHAR(191) NOT NULL,
        signature LONGTEXT NULL,
        nodes LONGTEXT NOT NULL DEFAULT ('[]'),
        seen_at DATETIME(6) NULL,
        paused_at DATETIME(6) NULL,
        paused_by VARCHAR(191) NULL,
        pause_reason TEXT NULL,
        PRIMARY KEY (name)
    ) {_TABLE}""",
]

MYSQL_MIGRATIONS = f"""CREATE TABLE IF NOT EXISTS workerd_migrations (
    version INT UNSIGNED NOT NULL,
    name VARCHAR(191) NOT NULL,
    applied_at DATETIME(6) NOT NULL DEFAULT {_NOW},
    PRIMARY KEY (version)
) {_TABLE}"""


_SECOND = "[0-9][0-9][0-9][0-9]-[0-1][0-9]-[0-3][0-9] [0-2][0-9]:[0-5][0-9]:[0-5][0-9]"
_LITE_NOW = "(strftime('%Y-%m-%d %H:%M:%f', 'now') || '000')"


def _time(column: str, rest: str = "") -> str:
    forms = f"{column} GLOB '{_SECOND}' OR ({column} GLOB '{_SECOND}.[0-9]*' AND length({column}) <= 26)"
    return f"{column} TEXT {rest} CHECK ({column} IS NULL OR (typeof({column}) = 'text' AND ({forms})))"


def _name(column: str, rest: str = "") -> str:
    valid = f"typeof({column}) = 'text' AND length({column}) <= 191"
    return f"{column} TEXT {rest} CHECK ({column} IS NULL OR ({valid}))"


def _text(column: str, rest: str = "") -> str:
    return f"{column} TEXT {rest} CHECK ({column} IS NULL OR typeof({column}) = 'text')"


def _id(column: str, rest: str = "") -> str:
    valid = f"typeof({column}) = 'blob' AND length({column}) = 16"
    return f"{column} BLOB {rest} CHECK ({column} IS NULL OR ({valid}))"


def _count(column: str, rest: str = "", least: str = "0") -> str:
    valid = f"typeof({column}) = 'integer' AND {column} >= {least}"
    return f"{column} INTEGER {rest} CHECK ({column} IS NULL OR ({valid}))"


def _one_of(column: str, values: str, rest: str = "") -> str:
    return f"{column} TEXT {rest} CHECK ({column} IS NULL OR {column} IN ({values}))"


_INT32 = "-2147483648"

SQLITE_FIRST = [
    f"""CREATE TABLE workerd_jobs (
        {_id("id", "NOT NULL")},
        {_count("attempt", "NOT NULL DEFAULT 1", "1")},
        {_name("handler", "NOT NULL")},
        {_count("priority", "NOT NULL DEFAULT 0", _INT32)},
        {_one_of("status", _JOB_STATUS, "NOT NULL DEFAULT 'new'")},
        {_text("reason")},
        {_time("run_at", f"NOT NULL DEFAULT {_LITE_NOW}")},
        {_text("vars", "NOT NULL DEFAULT '{}'")},
        {_text("meta")},
        {_count("deadline_ms")},
        {_count("max_attempts")},
        {_count("failures", "NOT NULL DEFAULT 0")},
        {_count("crashes", "NOT NULL DEFAULT 0")},
        {_count("losses", "NOT NULL DEFAULT 0")},
        {_name("unique_key")},
        {_id("request_id")},
        {_count("step")},
        {_name("name")},
        {_id("node_id")},
        {_name("node")},
        {_count("pid")},
        {_time("cancel_requested_at")},
        {_count("success")},
        payload BLOB CHECK (payload IS NULL OR typeof(payload) = 'blob'),
        {_one_of("payload_type", "'bytes','json'")},
        {_text("error")},
        {_text("stack")},
        progress REAL CHECK (progress IS NULL OR typeof(progress) = 'real'),
        {_text("note")},
        {_count("exit_signal", "", _INT32)},
        {_count("exit_code", "", _INT32)},
        {_time("created_at", f"NOT NULL DEFAULT {_LITE_NOW}")},
        {_time("claimed_at")},
        {_time("started_at")},
        {_time("finished_at")},
        {_time("ingested_at")},
        {_count("run_us")},
        {_count("cpu_us")},
        {_count("max_rss_kib")},
        PRIMARY KEY (id, attempt)
    )""",
    "CREATE INDEX workerd_claim ON workerd_jobs (handler, status, priority, run_at)",
    "CREATE INDEX workerd_due ON workerd_jobs (status, run_at)",
    f"CREATE UNIQUE INDEX workerd_live ON workerd_jobs (handler, unique_key)"
    f" WHERE unique_key IS NOT NULL AND status IN ({_LIVE})",
    "CREATE INDEX workerd_request ON workerd_jobs (request_id) WHERE request_id IS NOT NULL",
    "CREATE INDEX workerd_node ON workerd_jobs (node_id, status) WHERE node_id IS NOT NULL",
    f"""CREATE TABLE workerd_requests (
        {_id("id", "NOT NULL PRIMARY KEY")},
        {_name("workflow", "NOT NULL")},
        {_text("params", "NOT NULL")},
        {_text("extras", "NOT NULL DEFAULT '{}'")},
        {_text("steps")},
        {_count("step", "NOT NULL DEFAULT 0")},
        {_one_of("status", _REQUEST_STATUS, "NOT NULL DEFAULT 'queuing'")},
        {_count("version", "NOT NULL DEFAULT 0")},
        {_text("error")},
        {_time("created_at", f"NOT NULL DEFAULT {_LITE_NOW}")},
        {_time("completed_at")}
    )""",
    "CREATE INDEX workerd_request_status ON workerd_requests (status, created_at)",
    f"""CREATE TABLE workerd_schedules (
        {_name("name", "NOT NULL PRIMARY KEY")},
        {_one_of("kind", "'cron','cooler'", "NOT NULL")},
        {_text("expression", "NOT NULL DEFAULT ''")},
        {_text("timezone", "NOT NULL DEFAULT 'UTC'")},
        {_time("last_tick")},
        {_id("last_job")},
        {_time("paused_at")},
        {_name("paused_by")}
    )""",
    f"""CREATE TABLE workerd_nodes (
        {_id("id", "NOT NULL PRIMARY KEY")},
        {_name("name", "NOT NULL")},
        {_text("host", "NOT NULL DEFAULT ''")},
        {_count("pid")},
        {_text("boot_id")},
        {_text("version", "NOT NULL DEFAULT ''")},
        {_time("started_at", f"NOT NULL DEFAULT {_LITE_NOW}")},
        {_time("lease_until", "NOT NULL")},
        {_text("info")}
    )""",
    "CREATE INDEX workerd_node_name ON workerd_nodes (name)",
    f"""CREATE TABLE workerd_handlers (
        {_name("name", "NOT NULL PRIMARY KEY")},
        {_text("signature")},
        {_text("nodes", "NOT NULL DEFAULT '[]'")},
        {_time("seen_at")},
        {_time("paused_at")},
        {_name("paused_by")},
        {_text("pause_reason")}
    )""",
]

SQLITE_MIGRATIONS = f"""CREATE TABLE IF NOT EXISTS workerd_migrations (
    version INTEGER NOT NULL PRIMARY KEY,
    name TEXT NOT NULL,
    applied_at TEXT NOT NULL DEFAULT {_LITE_NOW}
)"""

MIGRATIONS = (Migration(1, "first tables", MYSQL_FIRST, SQLITE_FIRST),)
