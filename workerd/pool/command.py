"""A program as a handler: what its configuration says, resolved and checked where the handler is loaded."""

from __future__ import annotations

import os
from functools import cache, cached_property
from typing import Any

import msgspec

from workerd import host, lean_imports
from workerd.config.command_line import OPTIONAL, Argument, placeholders
from workerd.config.handler_config import CommandConfig
from workerd.errors import LoadError
from workerd.handler import Context
from workerd.signature import BadVars, Field, Fields, Param, Signature, type_of

shutil = lean_imports.deferred("shutil")

MAX_ARGUMENT_BYTES = 128 * 1024
"""What Linux allows for one argument, with the NUL at its end."""
_IN_ARGUMENT = ["or", "str", "int", "float", "bool"]


class Command:
    """The program of one handler, with its arguments and the types of its vars.

    Raises LoadError when the program or its folder is not there.
    """

    def __init__(self, config: CommandConfig) -> None:
        self.config = config
        self.program = _find(config.command[0])
        self.prefix = parent_death_prefix()
        self._arguments = [Argument(text) for text in config.command[1:]]
        if config.cwd and not os.path.isdir(config.cwd):
            raise LoadError(f"its cwd {config.cwd} is not a folder")
        signature = _signature(config)
        fields = [Field(p.name, type_of(p.code), p.required) for p in signature.params]
        self._names = placeholders(config.command)
        self._fields = Fields(fields, signature.open)
        self.signature = msgspec.json.encode(signature)

    @cached_property
    def oom_kills(self) -> host.OomKills:
        """Those of the worker's control group, which is known once a worker runs."""
        return host.OomKills()

    def bind(self, data: bytes, ctx: Context) -> tuple[list[Any], dict[str, Any]]:
        """The arguments of a run, the program's own name first; `data`: vars as JSON text. Raises BadVars."""
        self._fields.decode(data)
        values: dict[str, Any] = msgspec.json.decode(data) if self._names else {}
        return [[self.config.command[0], *(_filled(argument, values) for argument in self._arguments)]], {}


def _find(program: str) -> str:
    """The program's absolute path. Raises LoadError."""
    found: str | None = shutil.which(program)
    if found is not None:
        return found
    if os.sep not in program:
        raise LoadError(f'program "{program}" is not on PATH ({os.environ.get("PATH", "")})')
    if os.path.exists(program):
        raise LoadError(f"program {program} is not executable by this user")
    raise LoadError(f"program {program} not found")


def _signature(config: CommandConfig) -> Signature:
    if not config.signature:
        # What stands in an argument must be there, and fit into it.
        params = (Param(name, "Any", _IN_ARGUMENT, required=True) for name in placeholders(config.command))
        return Signature(tuple(params), open=True)
    return Signature(tuple(_param(name, kind) for name, kind in config.signature.items()))


def _param(name: str, kind: str) -> Param:
    required = not kind.endswith(OPTIONAL)
    kind = kind.removesuffix(OPTIONAL)
    return Param(name, kind, kind, required=required, is_str=kind == "str")


def _filled(argument: Argument, values: dict[str, Any]) -> bytes:
    """The argument with its values. Raises BadVars, which names the value at fault."""
    text = "".join(
        literal + ("" if name is None else _text_of(name, values[name])) for literal, name in argument.parts
    )
    data = text.encode()
    if len(data) >= MAX_ARGUMENT_BYTES:
        names = ", ".join(f"vars.{name}" for name in argument.names)
        raise BadVars(f"{names}: an argument of {len(data)} bytes is too long; Linux allows 128 KiB")
    return data


def _text_of(name: str, value: Any) -> str:
    """A value inside an argument: text as it is, numbers and true, false as JSON. Raises BadVars."""
    if not isinstance(value, str | int | float):
        kind = "null" if value is None else "an array" if isinstance(value, list) else "an object"
        raise BadVars(f"vars.{name}: expected text, a number, true or false for an argument, got {kind}")
    text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
    if "\0" in text:
        raise BadVars(f"vars.{name}: an argument cannot hold NUL")
    return text


@cache
def parent_death_prefix() -> tuple[str, ...]:
    """What makes the kernel kill a program when its parent, here the worker, dies: `setpriv` of util-linux.

    Empty where the host has no such tool: then a program outlives a daemon that is killed outside of a
    control group. It takes 1 ms a run; to ask for it between fork and exec takes a copy of the worker, 4 ms.
    """
    found = shutil.which("setpriv")
    true = shutil.which("true")
    if found is None or true is None:
        return ()
    prefix = (found, "--pdeathsig", "KILL", "--")
    null = (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0)
    try:
        pid = os.posix_spawn(found, [*prefix, true], os.environ, file_actions=[null])
    except OSError:
        return ()
    return prefix if os.waitpid(pid, 0)[1] == 0 else ()
