"""Fields of forms for the vars of a job, built from its handler's signature."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from workerd.gateway.dashboard.components import Child, Markup, el
from workerd.redaction import REDACTED, Redaction
from workerd.signature import Code, Param, Signature

_TEXTS = frozenset({"str", "bytes", "datetime", "date", "time", "timedelta", "uuid", "decimal"})
VARS = "vars."
"""How the names of fields begin that are vars."""
LONG_TEXT = 80
"""Characters of a value above which its field has several lines."""


class VarsField(NamedTuple):
    """One field. `value`: None if the job does not have it; `redacted`: it may not be shown."""

    param: Param
    value: Any = None
    given: bool = False
    redacted: bool = False


def fields(
    signature: Signature | None, values: Mapping[str, Any], redaction: Redaction, *, others: bool
) -> list[Markup]:
    """A field for each parameter, with the value that a job has; `others`: one for further arguments too."""
    params = signature.params if signature is not None else ()
    shown = [
        VarsField(
            param,
            values.get(param.name),
            param.name in values,
            _is_redacted(values.get(param.name)) or redaction.shown({param.name: ""}) != {param.name: ""},
        )
        for param in params
    ]
    known = {param.name for param in params}
    shown += [
        VarsField(Param(name=name), value, True, _is_redacted(value))
        for name, value in values.items()
        if name not in known
    ]
    made = [_field(one) for one in shown]
    if others and (signature is None or signature.open):
        made.append(
            _labeled("Further arguments (JSON object)", el("textarea", name="vars", data_json=True, rows=3))
        )
    return made


def _is_redacted(value: Any) -> bool:
    return isinstance(value, str | list | dict) and f'"{REDACTED}"' in json.dumps(value, ensure_ascii=False)


def _field(one: VarsField) -> Markup:
    param, name = one.param, VARS + one.param.name
    label = f"{param.name}: {param.type}" if param.type != "Any" else param.name
    kind, choices = _kind(param)
    hint = _hint(one)
    required = param.required and not one.given
    if choices is not None:
        return _labeled(
            label, el("select", _options(one, choices), name=name, data_json=True, required=required)
        )
    is_json = kind != "text" or (one.given and not isinstance(one.value, str))
    if not one.given or one.redacted:
        text = ""
    else:
        text = json.dumps(one.value, ensure_ascii=False) if is_json else str(one.value)
    common: dict[str, Any] = {
        "name": name, "placeholder": hint or None, "data_json": is_json, "required": required,
        "autocomplete": "off",
    }  # fmt: skip
    if one.redacted:
        return _labeled(label, el("input", type="password", **{**common, "autocomplete": "new-password"}))
    if kind == "json" or len(text) > LONG_TEXT or "\n" in text:
        return _labeled(label, el("textarea", text, rows=min(12, 2 + text.count("\n")), **common))
    return _labeled(label, el("input", type="text", value=text or None, **common))


def _options(one: VarsField, choices: Sequence[Any]) -> list[Markup]:
    """One of them is always selected: else a browser selects the first, which is then sent as a change."""
    texts = {json.dumps(choice): str(choice) for choice in choices}
    chosen = json.dumps(one.value) if one.given and not one.redacted else ""
    first = _hint(one) if not one.given else "" if chosen in texts else "as it is"
    if chosen not in texts:
        chosen = ""
    return [
        el("option", text, value=value, selected=value == chosen)
        for value, text in {"": first, **texts}.items()
    ]


def _hint(one: VarsField) -> str:
    if one.redacted and one.given:
        return "redacted; empty: unchanged"
    if one.param.required:
        return "required" if not one.given else ""
    if one.given:
        return ""
    default = one.param.default
    return (
        "optional"
        if default is None or one.redacted
        else f"default: {json.dumps(default, ensure_ascii=False)}"
    )


def _kind(param: Param) -> tuple[str, Sequence[Any] | None]:
    """`text`, `number` or `json`, and the values to choose from, if there are few."""
    code: Code = param.code
    if isinstance(code, list) and code[:1] == ["or"]:
        rest = [part for part in code[1:] if part != "null"]
        code = rest[0] if len(rest) == 1 else "any"
    if code == "bool":
        return "json", (True, False)
    if isinstance(code, list) and code[:1] == ["in"]:
        return "json", code[1:]
    if param.is_str or (isinstance(code, str) and code in _TEXTS):
        return "text", None
    return ("number" if code in ("int", "float") else "json"), None


def _labeled(label: str, control: Child) -> Markup:
    return el("label", label, control)


def option(name: str, label: str, *, value: str = "", is_json: bool = False, placeholder: str = "") -> Markup:
    """A field for an option of a job."""
    return _labeled(
        label,
        el(
            "input", type="text", name=name, value=value or None, placeholder=placeholder or None,
            data_json=is_json, autocomplete="off",
        ),
    )  # fmt: skip


def moment_option(name: str, label: str, value: str | None = None) -> Markup:
    """A field for a time, which the page's script shows and reads in the reader's zone; without it UTC."""
    return _labeled(
        label,
        el("input", type="datetime-local", step="1", name=name, value=value and value[:19], data_zone=True),
    )
