"""The list of all pages for programs that read: docs/llms.txt."""

from __future__ import annotations

from pathlib import Path

DOCS = Path(__file__).parents[1]
SECTIONS = {
    "Learn": ("tutorial/*.md",),
    "Decide and operate": ("when-to-use.md", "ready-for-production.md", "troubleshooting.md"),
    "How to": ("how-to/*.md",),
    "Understand": ("explanation/*.md",),
    "Come from elsewhere": ("migrate/*.md",),
    "Look up": ("reference/*.md",),
}
_HEAD = """# workerd

> Background jobs for teams who already run MySQL or MariaDB: a job is a row, handlers are Python functions or any program,
> each attempt runs in a process of its own pool under a deadline that is kept by force.

To find out why a job waits or failed, run `workerd why ID`; for all that fails, `workerd errors`; for the daemon,
`workerd status`. Each takes `--json`.
"""


def page() -> str:
    """Each page with its title, by section."""
    parts = [_HEAD]
    for section, patterns in SECTIONS.items():
        files = [file for pattern in patterns for file in sorted(DOCS.glob(pattern))]
        links = [f"- [{_title(file)}]({file.relative_to(DOCS)})" for file in files]
        parts.append("\n".join((f"## {section}", *links, "")))
    return "\n".join(parts)


def _title(file: Path) -> str:
    return file.read_text().partition("\n")[0].removeprefix("# ")
