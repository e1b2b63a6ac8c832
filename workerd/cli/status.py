"""`status`: the state of the daemon on this host, as its supervisor reports it."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

from workerd.cli.errors import CommandExit, CommandFailed
from workerd.cli.options import AsJson, ConfigPath
from workerd.cli.output import (
    Document,
    notify,
    print_fields,
    print_heading,
    print_json,
    print_table,
    print_text,
)
from workerd.cli.running import RunningDaemon, load_running_config, refuse_elsewhere
from workerd.cli.views import second
from workerd.config.model import Config
from workerd.runtime.generations import ask_status, serving_paths
from workerd.text import line, plural, seconds_text, size_text


def status(c: ConfigPath = None, json: AsJson = False) -> None:
    """Show the state of the daemon on this host."""
    document = ask_supervisor(load_running_config(c))
    if json:
        print_json(document)
    else:
        _print(document)
    if not document.get("ready") or _is_store_away(document):
        if not json:
            notify(_why_not_ready(document))
        raise CommandExit(1)


def ask_supervisor(config: Config) -> Document:
    """The supervisor's status document. Raises CommandFailed if it does not answer."""
    path = serving_paths(config.node).supervisor
    try:
        return ask_status(config.node)
    except PermissionError:
        raise CommandFailed(
            f"You may not access workerd's socket {path}. Do this as the user of workerd, or as root."
        ) from None
    except (FileNotFoundError, ConnectionRefusedError):
        refuse_elsewhere(config)
        raise CommandFailed(
            f"workerd is not running (no process listens at {path}). Start it with `workerd start` or "
            f"`systemctl start workerd`."
        ) from None
    except OSError as error:
        running = RunningDaemon.find(config)
        process = f" Its supervisor, process id {running.pid}, may be stopped or starved." if running else ""
        raise CommandFailed(
            f"workerd does not answer at {path} ({error}).{process} Jobs continue without it; retry later."
        ) from None


def _is_store_away(document: Document) -> bool:
    store = document.get("store")
    return isinstance(store, dict) and store.get("state") not in (None, "up")


def _why_not_ready(document: Document) -> str:
    state = document.get("state", "unknown")
    if state == "draining":
        return "workerd is stopping and takes no new jobs."
    if _is_store_away(document):
        reason = str(document["store"].get("error") or "the store does not answer").rstrip(".")
        return f"workerd is not ready: {reason}. Running jobs continue; none is claimed."
    return "workerd is not ready: " + ("; ".join(troubles(document)) or f"it is {state}") + "."


def troubles(document: Document) -> list[str]:
    """What keeps each role or pool from being up, without a full stop."""
    return [
        f"{name}: {str(part['trouble']).rstrip('.')}"
        for name, part in [*_named(document, "roles"), *_named(document, "pools")]
        if part.get("trouble")
    ]


def _named(document: Document, key: str) -> list[tuple[str, Document]]:
    found = document.get(key)
    return [(str(name), dict(part)) for name, part in found.items()] if isinstance(found, dict) else []


def _print(document: Document) -> None:
    node = f"{document.get('node')}, workerd {document.get('version')}, process id {document.get('pid')}"
    print_fields(
        [
            ("node", node),
            ("state", document.get("state")),
            *_former(document.get("former")),
            ("since", second(document.get("started_at"))),
            ("store", _store(document.get("store"))),
            ("lease", _lease(dict(_named(document, "roles")).get("dispatcher", {}))),
            ("spool", _spool(document.get("spool"))),
            *_warnings(dict(_named(document, "roles")).get("ingester", {})),
        ]
    )
    print_text()
    print_table(
        ["role", "state", "pid", "up", "restarts", "trouble"],
        [_process_row(name, role) for name, role in _named(document, "roles")],
    )
    pools = _named(document, "pools")
    if not pools:
        print_text()
        print_text("No pools: the configuration has no handlers.")
        return
    print_text()
    print_table(
        ["pool", "state", "pid", "up", "restarts", "workers", "waiting here", "handlers", "trouble"],
        [_pool_row(name, pool) for name, pool in pools],
    )
    _print_running(pools)


def _former(former: Any) -> list[tuple[str, str]]:
    """The generations of the daemon that end beside this one."""
    rows = []
    for one in former or ():
        named = f"{line(one.get('node'))}, workerd {one.get('version')}, process id {one.get('pid')}"
        rows.append(("former", f"{named}: {one.get('state')}"))
    return rows


def _process_row(name: str, part: Document) -> list[object]:
    return [
        name,
        part.get("state"),
        part.get("pid"),
        seconds_text(part.get("since")),
        part.get("restarts"),
        _trouble(part),
    ]


def _trouble(part: Document) -> str:
    """What is wrong with it, and what happens next or what to do."""
    sentences = [str(part.get("trouble") or "")]
    if part.get("retry_in_s") is not None:
        sentences.append(f"tried again in {seconds_text(part['retry_in_s'])}, or at `workerd reload`")
    if part.get("stale"):
        sentences.append("its code changed: `workerd reload` loads it")
    return "; ".join(filter(None, sentences))


def _pool_row(name: str, pool: Document) -> list[object]:
    row = _process_row(name, pool)
    handlers = ", ".join(map(str, pool.get("handlers") or ()))
    return [*row[:-1], _workers_text(pool), pool.get("waiting"), handlers, row[-1]]


def _workers_text(pool: Document) -> str:
    """The pool's workers by state: `2 running, 1 idle`."""
    states = Counter(str(worker["state"]) for worker in pool.get("workers") or ())
    return ", ".join(f"{count} {state}" for state, count in sorted(states.items(), reverse=True))


def _print_running(pools: list[tuple[str, Document]]) -> None:
    busy = [
        (name, worker) for name, pool in pools for worker in pool.get("workers") or () if worker.get("job")
    ]
    if not busy:
        return
    print_heading(f"Running now ({plural(len(busy), 'job')}):")
    print_table(
        ["pool", "worker", "pid", "handler", "attempt", "for", "job"],
        [[name, *_running_row(worker)] for name, worker in busy],
    )


def _running_row(worker: Document) -> list[object]:
    known = [worker.get(key) for key in ("name", "pid", "handler", "attempt")]
    return [*known, seconds_text(runs_for(worker)), worker["job"]]


def runs_for(worker: Document) -> float | None:
    """Seconds since the worker's job started; both processes read this host's monotonic clock."""
    since = worker.get("since")
    return max(0.0, time.monotonic() - since) if isinstance(since, int | float) else None


def _store(store: Any) -> str | None:
    if not isinstance(store, dict):
        return None
    words = [str(store.get("state", "unknown"))]
    if words[0] == "away":
        words.append(f"for {seconds_text(store.get('since'))}: {line(store.get('error', ''))}")
    elif store.get("server"):
        words.append(f"on {line(store['server'])}")
    return " ".join(words)


def _lease(dispatcher: Document) -> str | None:
    if "lease_held" not in dispatcher:
        return None
    if not dispatcher["lease_held"]:
        return "not held: no job is claimed until the store answers"
    return f"held, {seconds_text(dispatcher.get('lease_left'))} left"


def _warnings(ingester: Document) -> list[tuple[str, str]]:
    """What waits beside the others, or for a person."""
    rows = []
    if locked := ingester.get("locked"):
        rows.append(("locked", f"{plural(locked, 'outcome')} for rows locked by other transactions"))
    if set_aside := ingester.get("set_aside"):
        rows.append(("set aside", f"{plural(set_aside, 'outcome')}: see `workerd dead-letters`"))
    return rows


def _spool(spool: Any) -> str | None:
    if not isinstance(spool, dict):
        return None
    if not spool.get("bytes"):
        return "empty"
    trouble = f", {line(spool['trouble'])}" if spool.get("trouble") else ""
    return f"{size_text(spool['bytes'])} with {plural(spool.get('rows', 0), 'outcome')}{trouble}"
