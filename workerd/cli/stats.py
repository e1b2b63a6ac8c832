"""`stats`: how much waits and runs, how many workers there are, and how fast jobs come and end."""

from __future__ import annotations

from workerd.cli.options import AsJson, ConfigPath
from workerd.cli.output import notify, print_json, print_table
from workerd.cli.session import open_session
from workerd.operations import stats as operations
from workerd.text import seconds_text


def stats(c: ConfigPath = None, json: AsJson = False) -> None:
    """Show waiting and running jobs, workers and rates by handler.

    They cover all nodes; rates are averages over the last minute.
    """
    with open_session(c) as session:
        found = session.read(lambda tx: operations.read(tx, session.config))
    if json:
        print_json(found)
        return
    if not found["handlers"]:
        notify("No handler is known yet. `workerd run` starts a node; its handlers are known from then on.")
        return
    print_table(
        ["handler", "due", "oldest", "scheduled", "running", "workers", "in/s", "out/s"],
        [
            [
                name, one["due"], seconds_text(one["oldest_s"]) if one["due"] else "", one["scheduled"],
                one["running"], one["workers"], one["in_per_s"], one["out_per_s"],
            ]
            for name, one in found["handlers"].items()
        ],
    )  # fmt: skip
