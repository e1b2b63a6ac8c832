"""`dead-letters`: outcomes that the store refused in any form, and their way back."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

from workerd.cli.errors import CommandExit, CommandFailed
from workerd.cli.options import AsJson, ConfigPath
from workerd.cli.output import Document, notify, print_json, print_table
from workerd.cli.session import CommandSession, load_config, open_session
from workerd.errors import StoreAway, StoreRefused, UnreadableRow
from workerd.ingester.writer import close
from workerd.job import id_text
from workerd.operations.access import Tx
from workerd.runtime.dead_letters import DeadLetter, DeadLetterFile
from workerd.runtime.paths import Paths
from workerd.text import plural

Retry = Annotated[
    bool, typer.Option("--retry", help="Write them to the store again; those still refused are kept.")
]


def dead_letters(c: ConfigPath = None, json: AsJson = False, retry: Retry = False) -> None:
    """List outcomes that the store refused in any form.

    With --retry they are written again: an attempt that has meanwhile ended another way keeps that outcome.
    """
    file = DeadLetterFile(Paths(load_config(c).node).dead_letters)
    try:
        if not retry:
            _show(list(file.read()), json)
            return
        letters = file.take()
    except OSError as error:
        raise CommandFailed(
            f"{error.filename or file.path} cannot be used ({error.strerror}). Do this as the user of "
            f"workerd, or as root."
        ) from None
    with open_session(c) as session:
        recorded, left = _write(session, letters)
    if not file.done(left):
        raise CommandFailed(f"{file.path} cannot be written; what was not recorded stays in its folder.")
    if json:
        print_json({"recorded": recorded, "void": len(letters) - recorded - len(left), "left": len(left)})
    else:
        void = len(letters) - recorded - len(left)
        notify(
            f"{plural(recorded, 'outcome')} recorded, {void} without effect because the attempt had ended "
            f"already, {len(left)} still refused."
        )
    if left:
        raise CommandExit(1)


def _write(session: CommandSession, letters: list[DeadLetter]) -> tuple[int, list[DeadLetter]]:
    """How many were recorded, and those that the store still refuses."""
    recorded = 0
    left = []
    for letter in letters:
        try:
            recorded += session.run(partial(_close, letter=letter))
        except (StoreRefused, UnreadableRow, StoreAway) as error:
            left.append(DeadLetter(letter.outcome, str(error)))
    return recorded, left


def _close(tx: Tx, letter: DeadLetter) -> bool:
    """Whether the outcome took effect."""
    outcome = letter.outcome
    assert outcome.node_id is not None
    return outcome.ref in close(tx, [outcome], outcome.node_id).refs


def _show(letters: list[DeadLetter], json: bool) -> None:
    found = [_document(letter) for letter in letters]
    if json:
        print_json({"dead_letters": found})
        return
    print_table(["job", "attempt", "handler", "status", "why"], [list(letter.values()) for letter in found])
    if found:
        notify(
            "Fix what rejects the write (a trigger or constraint), then run `workerd dead-letters --retry`."
        )


def _document(letter: DeadLetter) -> Document:
    outcome = letter.outcome
    return {
        "id": id_text(outcome.id),
        "attempt": outcome.attempt,
        "handler": outcome.handler,
        "status": str(outcome.status),
        "why": letter.why,
    }
