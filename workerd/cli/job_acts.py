"""`job cancel` and `job retry`: by id, or all jobs that filters match."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated, NamedTuple

import typer

from workerd.cli.errors import INTERRUPTED, CommandExit, UsageError
from workerd.cli.filters import with_filters
from workerd.cli.jobs import DEFAULT_LIMIT, look_up
from workerd.cli.options import AsJson, ConfigPath, Limit, Yes, parse_identity, parse_key_values
from workerd.cli.output import ProgressLine, confirm, notify, print_json, print_text
from workerd.cli.session import CommandSession, open_session
from workerd.cli.views import print_job_table
from workerd.errors import Conflict, NotFound, StoreError
from workerd.job import id_text
from workerd.job_filter import JobFilter
from workerd.operations import bulk, jobs
from workerd.operations.access import Tx
from workerd.operations.bulk import Act, Search
from workerd.operations.edit import values_of
from workerd.operations.requests import reopening_note
from workerd.text import plural

DryRun = Annotated[bool, typer.Option("--dry-run", help="Only show which jobs match.")]
Fresh = Annotated[bool, typer.Option("--fresh", help="Without what earlier attempts have saved.")]
RetryWords = Annotated[
    list[str] | None,
    typer.Argument(metavar="ID ... [KEY=VALUE ...]", help="Ids of jobs, and other arguments for one."),
]
JobIds = Annotated[
    list[bytes] | None, typer.Argument(metavar="ID ...", help="Ids of jobs.", parser=parse_identity)
]
DONE = {Act.CANCEL: "cancelled", Act.RETRY: "retried"}


class Answer(NamedTuple):
    """How the command was told to behave."""

    yes: bool
    dry_run: bool
    json: bool


@with_filters
def cancel(
    wanted: JobFilter,
    ids: JobIds = None,
    limit: Limit = None,
    yes: Yes = False,
    dry_run: DryRun = False,
    c: ConfigPath = None,
    json: AsJson = False,
) -> None:
    """Cancel jobs by id, or live jobs by filters.

    The filters are those of `job list`. How many jobs match is shown and confirmed before any is cancelled;
    a running one is asked to stop.
    """

    def cancel_one(session: CommandSession, key: bytes) -> str:
        result = session.run(lambda tx: jobs.cancel(tx, session.actor, key))
        return "cancelled" if result == "ended" else "asked to stop"

    answer = Answer(yes, dry_run, json)
    if _by_id(ids or [], wanted, limit):
        _each(cancel_one, ids or [], c, answer)
    else:
        _all(Act.CANCEL, wanted, limit, c, answer)


@with_filters
def retry(
    wanted: JobFilter,
    words: RetryWords = None,
    limit: Limit = None,
    yes: Yes = False,
    dry_run: DryRun = False,
    fresh: Fresh = False,
    c: ConfigPath = None,
    json: AsJson = False,
) -> None:
    """Run ended jobs again, by id or by filters.

    One job may be given other arguments: `job retry ID key=value`, null removes one. The filters are those
    of `job list`; without --status they match failed jobs. How many jobs match is shown and confirmed before
    any is retried.
    """
    ids = [parse_identity(word) for word in words or [] if "=" not in word]
    texts = parse_key_values(word for word in words or [] if "=" in word)
    if texts and len(ids) != 1:
        raise UsageError("Name the one job that gets these arguments: job retry ID key=value.")

    def retry_one(session: CommandSession, key: bytes) -> str:
        if note := session.read(lambda tx: reopening_note(tx, key)):
            notify(note)

        def work(tx: Tx) -> int:
            values = values_of(tx, key, texts) if texts else None
            return jobs.retry(tx, session.actor, key, fresh=fresh, config=session.config, vars_=values)

        return f"attempt {session.run(work)}"

    answer = Answer(yes, dry_run, json)
    if _by_id(ids, wanted, limit):
        _each(retry_one, ids, c, answer)
    else:
        _all(Act.RETRY, wanted, limit, c, answer, fresh=fresh)


def _by_id(ids: Sequence[bytes], wanted: JobFilter, limit: int | None) -> bool:
    """Whether the jobs are named. Raises UsageError unless there are either ids or filters."""
    if ids and (not wanted.is_empty or limit):
        raise UsageError("Give ids or filters, not both.")
    if not ids and wanted.is_empty:
        raise UsageError("Name the jobs: by id, or with a filter such as --handler, --status or --error.")
    return bool(ids)


# -- by id


def _each(
    act: Callable[[CommandSession, bytes], str], ids: Sequence[bytes], path: Path | None, answer: Answer
) -> None:
    """Change each job in a transaction of its own, and print each result."""
    with open_session(path) as session:
        if answer.dry_run:
            _show(session, ids, len(ids), answer)
            return
        results: list[dict[str, str]] = []
        failed = 0
        for key in ids:
            try:
                result = act(session, key)
            except (NotFound, Conflict) as error:
                failed += 1
                result = str(error)
            results.append({"id": id_text(key), "result": result})
            if not answer.json:
                print_text(f"{results[-1]['id']}  {result}")
    if answer.json:
        print_json({"matched": len(ids), "done": len(ids) - failed, "jobs": results})
    if failed:
        raise CommandExit(1)


# -- by filters


def _all(
    act: Act, wanted: JobFilter, limit: int | None, path: Path | None, answer: Answer, *, fresh: bool = False
) -> None:
    """Find what matches, ask, and change it in slices; Ctrl-C ends it between two of them."""
    with open_session(path) as session:
        search = Search(act, wanted, limit=limit, rules=session.rules)
        with ProgressLine() as line:
            while not search.is_over:
                search.add(session.read(search.look))
                line.show(f"{search.matched:,} match so far")
        if answer.dry_run:
            _show(session, [ref.id for ref in search.found], search.matched, answer)
            return
        _confirm(session, search, answer)
        _change(session, search, answer, fresh)


def _change(session: CommandSession, search: Search, answer: Answer, fresh: bool) -> None:
    done, interrupted = 0, False
    of = f"of {len(search.found):,}"
    try:
        with _between_slices() as stopping, ProgressLine() as line:
            for done in bulk.change_all(session.run, session.actor, search, fresh=fresh):
                line.show(f"{done:,} {of} {DONE[search.act]}")
                interrupted = stopping()
                if interrupted:
                    break
    except (StoreError, KeyboardInterrupt):
        notify(f"{done:,} {of} were {DONE[search.act]} before this; the others are unchanged.")
        raise
    if answer.json:
        print_json({"matched": search.matched, "done": done})
    if interrupted:
        notify(f"Interrupted: {done:,} {of} were {DONE[search.act]}. Repeat the command for the rest.")
        raise CommandExit(INTERRUPTED)
    if search.found:
        rest = "" if done == len(search.found) else "; the others ended or changed meanwhile"
        notify(f"{done:,} {of} were {DONE[search.act]}{rest}.")


@contextmanager
def _between_slices() -> Iterator[Callable[[], bool]]:
    """Keep the first Ctrl-C until the slice is done; what is given says whether there was one."""
    pressed = False

    def press(signum: int, frame: FrameType | None) -> None:
        nonlocal pressed
        if pressed:
            raise KeyboardInterrupt
        pressed = True

    before = signal.signal(signal.SIGINT, press)
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, before)


def _matches_text(matched: int, chosen: int) -> str:
    """`3 jobs match`, with what --limit makes of it."""
    text = f"{plural(matched, 'job')} {'matches' if matched == 1 else 'match'}"
    return text if chosen == matched else f"{text}, of which --limit leaves {chosen:,}"


def _confirm(session: CommandSession, search: Search, answer: Answer) -> None:
    """Ask whether to continue. Raises CommandExit for a no, UsageError without a terminal."""
    chosen = len(search.found)
    text = _matches_text(search.matched, chosen)
    if not answer.yes and not sys.stdin.isatty():
        raise UsageError(
            f"{text}; nothing was done. Without a terminal to ask, expected --yes (or --dry-run to only show "
            f"them)."
        )
    if not search.matched:
        notify("No job matches the filters. `workerd job list` lists existing jobs.")
        return
    if note := session.read(search.reopening_note):
        notify(note)
    if answer.yes:
        notify(f"{text}.")
    elif not confirm(f"{text}. {search.act.capitalize()} {'it' if chosen == 1 else 'them'}?"):
        notify("Nothing was done.")
        raise CommandExit(1)


def _show(session: CommandSession, found: Sequence[bytes], matched: int, answer: Answer) -> None:
    """What --dry-run shows."""
    if answer.json:
        print_json({"matched": matched, "done": 0})
        return
    print_job_table([look_up(session, key, False) for key in found[:DEFAULT_LIMIT]])
    more = f" The first {DEFAULT_LIMIT} are shown." if len(found) > DEFAULT_LIMIT else ""
    notify(f"{_matches_text(matched, len(found))}; nothing was done.{more}")
