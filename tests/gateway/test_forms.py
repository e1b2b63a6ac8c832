"""Fields of forms: of a choice something is always selected, so that what nobody touches is not sent."""

from __future__ import annotations

from typing import Any

import pytest

from workerd.gateway.dashboard.forms import fields
from workerd.redaction import REDACTED, Redaction
from workerd.signature import Param, Signature

CHOICE = Param(name="plan", type="str", code=["in", "gold", "tin"])
FLAG = Param(name="plan", type="bool", code="bool")


@pytest.mark.parametrize(
    ("param", "value"),
    [(CHOICE, REDACTED), (CHOICE, "silver"), (CHOICE, 7), (CHOICE, ["gold"]), (FLAG, REDACTED), (FLAG, 1)],
)
def test_a_choice_that_cannot_be_shown_stays_as_it_is(param: Param, value: Any) -> None:
    """Redacted, or none of the choices. With no option selected a browser takes the first for a change."""
    (field,) = fields(Signature(params=[param]), {"plan": value}, Redaction(), others=False)
    assert '<option value="" selected>as it is</option>' in str(field)
    assert str(field).count(" selected") == 1


@pytest.mark.parametrize(("given", "selected"), [({"plan": "gold"}, "gold"), ({}, "optional")])
def test_a_choice_is_selected(given: dict[str, str], selected: str) -> None:
    """The one that the job has, which the empty one removes; else what stands for the default."""
    param = Param(name="plan", type="str", code=["in", "gold", "tin"], required=False)
    (field,) = fields(Signature(params=[param]), given, Redaction(), others=False)
    assert f" selected>{selected}</option>" in str(field)
    assert str(field).count(" selected") == 1
