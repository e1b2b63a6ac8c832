"""The configuration as a whole: read from its sources, checked, frozen."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from workerd.config import kinds, sources
from workerd.config.faults import Faults
from workerd.config.graph import workflows
from workerd.config.model import Config, Workflow
from workerd.config.pools import Found, pools
from workerd.config.schema import SECTIONS, TABLES
from workerd.config.table import Table


def load(path: Path | None = None, environ: Mapping[str, str] | None = None) -> Config:
    """The configuration from a file or folder (default /etc/workerd) and `WORKERD_A__B` variables.

    Raises ConfigError with all faults at once; none of them shows a secret.
    """
    faults = Faults()
    return build(sources.read(path, os.environ if environ is None else environ, faults), faults)


def build(tree: sources.Tree, faults: Faults) -> Config:
    """The frozen configuration from merged values; raises ConfigError with all faults at once."""
    root = Table(tree.values, (), tree, faults)
    for name in root.values:
        if name not in TABLES:
            root.unknown(name, dict.fromkeys(TABLES))
    sections = {name: _section(root.table(name), name) for name in SECTIONS}
    found = pools(root)
    flows = workflows(root, found.handlers)
    _check_names(root, found, flows)
    _check_gateway(root, sections["gateway"])
    faults.raise_if_any()
    return Config(pools=found.pools, workflows=flows, notes=tuple(found.notes), **sections)


def _section(table: Table, name: str) -> Any:
    """One section, with the built-in value for every key that is not given or wrong."""
    made, keys = SECTIONS[name]
    given = table.read(keys)
    if name == "node" and not given.get("name"):
        given["name"] = socket.gethostname()[: kinds.NAME_LIMIT] or "localhost"
    return made(**given)


def _check_names(root: Table, found: Found, flows: dict[str, Workflow]) -> None:
    """A schedule is kept under its owner's name, and the row of a workflow's run is no job of a handler."""
    for name, flow in flows.items():
        if name in found.handlers and flow.schedule.recurs:
            root.fault("expected another name, as it recurs: a handler has this one too", "workflows", name)


def _check_gateway(root: Table, gateway: Any) -> None:
    if not kinds.is_local(gateway.listen) and not gateway.token_file:
        root.fault(
            "expected gateway.token_file to be set, as others can reach this address; "
            'set it, or listen on "127.0.0.1:8020" or "unix:/path"',
            "gateway",
            "listen",
        )
