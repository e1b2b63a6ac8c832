"""A process of the project: evaluates lines of Python from standard input, answers in JSON."""

from __future__ import annotations

import json
import sys
import traceback
from typing import Any

import django

django.setup()

from tests.contrib.django_shop import calls  # noqa: E402 -- Django first


def answer(line: str) -> dict[str, Any]:
    """The result of one call."""
    name, arguments = json.loads(line)
    try:
        return {"value": getattr(calls, name)(**arguments)}
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}", "trace": traceback.format_exc()}


for line in sys.stdin:
    print(json.dumps(answer(line), default=str), flush=True)
