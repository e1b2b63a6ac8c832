"""The pages of schedules: all, one with its last ticks, and the form that sets one."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

import msgspec

from workerd.config.quantities import seconds_literal
from workerd.errors import InvalidValue
from workerd.gateway.dashboard.components import (
    DASH,
    Child,
    Markup,
    badge,
    button,
    card,
    el,
    error_text,
    facts,
    join,
    json_text,
    microseconds,
    moment,
    path,
    select,
    table,
    when,
)
from workerd.gateway.dashboard.pages import PageQuery, View
from workerd.operations import schedules as operations
from workerd.operations.access import Tx

Document = dict[str, Any]

NEXT_TIMES = 5
FIELDS = (
    "name", "handler", "workflow", "cron", "cooler", "timezone", "vars", "params", "misfire", "overlap",
    "jitter", "priority", "group",
)  # fmt: skip
_SECTION = "/ui/schedules"
_FORM = "/ui/new-schedule"


async def schedules(query: PageQuery) -> View:
    """All schedules."""
    config = query.gateway.config
    listed = await query.gateway.backend.read(lambda tx: operations.list_(tx, config))
    headers = ("Name", "When", "State", "Next run", "Last run", "")
    listing = table(
        "Schedules",
        headers,
        [_row(schedule, query.may_act) for schedule in listed],
        "No schedules. Give a handler or a workflow a `cron` or a `cooler`, or set one here.",
    )
    head = join(
        el("h1", "Schedules"), el("p", el("a", "New schedule", href=_FORM)) if query.may_act else None
    )
    return View("Schedules", _SECTION, head, {"list": listing})


def _row(schedule: Document, may_act: bool) -> tuple[Child, ...]:
    name = schedule["name"]
    return (
        join(el("a", name, href=path("ui", "schedules", name)), el("span", _target(schedule), class_="sub")),
        el("span", _when(schedule), class_="id"),
        _state(schedule),
        moment(schedule["next_at"]),
        _last_run(schedule),
        _buttons(schedule) if may_act else DASH,
    )


def _target(schedule: Document) -> str:
    kind = "workflow" if schedule["workflow"] else "handler"
    target = schedule[kind]
    return kind if target == schedule["name"] else f"{kind} {target}"


def _when(schedule: Document) -> str:
    expression = schedule["expression"]
    if schedule["kind"] == "cron":
        return f"{expression} ({schedule['timezone']})"
    return f"{expression} after the end of the last run"


def _state(schedule: Document) -> Child:
    if schedule["paused_at"] is not None:
        return join(badge("paused"), " ", el("span", f"by {schedule['paused_by']}", class_="sub"))
    return badge("active") if schedule["enabled"] else badge("disabled")


def _last_run(schedule: Document) -> Child:
    if not schedule["last_job"]:
        return DASH
    link = _run_path(schedule, schedule["last_job"])
    return join(el("a", schedule["last_status"] or "show", href=link), " ", moment(schedule["last_end"]))


def _run_path(schedule: Document, run_id: str) -> str:
    return path("ui", "requests" if schedule["workflow"] else "jobs", run_id)


def _buttons(schedule: Document) -> Child:
    name = schedule["name"]
    if schedule["paused_at"] is not None:
        pause = button("Resume", path("schedules", name, "resume"), target=name)
    else:
        pause = button("Pause", path("schedules", name, "pause"), confirm=f"Pause {name}?", target=name)
    return join(button("Run now", path("schedules", name, "run"), target=name), pause)


async def schedule(query: PageQuery) -> View:
    """One schedule: its next times and its last ticks."""
    config, name = query.gateway.config, query.item_id
    found, times = await query.gateway.backend.read(
        lambda tx: operations.find(tx, config, name, times=NEXT_TIMES)
    )
    parts = {
        "facts": card(
            "Schedule", facts(_facts(found)), _manage(found) if query.may_act else None, note=found["note"]
        ),
        "next": card("Next times", _times(times)),
        "history": card(
            "Last ticks",
            table(
                "Last ticks",
                ("Tick", "State", "Took", "Run"),
                [_past(found, past) for past in found["history"]],
                "No ticks yet.",
            ),
        ),
    }
    return View(f"Schedule {name}", _SECTION, el("h1", name), parts)


def _facts(found: Document) -> list[tuple[str, Child]]:
    return [
        ("Runs", _target(found)),
        ("When", _when(found)),
        ("State", _state(found)),
        ("Set", "in the configuration" if found["origin"] == "config" else "at run time"),
        ("Next run", when(found["next_at"])),
        ("Last run", _last_run(found)),
        ("Vars", el("pre", json_text(found["vars"])) if found["vars"] else None),
        ("Params", el("pre", json_text(found["params"])) if found["params"] else None),
        ("Missed ticks", found["misfire"]),
        ("Overlap", found["overlap"]),
        ("Jitter", f"{found['jitter']:g} s" if found["jitter"] else None),
        ("Priority", found["priority"] or None),
        ("Group", found["group"]),
    ]


def _manage(found: Document) -> Child:
    if found["origin"] == "config":
        return el("p", _buttons(found), class_="actions")
    name = found["name"]
    question = f"Remove {name}? Jobs and requests that it started continue."
    remove = el(
        "button", "Remove", type="button", data_post=path("schedules", name), data_method="DELETE",
        data_confirm=question, data_to=_SECTION,
    )  # fmt: skip
    edit = el("a", "Edit", href=f"{_FORM}?{urlencode(_filled(found))}")
    return el("p", _buttons(found), remove, edit, class_="actions")


def _filled(found: Document) -> dict[str, str]:
    """The values of the form that set this schedule."""
    values = {
        **{name: found[name] for name in ("name", "handler", "workflow", "misfire", "overlap", "group")},
        found["kind"]: found["expression"],
        "timezone": found["timezone"],
        "jitter": seconds_literal(found["jitter"]) if found["jitter"] else None,
        "priority": found["priority"] or None,
        **{key: msgspec.json.encode(found[key]).decode() for key in ("vars", "params") if found[key]},
    }
    return {name: str(value) for name, value in values.items() if value is not None}


def _times(times: list[str]) -> Child:
    return el("ol", [el("li", when(time)) for time in times]) if times else DASH


def _past(found: Document, past: Document) -> tuple[Child, ...]:
    run = past["job_id"]
    return (
        moment(past["tick"]),
        badge(past["status"]),
        microseconds(past["run_us"]),
        el("a", "show", href=_run_path(found, run)) if run else DASH,
    )


async def new_schedule(query: PageQuery) -> View:
    """The form that sets a schedule, with the next times of what is in it."""
    times: Child = None
    if query.get("cron"):
        given = {"cron": query.get("cron"), "timezone": query.get("timezone") or "UTC"}

        def upcoming(tx: Tx) -> list[str]:
            return operations.next_times(given, NEXT_TIMES, tx.now)

        try:
            times = _times(await query.gateway.backend.read(upcoming))
        except InvalidValue as error:
            times = error_text(str(error))
    head = join(el("h1", "Schedule"), _form(query), card("Next times", times) if times else None)
    return View("New schedule", _SECTION, head)


def _form(query: PageQuery) -> Markup:
    def field(name: str, label: str, *, required: bool = False, is_json: bool = False) -> Markup:
        return el(
            "label",
            label,
            el(
                "input", name=name, value=query.get(name), required=required, autocomplete="off",
                data_json="" if is_json else None,
            ),
        )  # fmt: skip

    misfires = [(word, word) for word in ("once", "skip", "all")]
    overlaps = [(word, word) for word in ("allow", "skip", "queue")]
    return el(
        "form",
        field("name", "Name", required=True),
        field("handler", "Handler"),
        field("workflow", "or workflow"),
        field("cron", "Cron, such as 0 7 * * *"),
        field("timezone", "Time zone (UTC)"),
        field("cooler", "or pause after each end, such as 30s"),
        field("vars", "Vars (JSON)", is_json=True),
        field("params", "Params (JSON)", is_json=True),
        select("misfire", "Missed ticks", misfires, query.get("misfire") or "once"),
        select("overlap", "If the previous run is still going", overlaps, query.get("overlap") or "allow"),
        field("jitter", "Jitter, such as 2m"),
        field("priority", "Priority", is_json=True),
        field("group", "Group"),
        el("button", "Show next times"),
        el(
            "button",
            "Save",
            type="button",
            data_send="/schedules/",
            data_method="PUT",
            data_named="name",
            data_to="/ui/schedules/",
            class_="main",
        ),
        class_="filters",
        method="get",
        action=_FORM,
    )
