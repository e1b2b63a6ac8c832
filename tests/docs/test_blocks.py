"""Blocks of code that do not run with their page (test_pages.py): they parse, and name only what there is."""

from __future__ import annotations

import ast
import itertools
import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from tests.docs.blocks import Block, blocks, pages
from workerd.cli.commands import LazyCommand, build
from workerd.config.build import load
from workerd.errors import ConfigError

BLOCKS = [block for page in pages() for block in blocks(page) if not block.language.startswith("{")]
LANGUAGES = {
    "bash", "console", "dockerfile", "ini", "json", "mermaid", "nginx", "output", "php", "promql",
    "python", "sh", "sql", "text", "toml", "yaml",
}  # fmt: skip
ELSEWHERE = ("no such handler", "that is configured")
"""In errors about what may stand in another block."""
COMMANDS = {"sudo", "exec", "time", "env"}
"""Words in front of a command."""
ENDS = {"|", "&&", ";", ">", "<", "||"}


def of(*languages: str) -> list[Any]:
    """Those of these languages that do not run."""
    found = [block for block in BLOCKS if block.language in languages and not (block.runnable and block.runs)]
    return [pytest.param(block, id=block.name) for block in found]


def test_every_block_says_what_it_is() -> None:
    """A language that is known."""
    for block in BLOCKS:
        assert block.language in LANGUAGES, block.name


@pytest.mark.parametrize("block", of("toml"))
def test_a_configuration_is_valid(block: Block, tmp_path: Path) -> None:
    """Each key is known, and its value is of the right kind; what it refers to may stand in another block."""
    file = tmp_path / "workerd.toml"
    file.write_text(block.text)
    assert [error for error in errors_of(file) if not any(words in error for words in ELSEWHERE)] == []


def errors_of(file: Path) -> list[str]:
    try:
        load(file, {})
    except ConfigError as error:
        return error.errors
    return []


@pytest.mark.parametrize("block", of("json"))
def test_json_is_json(block: Block) -> None:
    """`…` stands for what is left out."""
    json.loads(block.text.replace(", …", ""))


@pytest.mark.parametrize("block", of("python"))
def test_python_compiles(block: Block) -> None:
    """`…` stands for what the reader has."""
    flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    compile(block.text.replace("…", "..."), block.name, "exec", flags, dont_inherit=True)


def _is_argument(word: str) -> bool:
    return word not in ENDS and not word.startswith("$(")


def commands(text: str) -> list[list[str]]:
    """The words of each `workerd …` in a shell script, outside of files that it writes."""
    found = []
    for line in text.replace("\\\n", " ").splitlines():
        try:
            words = shlex.split(line, comments=True)
        except ValueError:
            continue  # a quoted text over several lines
        while words and (words[0] in COMMANDS or "=" in words[0]):
            words = words[1:]
        if words and words[0] == "workerd":
            found.append(
                list(itertools.takewhile(lambda word: word not in ENDS and word[:2] != "$(", words[1:]))
            )
    return found


@pytest.mark.parametrize("block", [b for b in of("sh", "bash", "console") if commands(b.values[0].text)])
def test_a_command_has_these_options(block: Block) -> None:
    """Each option of each command is one that the command has."""
    for words in commands(block.text):
        check_command(words)


def check_command(words: list[str]) -> None:
    command: Any = build()
    while words and hasattr(command, "commands") and words[0] in command.commands:
        command = command.commands[words[0]]
        words = words[1:]
        if isinstance(command, LazyCommand):
            command = command.load()
    if hasattr(command, "commands"):
        return  # the overview, or a group's own default
    known = {name for option in command.params for name in (*option.opts, *option.secondary_opts)}
    given = {word.partition("=")[0] for word in words if word.startswith("-") and not word[1:].isdigit()}
    assert given <= known | {"--help", "-"}, (command.name, given - known)
