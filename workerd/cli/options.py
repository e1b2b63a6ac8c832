"""The options that many commands share."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

ConfigPath = Annotated[
    Path | None,
    typer.Option("-c", metavar="PATH", help="The configuration: a TOML file or a folder; else /etc/workerd."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
Reason = Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why; others will read it.")]
HandlerFilter = Annotated[
    str | None, typer.Option("--handler", metavar="H", help="Only jobs of this handler.")
]
StatusFilter = Annotated[
    str | None,
    typer.Option(
        "--status",
        metavar="S",
        help="Only jobs in this state: scheduled, new, inprogress, completed, failure or cancelled.",
    ),
]
SinceFilter = Annotated[
    str | None,
    typer.Option(
        "--since",
        metavar="T",
        help="Only what was made since: 2026-01-31T12:00:00Z, or 2h for two hours ago.",
    ),
]
Limit = Annotated[int | None, typer.Option("--limit", metavar="N", min=1, help="At most so many.")]
Wait = Annotated[
    str | None,
    typer.Option(
        "--wait", metavar="[D]", help="Wait for the end, at most so long (30s), and print what came out."
    ),
]

FOR_EVER = "for ever"
"""What `--wait` without a duration stands for."""

_DURATION = re.compile(r"[0-9]+(\.[0-9]*)?(ms|s|m|h|d)?")


class WaitingCommand(TyperCommand):
    """A command whose `--wait` may stand alone or be followed by a duration."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, join_wait(args))


def join_wait(args: list[str]) -> list[str]:
    """`--wait 5s` and `--wait` as the one word that the parser understands."""
    joined: list[str] = []
    words = iter(args)
    for word in words:
        if word == "--":
            return [*joined, word, *words]
        if joined and joined[-1] == "--wait":
            joined[-1] = f"--wait={FOR_EVER}"
            if _DURATION.fullmatch(word):
                joined[-1] = f"--wait={word}"
                continue
        joined.append(word)
    if joined and joined[-1] == "--wait":
        joined[-1] = f"--wait={FOR_EVER}"
    return joined
