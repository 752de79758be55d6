"""A class, a file, a stage and a run may be called like a tag: every page and widget shows the text
and makes no tag of it.
"""

from __future__ import annotations

from html.parser import HTMLParser

import ipywidgets as w
import numpy as np
import pytest
from builders import stripes, write_pairs

import vitseg
from vitseg.insight.reading import read
from vitseg.ui import charts, result, table

EVIL = "<img src=x onerror=alert(1)>"


class Tags(HTMLParser):
    """Whether a page has a tag that its author has not written."""

    def __init__(self, page: str):
        super().__init__()
        self.foreign: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        if dict(attrs).get("src") == "x" or any(name.startswith("on") for name, _ in attrs):
            self.foreign.append(self.get_starttag_text())


def is_text(page: str, name: str = EVIL) -> bool:
    """Whether the name is there, and as text."""
    escaped = name.replace("<", "&lt;").replace(">", "&gt;")
    return not Tags(page).foreign and escaped in page


def shown(widget: w.Widget) -> str:
    """The HTML of a widget and of all that it holds."""
    own = widget.value if isinstance(widget, w.HTML) else ""
    return own + "".join(map(shown, getattr(widget, "children", ())))


@pytest.fixture(scope="module")
def recipe(tiny_recipe, tmp_path_factory):
    """Files, a class and the first stage have the name."""
    folder = tmp_path_factory.mktemp("data")
    masks = {f"{EVIL} {n}": stripes(0, 1, 2) for n in range(6)}
    masks["rare"] = stripes(0, 1)
    write_pairs(folder, masks, classes=["ground", EVIL, "b"], encoding="index")
    source = vitseg.Folder(path=str(folder))
    return tiny_recipe.replace({"data.source": source, "stages.0.name": EVIL, "data.views": 1})


@pytest.fixture(scope="module")
def run(recipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / EVIL
    list(vitseg.train(recipe, folder))
    return vitseg.RunFolder(folder)


def test_the_look_for_foreign_tags_finds_one():
    assert Tags(f"<p>{EVIL}</p>").foreign == [EVIL] and not is_text(f"<p>{EVIL}</p>")


def test_on_the_report_of_a_run_and_in_each_of_its_tables(run):
    page = vitseg.report(run.path, shown=1).read_text(encoding="utf-8")
    assert is_text(page)
    events, summary = list(run.events()), run.summary
    for made in (
        charts.freeze_map_of(events),
        charts.class_map(events),
        table.results(summary),
        table.classes(summary),
        table.stages(run.recipe),
    ):
        assert is_text(made._repr_html_()) and EVIL in str(made)


def test_in_what_a_look_at_the_data_has_found(recipe, tmp_path):
    report = vitseg.check(recipe.data)
    page = report.save(tmp_path / "page.html").read_text(encoding="utf-8")
    assert is_text(page) and is_text(report._repr_html_())
    assert EVIL in str(report)


def test_in_the_workbench(recipe, run):
    assert is_text(shown(vitseg.Workbench(recipe).box)), "before a run"
    page = shown(vitseg.Workbench(run.path).box)
    assert is_text(page) and is_text(page, run.path.name)
    assert page.count("&lt;img") > 6, "stage table, freeze map, class map, runs"


def test_in_the_panels_of_views_and_of_confusions(recipe, run):
    data = vitseg.SegmentationData(recipe.data)
    views = vitseg.show_views(data)
    assert not Tags(shown(views)).foreign
    model = vitseg.load(run.path)
    panel = vitseg.show_confusions(read(model, data, "train"), model, data)
    _, truth, prediction, _ = panel.children[-1].children
    truth.index, prediction.index = 1, 1
    assert is_text(shown(panel))


def test_in_the_charts_where_plotly_would_take_it_for_a_tag(recipe, run):
    data = vitseg.SegmentationData(recipe.data)
    reading = read(vitseg.load(run.path), data, "train")
    figures = [
        charts.planned_lr(recipe, 3),
        charts.curves(run.events()),
        result.confusion_figure(reading),
        result.size_figure(reading),
        result.frequency_figure(reading),
    ]
    for figure in figures:
        texts: list[str] = []
        for trace in figure.data:
            for part in (trace.name, trace.text, trace.x, trace.y):
                texts += map(str, np.ravel(part))
        texts += [f"{a.text} {a.hovertext}" for a in figure.layout.annotations]
        assert not [text for text in texts if "<img" in text]
        assert [text for text in texts if "&lt;img" in text]
