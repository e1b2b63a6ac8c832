"""Options and values that many commands share."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from typer.core import TyperCommand

from workerd.cli.errors import UsageError
from workerd.clock import from_rfc3339
from workerd.config.validators import duration
from workerd.job import Status, parse_id
from workerd.text import line


def key_values(words: Iterable[str]) -> dict[str, str]:
    """`key=value` words as texts by key. Raises UsageFault."""
    values: dict[str, str] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or not key:
            raise UsageError(f'Expected key=value, got "{line(word)}": write the argument\'s name before it.')
        if key in values:
            raise UsageError(f'"{line(key)}" is given twice: give every argument once.')
        values[key] = text
    return values


def loose(text: str) -> Any:
    """JSON where it parses as JSON, else the text itself."""
    try:
        return msgspec.json.decode(_utf8(text))
    except (msgspec.DecodeError, RecursionError):
        return text


def json_object(text: str, option: str) -> dict[str, Any]:
    """A JSON object given with `option`. Raises UsageFault."""
    try:
        value = msgspec.json.decode(_utf8(text))
    except msgspec.DecodeError as error:
        raise UsageError(f"Expected a JSON object after {option}, got broken JSON: {error}.") from None
    except RecursionError:
        raise UsageError(f"Expected a JSON object after {option}, got nesting without end.") from None
    if not isinstance(value, dict):
        raise UsageError(f"Expected a JSON object after {option}, such as '{{\"key\": 1}}'.")
    return value


def json_value(text: str, option: str) -> Any:
    """Any JSON value given with `option`. Raises UsageFault."""
    try:
        return msgspec.json.decode(_utf8(text))
    except (msgspec.DecodeError, RecursionError) as error:
        raise UsageError(f"Expected JSON after {option}, got something else: {error}.") from None


def _utf8(text: str) -> bytes:
    # What the shell hands over need not be UTF-8; Python keeps such bytes as lone surrogates.
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise UsageError(f'Expected UTF-8, got "{line(text)}": set the terminal to UTF-8.') from None


def seconds(text: str | None, option: str) -> float | None:
    """A duration given with `option`, in seconds; None stays None. Raises UsageFault."""
    if text is None:
        return None
    try:
        return duration(text)
    except ValueError as error:
        raise UsageError(f"{option}: {error}.") from None


def patience(text: str | None) -> float | None:
    """Seconds of `--wait D`; None without a limit. Raises UsageFault."""
    return None if text == FOR_EVER else seconds(text, "--wait")


def moment(text: str | None, option: str) -> int | None:
    """A time given with `option`, as store time; None stays None. Raises UsageFault."""
    if text is None:
        return None
    try:
        return from_rfc3339(text)
    except ValueError as error:
        raise UsageError(f"{option}: {error}.") from None


def since(text: str | None, now: int) -> int | None:
    """A time, or a duration before `now`, as store time. Raises UsageFault."""
    if text is None:
        return None
    try:
        return now - round(duration(text) * 1_000_000)
    except ValueError:
        return moment(text, "--since")


def status(text: str | None) -> Status | None:
    """A job's state. Raises UsageFault."""
    if text is None:
        return None
    try:
        return Status(text)
    except ValueError:
        known = ", ".join(s.value for s in Status)
        raise UsageError(f'--status: expected one of {known}, got "{line(text)}".') from None


def identity(text: str) -> bytes:
    """An id. Raises UsageFault."""
    try:
        return parse_id(text)
    except ValueError as error:
        raise UsageError(f"{error}. The lists (`workerd job list`) show ids.".replace("..", ".")) from None


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
