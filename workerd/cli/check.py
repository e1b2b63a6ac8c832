"""`check`: is the configuration right, does every handler load, what is weaker here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from workerd.cli.faults import Ended
from workerd.cli.opening import configuration
from workerd.cli.options import AsJson, ConfigPath
from workerd.cli.terminal import plural, put, put_json, say, table

if TYPE_CHECKING:
    from workerd.checking.report import Report


def check(c: ConfigPath = None, json: AsJson = False) -> None:
    """Validate the configuration and load every handler.

    What would be started is shown, and what is weaker on this machine.
    """
    from workerd.checking.report import report

    made = report(configuration(c))
    if json:
        put_json(made)
    else:
        _show(made)
    if not made.loads:
        count = sum(1 for handler in made.handlers if handler.fault)
        say(
            f"{plural(count, 'handler')} of {len(made.handlers)} cannot be loaded. Correct what is listed; "
            "started as it is, these pools would be quarantined and their jobs would wait."
        )
        raise Ended(1)


def _show(made: Report) -> None:
    put(
        f"The configuration of node {made.node} is valid. "
        f"It starts {', '.join(made.roles)} and {plural(len(made.pools), 'pool')}."
    )
    if made.pools:
        put()
        table(
            ["pool", "workers", "handlers", "limits"],
            [(p.name, p.workers, ", ".join(p.handlers), p.limits) for p in made.pools],
        )
        put()
        table(
            ["handler", "call", "recurs", "loads"],
            [(h.name, h.call, h.recurs, f"NO: {h.fault}" if h.fault else "yes") for h in made.handlers],
        )
    for title, sentences in (
        ("Workflows", made.workflows),
        ("Weaker here", made.weaker),
        ("Set, without effect here", made.without_effect),
        ("Note", made.notes),
    ):
        if sentences:
            put(f"\n{title}:")
            for sentence in sentences:
                put(f"  {sentence}")
