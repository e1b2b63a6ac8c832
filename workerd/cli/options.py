"""Options and arguments that commands share, and how their text becomes a value."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Iterable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
import typer
from typer.core import TyperCommand

from workerd import fingerprint as fingerprints
from workerd import outcome
from workerd.cli.errors import UsageError
from workerd.clock import SECOND, from_rfc3339, now_us
from workerd.config.quantities import duration
from workerd.job import Status, parse_id
from workerd.job_spec import OPTIONS
from workerd.text import line
from workerd.workflow import RequestStatus

Choice = TypeVar("Choice", bound=StrEnum)


def parse_key_values(words: Iterable[str]) -> dict[str, str]:
    """`key=value` words as texts by key. Raises UsageError."""
    values: dict[str, str] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or not key:
            raise UsageError(f'Expected key=value, got "{line(word)}". Write the argument\'s name before it.')
        if key in values:
            raise UsageError(f'"{line(key)}" is given twice. Give each argument once.')
        values[key] = text
    return values


# Parsers of options raise BadParameter: Typer adds the option's name, the usage, and exit status 2.


def parse_json(text: str) -> Any:
    """Any JSON value."""
    try:
        return msgspec.json.decode(text.encode())
    except UnicodeEncodeError:
        # Arguments of a process need not be UTF-8; Python keeps such bytes as lone surrogates.
        raise typer.BadParameter(f'expected UTF-8, got "{line(text)}"') from None
    except msgspec.DecodeError as error:
        raise typer.BadParameter(f"expected JSON, got something else: {line(error)}") from None
    except RecursionError:
        raise typer.BadParameter("expected JSON, got deeper nesting than can be read") from None


def parse_json_object(text: str) -> dict[str, Any]:
    """A JSON object."""
    value = parse_json(text)
    if not isinstance(value, dict):
        raise typer.BadParameter("expected a JSON object, such as '{\"key\": 1}'")
    return value


def parse_duration(text: str) -> float:
    """A duration in seconds."""
    try:
        return duration(text)
    except ValueError as error:
        raise typer.BadParameter(line(error)) from None


def parse_wait(text: str) -> float:
    """Seconds of `--wait`."""
    return parse_duration(DEFAULT_WAIT if text == DEFAULT else text)


def parse_since(text: str) -> int:
    """A time, or a duration before now, as store time."""
    try:
        # By this host's clock; a filter tolerates its difference from the store's.
        return now_us() - round(duration(text) * SECOND)
    except ValueError:
        pass
    try:
        return from_rfc3339(text)
    except ValueError as error:
        raise typer.BadParameter(f"{line(error)}; or give a duration before now, such as 2h") from None


def parse_status(text: str) -> Status:
    """The status of a job."""
    return _parse_choice(Status, text)


def parse_request_status(text: str) -> RequestStatus:
    """The status of a request."""
    return _parse_choice(RequestStatus, text)


def _parse_choice(choices: type[Choice], text: str) -> Choice:
    try:
        return choices(text)
    except ValueError:
        raise typer.BadParameter(f'expected one of {", ".join(choices)}, got "{line(text)}"') from None


def parse_identity(text: str) -> bytes:
    """The id of a job or request."""
    try:
        return parse_id(text)
    except ValueError as error:
        raise typer.BadParameter(f"{line(error)}; `workerd job list` and `request list` show ids") from None


def parse_reason(text: str) -> outcome.Reason:
    """How an attempt ended."""
    try:
        return outcome.Reason(text)
    except ValueError:
        raise typer.BadParameter(f"expected one of {', '.join(outcome.Reason)}, got {text!r:.60}") from None


def parse_fingerprint(text: str) -> bytes:
    """A fingerprint in hex."""
    try:
        return fingerprints.parse(text)
    except ValueError as error:
        raise typer.BadParameter(f"{line(error)}; `workerd errors` shows them") from None


def parse_meta(text: str) -> tuple[str, str]:
    """A key of meta and the text it must have."""
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise typer.BadParameter(f"expected KEY=VALUE with a key, got {text!r:.60}")
    return key, value


_ANNOTATED: Any = Annotated
_TYPES_AND_PARSERS: dict[str, tuple[Any, Callable[[str], Any] | None]] = {
    "duration": (float | None, parse_duration),
    "time": (str | None, None),
    "duration or time": (str | None, None),
    "priority": (int, None),
    "count": (int | None, None),
    "key": (str | None, None),
    "name": (str | None, None),
    "conflict": (str | None, None),
    "json": (Any, parse_json),
}


def with_job_options(command: Callable[..., None]) -> Callable[..., None]:
    """The command with all options of enqueue, which it takes as keywords, before its `--wait`."""

    @functools.wraps(command)
    def with_options(*args: Any, **kwargs: Any) -> None:
        command(*args, **kwargs)

    given = inspect.signature(command, eval_str=True).parameters.values()
    own = [p for p in given if p.kind is not inspect.Parameter.VAR_KEYWORD]
    split = next(n for n, p in enumerate(own) if p.name == "wait")
    parameters = [*own[:split], *map(_job_option, OPTIONS), *own[split:]]
    with_options.__dict__["__signature__"] = inspect.Signature(parameters)
    with_options.__annotations__ = {p.name: p.annotation for p in parameters}
    return with_options


def _job_option(name: str) -> inspect.Parameter:
    option = OPTIONS[name]
    kind, parser = _TYPES_AND_PARSERS[option.kind]
    flag = option.flag or f"--{name.replace('_', '-')}"
    shown = typer.Option(flag, metavar=option.metavar, help=option.help, parser=parser)
    default = 0 if option.kind == "priority" else None
    annotation = _ANNOTATED[kind, shown]
    return inspect.Parameter(
        name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=default, annotation=annotation
    )


ConfigPath = Annotated[
    Path | None,
    typer.Option(
        "-c",
        metavar="PATH",
        help="Configuration: a TOML file or a folder of them.",
        show_default="$WORKERD_CONFIG, else /etc/workerd",
    ),
]
HandlerName = Annotated[str, typer.Argument(metavar="HANDLER", help="Name of the handler.")]
PoolName = Annotated[str, typer.Argument(metavar="[POOL]", help="Restart only this pool.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
Reason = Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why, for others to read.")]
JobId = Annotated[bytes, typer.Argument(metavar="ID", help="Id of the job.", parser=parse_identity)]
HandlerFilter = Annotated[
    str | None, typer.Option("--handler", metavar="H", help="Only jobs of this handler.")
]
SinceFilter = Annotated[
    int | None,
    typer.Option(
        "--since",
        metavar="T",
        parser=parse_since,
        help="Only what was created since this time: 2026-01-31T12:00:00Z, or 2h for two hours ago.",
    ),
]
Limit = Annotated[int | None, typer.Option("--limit", metavar="N", min=1, help="At most this many.")]
Wait = Annotated[
    float | None,
    typer.Option(
        "--wait",
        metavar="[D]",
        parser=parse_wait,
        help="Wait for the end, at most D (without D: 30s), and print the result.",
    ),
]

Reveal = Annotated[bool, typer.Option("--reveal", help="Show redacted values; recorded in the audit.")]

DEFAULT_WAIT = "30s"
"""Of a `--wait` without a duration."""
DEFAULT = "default"
"""What stands for the duration after a `--wait` without one."""

_DURATION = re.compile(r"[0-9]+(\.[0-9]*)?(ms|s|m|h|d)?")


class Command(TyperCommand):
    """A command in which `--wait` may stand alone or be followed by a duration."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments into the context. Raises UsageError for one that is not UTF-8."""
        rest: list[str] = super().parse_args(ctx, join_wait(args))
        paths = {each.name for each in self.params if each.type.name == "path"}
        for name in ctx.params.keys() - paths:  # a file may have any name
            _check_utf8(ctx.params[name])
        return rest


def _check_utf8(value: object) -> None:
    """Refuse bytes that are not UTF-8 (lone surrogates in Python), as the store does."""
    if isinstance(value, list | tuple):
        for each in value:
            _check_utf8(each)
    elif isinstance(value, str) and not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise UsageError(f'Expected UTF-8, got "{line(value)}".') from None


def join_wait(args: list[str]) -> list[str]:
    """The arguments with `--wait 5s` and `--wait` as the one word that the parser understands."""
    joined: list[str] = []
    words = iter(args)
    for word in words:
        if word == "--":
            return [*joined, word, *words]
        if word != "--wait" and joined and joined[-1] == f"--wait={DEFAULT}" and _DURATION.fullmatch(word):
            joined[-1] = f"--wait={word}"
        else:
            joined.append(f"--wait={DEFAULT}" if word == "--wait" else word)
    return joined
