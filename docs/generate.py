"""Writes what is generated from the source: `etc/workerd.toml` and the pages below `docs/reference`.

    python -m docs.generate            # writes them
    python -m docs.generate --check    # names those that differ from what the source says, and exits with 1

`make lint` and a test fail while one differs.
"""

from __future__ import annotations

import argparse
import ast
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from docs.generators import command_line, http, llms, metrics, pictures, python, reasons, tables
from workerd.config import reference
from workerd.log_events import EVENTS

ROOT = Path(__file__).parents[1]

LEVELS = ("debug", "info", "warning", "error", "critical", "exception")
_LOGGERS = frozenset({"log", "_log"})


def logged_events() -> Iterator[tuple[str, str, list[str]]]:
    """(event, level, fields) of each call `log.LEVEL("event", field=…)` in the package."""
    for file in sorted((ROOT / "workerd").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            owner = node.func.value
            name = owner.attr if isinstance(owner, ast.Attribute) else getattr(owner, "id", "")
            if node.func.attr in LEVELS and name in _LOGGERS and node.args:
                event = node.args[0]
                if isinstance(event, ast.Constant) and isinstance(event.value, str):
                    level = "error" if node.func.attr == "exception" else node.func.attr
                    yield (
                        event.value,
                        level,
                        [key.arg or "…" for key in node.keywords if key.arg != "exc_info"],
                    )


def log_events_page() -> str:
    """The table of log events."""
    levels: dict[str, list[str]] = defaultdict(list)
    fields: dict[str, list[str]] = defaultdict(list)
    for event, level, names in logged_events():
        levels[event] += [level] if level not in levels[event] else []
        fields[event] += [name for name in names if name not in fields[event]]
    rows = (
        f"| `{event}` | {', '.join(levels[event])} | "
        f"{', '.join(f'`{name}`' if name != '…' else '…' for name in fields[event])} | {meaning} |"
        for event, meaning in sorted(EVENTS.items())
    )
    return "\n".join(
        (
            "# Log events",
            "",
            "Every line of the log is one event: a name to count and alert on, and fields. Each has",
            "`time`, `level` and `process`; a bug has `exception`, its traceback. `…` stands for the fields",
            "of what the event is about (`pool`, `worker`, `handler`, `job`, `attempt`).",
            "",
            "| event | level | fields | meaning |",
            "|---|---|---|---|",
            *rows,
            "",
        )
    )


PAGES = {
    ROOT / "etc" / "workerd.toml": reference.workerd_toml,
    ROOT / "docs" / "llms.txt": llms.page,
    ROOT / "docs" / "reference" / "configuration.md": reference.configuration_page,
    ROOT / "docs" / "reference" / "log-events.md": log_events_page,
    ROOT / "docs" / "reference" / "command-line.md": command_line.page,
    ROOT / "docs" / "reference" / "http.md": http.page,
    ROOT / "docs" / "reference" / "metrics.md": metrics.page,
    ROOT / "docs" / "reference" / "tables.md": tables.page,
    ROOT / "docs" / "reference" / "python.md": python.page,
    ROOT / "docs" / "reference" / "reasons.md": reasons.page,
    ROOT / "docs" / "images" / "states.svg": pictures.states,
    ROOT / "docs" / "images" / "process-tree.svg": pictures.process_tree,
}


def main() -> int:
    """Write the pages, or with `--check` name those that are out of date."""
    parser = argparse.ArgumentParser(prog="python -m docs.generate")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a page differs")
    check = parser.parse_args().check
    outdated = False
    for path, content in PAGES.items():
        if not check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content())
        elif not path.exists() or path.read_text() != content():
            outdated = True
            print(f"{path.relative_to(ROOT)} is out of date: `make generated` renews it", file=sys.stderr)
    return int(outdated)


if __name__ == "__main__":
    sys.exit(main())
