"""What pages are made of: markup that escapes, charts, graphs, quantiles, and words for people."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workerd.config.model import WorkflowJob
from workerd.gateway.dashboard import components
from workerd.gateway.dashboard.charts import ChartLine, chart
from workerd.gateway.dashboard.components import el, join, path
from workerd.gateway.dashboard.graph import columns, draw
from workerd.gateway.dashboard.routes import VIEWS
from workerd.gateway.history import Totals, between, quantile, read
from workerd.gateway.openapi import OPERATIONS, PAGES, document

PRINTABLE = st.text(st.characters(blacklist_categories=["Cs", "Cc"]))


@given(PRINTABLE, PRINTABLE)
def test_text_stays_text(inside: str, attribute: str) -> None:
    """Whatever text is put into an element comes out of a parser as the same text."""
    parsed = ET.fromstring(el("p", inside, el("b", inside), title=attribute, class_="x", hidden=False))
    assert (parsed.text or "") == inside
    assert (parsed[0].text or "") == inside
    assert parsed.attrib == {"title": attribute, "class": "x"}


def test_elements() -> None:
    """Void elements are not closed, None and False leave nothing, lists are joined."""
    assert el("input", required=True, value=None) == "<input required>"
    assert join("<", None, ["a", [1, 2.5]], el("br")) == "&lt;a12.5<br>"
    assert path("ui", "a/b", "ü?") == "/ui/a%2Fb/%C3%BC%3F"


@given(st.lists(st.one_of(st.none(), st.floats(0, 1e9)), max_size=50))
def test_charts_are_well_formed(values: list[float | None]) -> None:
    """A chart of anything is a figure that says its numbers in words."""
    figure = ET.fromstring(
        chart("Rate", [ChartLine("good", "good", values)], components.number, "last 5 min")
    )
    picture = figure.find(".//svg")
    assert picture is not None
    assert "Rate, last 5 min" in picture.attrib["aria-label"]


def test_graphs() -> None:
    """Jobs stand behind all that they need; a circle, made by hand, is left out instead of followed."""
    jobs = [
        WorkflowJob(name="d", handler="h", needs=("b", "c")), WorkflowJob(name="a", handler="h"),
        WorkflowJob(name="b", handler="h", needs=("a",)), WorkflowJob(name="c", handler="h"),
        WorkflowJob(name="x", handler="h", needs=("y",)), WorkflowJob(name="y", handler="h", needs=("x",)),
    ]  # fmt: skip
    assert [[job.name for job in column] for column in columns(jobs)] == [["a", "c"], ["b"], ["d"]]
    drawn = draw(jobs, {})
    assert drawn is not None
    assert len(ET.fromstring(drawn).findall(".//rect")) == 4
    assert draw([], {}) is None
    assert draw([WorkflowJob(name=str(n), handler="h") for n in range(201)], {}) is None


def test_quantiles() -> None:
    """A quantile lies in the bucket where so much of what is new is reached."""
    before = {0.1: 5.0, 1.0: 5.0, float("inf"): 5.0}
    after = {0.1: 5.0, 1.0: 15.0, float("inf"): 15.0}
    assert quantile(0.5, before, after) == pytest.approx(0.55)
    assert quantile(0.5, after, after) is None
    assert quantile(0.9, {}, {0.1: 0.0, float("inf"): 3.0}) == 0.1
    sample = between(Totals(0.0, 1, 0, before), Totals(10.0, 21, 5, after))
    assert (sample.good, sample.bad, sample.queue_half) == (2.0, 0.5, None)


def test_no_files_yet(tmp_path: Path) -> None:
    """A node that has counted nothing has zeros."""
    totals = read(tmp_path / "none")
    assert (totals.good, totals.bad, totals.run) == (0, 0, {})


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (None, "–"), (0.0004, "0.4 ms"), (0.25, "250 ms"), (12.34, "12.3 s"), (302, "5 min 02 s"),
        (12_000, "3 h 20 min"), (187_200, "2 d 4 h"),
    ],
)  # fmt: skip
def test_durations(value: float | None, said: str) -> None:
    """Durations are said in the unit that fits."""
    assert components.seconds(value) == said


def test_every_route_is_described() -> None:
    """The description names each method of each route, and each route is described."""
    from workerd.gateway.app import ROUTES
    from workerd.gateway.jobs import only_post

    described = {(op.method.upper(), op.path) for op in OPERATIONS}
    served = {
        (method, route.path)
        for route in ROUTES
        if route.endpoint is not only_post
        for method in route.methods or ()
        if method != "HEAD"
    }
    pages = {("GET", page) for page, _ in PAGES}
    assert described - pages == served - {("GET", "/ui/{rest:path}")}
    assert all(any(view.fullmatch(page) for view, _ in VIEWS) for _, page in pages)
    assert b'"$ref"' in document(True)
    assert b"securitySchemes" in document(True)
    assert b"securitySchemes" not in document(False)
