"""The page of the command line, from the commands as Typer knows them."""

from __future__ import annotations

from typing import Any

from workerd.cli.commands import COMMANDS, LazyCommand, build

_HEAD = """# Command line

`workerd COMMAND --help` shows the same. `-c PATH` names the configuration, a file or a folder of files, before or after
the command's words; without it `$WORKERD_CONFIG` is used, else `/etc/workerd`.

Exit status: 0 done, 1 it failed (the job failed, the daemon does not answer, the store is away), 2 wrong usage or a wrong
configuration, 130 interrupted. Data goes to standard output, everything else to standard error. With `--json` the data
are the documents of [HTTP](http.md).
"""


def page() -> str:
    """Every command with its arguments and options."""
    root = build()
    parts = [_HEAD]
    for words, _, _ in COMMANDS:
        group: Any = root
        *groups, name = words.split()
        for word in groups:
            group = group.commands[word]
        lazy = group.commands[name]
        assert isinstance(lazy, LazyCommand)
        parts.append(_command(words, lazy.load()))
    return "\n".join(parts)


def _command(words: str, command: Any) -> str:
    context = command.make_context(words, [], resilient_parsing=True)
    usage = " ".join(["workerd", words, *command.collect_usage_pieces(context)])
    lines = [f"## {words}", "", "```text", usage, "```", "", _prose(command.help or ""), ""]
    rows = [row for parameter in command.params if (row := _parameter(parameter, context))]
    if rows:
        lines += ["| argument or option | meaning |", "|---|---|", *rows, ""]
    return "\n".join(lines)


def _prose(help_: str) -> str:
    return help_.replace("\b\n", "").replace("\f", "").strip()


def _parameter(parameter: Any, context: Any) -> str | None:
    record = parameter.get_help_record(context)
    if "-c" in getattr(parameter, "opts", ()):
        return None  # told once, at the top
    if record is None:
        if parameter.param_type_name != "argument":
            return None
        record = (parameter.make_metavar(context), getattr(parameter, "help", "") or "")
    name, meaning = record
    return f"| `{_cell(name)}` | {_cell(meaning)} |"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
