"""`job run`: an attempt of a job once more, in a child of this terminal."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Annotated, Any

import msgspec
import typer

from workerd import documents, replay
from workerd.cli.errors import CommandExit, CommandFailed, UsageError
from workerd.cli.options import AsJson, ConfigPath, JobId, Reveal, Yes, parse_key_values
from workerd.cli.output import confirm, notify, print_fields, print_json, print_text
from workerd.cli.session import open_session
from workerd.config.model import Config
from workerd.config.quantities import duration_literal
from workerd.job import Claim, Status, id_text
from workerd.operations import replays
from workerd.operations.access import Tx
from workerd.operations.rules import Rules
from workerd.outcome import Outcome
from workerd.redaction import Redaction
from workerd.text import exit_text, harmless, plural

Attempt = Annotated[
    int | None, typer.Option("--attempt", metavar="N", min=1, help="This attempt; else the newest.")
]
Pdb = Annotated[bool, typer.Option("--pdb", help="Stop in the debugger where the run raises an exception.")]
Limits = Annotated[bool, typer.Option("--limits", help="With its deadlines and memory_max; else without.")]
Changes = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE ...]", help="Arguments that differ; null removes one."),
]


def run(
    job_id: JobId,
    key_values: Changes = None,
    attempt: Attempt = None,
    pdb: Pdb = False,
    limits: Limits = False,
    yes: Yes = False,
    reveal: Reveal = False,
    c: ConfigPath = None,
    json: AsJson = False,
) -> None:
    """Run a job's attempt here, without the daemon and the store.

    Its effects are real; nothing about the run is stored. Exit status 0 when it succeeded, else 1.
    """
    texts = parse_key_values(key_values or [])
    if not yes and not sys.stdin.isatty():
        raise UsageError(
            "The effects of a run are real. Without a terminal to ask, expected --yes; nothing was run."
        )
    if pdb and not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UsageError("--pdb needs a terminal, for input and output; nothing was run.")
    with open_session(c) as session:
        config = session.config

        def prepare(tx: Tx, rules: Rules) -> tuple[Claim, Redaction]:
            claim = replays.prepare(tx, config, job_id, attempt, texts)
            return claim, rules.of(tx, claim.handler)

        claim, redaction = session.look_up(prepare, id_text(job_id), reveal=reveal)
    handler = config.handlers[claim.handler]
    if pdb and not handler.call:
        raise UsageError(f'Handler "{handler.name}" is not a Python function: --pdb has nothing to stop at.')
    if pdb and redaction:
        raise UsageError(
            "A debugger shows every value, and this handler has redacted ones: add --reveal, which the audit "
            "records."
        )
    _ask(claim, yes=yes)
    options = replay.Options(redaction, debug=pdb, limits=limits, reveal=reveal)
    replayed = _run(config, claim, options)
    outcome = replayed.outcome
    if json:
        print_json(documents.replayed(outcome, replayed.redaction))
    else:
        _print(outcome, replayed.redaction)
    if outcome.status is not Status.COMPLETED:
        raise CommandExit(1)


def _ask(claim: Claim, *, yes: bool) -> None:
    """Say what will happen, and ask for confirmation. Raises CommandExit for a no."""
    # Names alone: what the code marks as secret is known when it is loaded.
    names = ", ".join(_names(claim.vars)) or "none"
    notify(
        f'Attempt {claim.attempt} of job {id_text(claim.id)}, handler "{claim.handler}", vars: {names}. It '
        "runs here; its effects are real (payments, messages, files), and nothing about it is stored."
    )
    if not yes and not confirm("Run it?"):
        notify("Nothing was run.")
        raise CommandExit(1)


def _names(vars_: bytes) -> list[str]:
    try:
        return list(msgspec.json.decode(vars_, type=dict[str, Any]))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return []  # the run says what is wrong with them


def _run(config: Config, claim: Claim, options: replay.Options) -> replay.Replayed:
    try:
        with _signals(options.debug):
            return replay.run(config, claim, options, _write)
    except replay.CannotRun as error:
        raise CommandFailed(f'Handler "{claim.handler}" cannot be run here: {error}') from None


@contextmanager
def _signals(debug: bool) -> Iterator[None]:
    """Unwind, and so end the run, when this process is asked to end; in the debugger Ctrl-C is the run's."""

    def end(signum: int, frame: FrameType | None) -> None:
        raise CommandExit(128 + signum)

    wanted: dict[int, Any] = {signal.SIGTERM: end, signal.SIGHUP: end}
    if debug:
        wanted[signal.SIGINT] = signal.SIG_IGN
    before = {signum: signal.signal(signum, action) for signum, action in wanted.items()}
    try:
        yield
    finally:
        for signum, action in before.items():
            signal.signal(signum, action)


def _write(data: bytes) -> None:
    sys.stderr.write(harmless(data.decode("utf-8", "replace")))
    sys.stderr.flush()


def _print(outcome: Outcome, redaction: Redaction) -> None:
    usage = outcome.usage
    status = outcome.exit_code if outcome.exit_signal is None else -outcome.exit_signal
    print_fields(
        [
            ("outcome", f"{outcome.status}, {outcome.reason}"),
            ("error", outcome.error),
            ("exit", None if status is None else exit_text(status)),
            ("retry", _retry_text(outcome)),
            ("payload", _payload_text(outcome, redaction)),
            ("extras", _json_text(outcome.extras, redaction)),
            ("spawn", outcome.spawn and plural(len(msgspec.json.decode(outcome.spawn)), "job")),
            ("note", outcome.note),
            ("time", _seconds(usage.run_us)),
            ("cpu", _seconds(usage.cpu_us)),
            ("memory", None if usage.max_rss_kib is None else f"{usage.max_rss_kib / 1024:.1f} MiB"),
        ]
    )
    if outcome.stack:
        print_text(f"\n{outcome.stack.rstrip()}")


def _retry_text(outcome: Outcome) -> str | None:
    if outcome.next is None:
        return None
    return f"the daemon would run it again after {duration_literal(round(outcome.next.delay_us / 1e6, 3))}"


def _payload_text(outcome: Outcome, redaction: Redaction) -> str | None:
    if outcome.payload is None or outcome.payload_type == "json":
        return _json_text(outcome.payload, redaction)
    return plural(len(outcome.payload), "byte")


def _json_text(data: bytes | None, redaction: Redaction) -> str | None:
    if data is None:
        return None
    shown = redaction.shown_json(data)
    try:
        return msgspec.json.format(shown, indent=-1).decode("utf-8", "replace")
    except msgspec.DecodeError:
        return shown.decode("utf-8", "replace")


def _seconds(us: int | None) -> str | None:
    return None if us is None else f"{us / 1e6:.3f} s"
