"""No control, link or request of a page leads out: reports, a lesson's page, and what a check
writes, in the real browser.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import nbformat
import plotly.graph_objects as go
import pytest
from browser.lab import CHROMIUM, chromium
from builders import stripes, write_pairs
from headless import write_index, write_page

import vitseg
from vitseg.recipe import load_recipe
from vitseg.ui import charts

if CHROMIUM is None and not os.environ.get("VITSEG_REQUIRE_BROWSER"):
    pytest.skip("no Chromium; the browser tests need one", allow_module_level=True)

pytestmark = pytest.mark.browser

BUTTONS = {
    "Download plot as a PNG",
    "Zoom",
    "Pan",
    "Zoom in",
    "Zoom out",
    "Autoscale",
    "Reset axes",
}
RECORDED = Path(__file__).parents[1] / "recorded"
LESSON = """
import plotly.graph_objects as go, vitseg
from vitseg.ui import charts, theme
display(charts.planned_lr(vitseg.quick(), 20))
go.Figure(go.Scatter(y=[3, 1, 2])).update_layout(template=theme.TEMPLATE)
"""


@pytest.fixture
def page(tmp_path):
    with chromium(tmp_path, "") as lab:
        yield lab


@pytest.fixture
def recorded(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for archive in RECORDED.glob("*.zip"):
        shutil.unpack_archive(archive, tmp_path)
    return tmp_path


def lesson(place: Path) -> Path:
    cells = [nbformat.v4.new_markdown_cell("# A lesson"), nbformat.v4.new_code_cell(LESSON)]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), place / "lesson.ipynb")
    write_page(place / "lesson.ipynb", place / "pages")
    return place / "pages" / "lesson.html"


def index(place: Path) -> Path:
    write_index(Path(__file__).parents[2] / "notebooks" / "README.md", place / "pages")
    return place / "pages" / "index.html"


def ablation(place: Path) -> Path:
    axes = {"stages.1.unfrozen_blocks": [0, 2], "stages.1.encoder_lr_factor": [0.1, 0.5]}
    return vitseg.ablate(
        load_recipe(place / "run" / "recipe.json"), axes, seeds=2, folder=place / "ablation"
    ).report()


PAGES = {
    "run": (lambda place: vitseg.report(place / "run", shown=1), 1),
    "ablation": (ablation, 1),
    "lesson": (lesson, 2),
    "index": (index, 0),
}


@pytest.mark.parametrize("kind", PAGES)
def test_a_page_has_no_way_out(kind, page, recorded):
    write, count = PAGES[kind]
    page.page.goto(f"file://{write(recorded)}")
    page.page.wait_for_function(
        "n => document.querySelectorAll('.modebar').length === n", arg=count
    )
    links, buttons = page.ways_out("body")
    assert links == [] and buttons == (BUTTONS if count else set())
    assert page.outside == []


EVIL = "<img src=x onerror=alert(1)>"


def test_a_name_that_is_a_tag_is_shown_as_text_and_runs_nothing(page, recorded):
    """Of a file on the page of a check; of a run, a stage and a class on that of a run."""
    masks = {f"{EVIL} {n}": stripes(0, 1, 2) for n in range(6)}
    source = write_pairs(recorded / "data", masks, classes=["a", EVIL, "b"], encoding="index")
    recipe = load_recipe(recorded / "run" / "recipe.json").replace(
        {"data.source": vitseg.Folder(path=str(source)), "stages.0.name": EVIL}
    )
    list(vitseg.train(recipe, recorded / EVIL))
    asked = []
    page.page.on("dialog", lambda dialog: asked.append(dialog.message) or dialog.dismiss())
    for path in (
        vitseg.check(source).save(recorded / "check.html"),
        vitseg.report(recorded / EVIL, shown=1),
    ):
        page.page.goto(path.as_uri())
        page.page.wait_for_load_state("networkidle")
        assert EVIL in page.page.inner_text("body")
        assert page.page.locator("img[src=x]").count() == 0
    assert (asked, page.outside) == ([], [])


def test_plotly_as_it_comes_has_both(page, tmp_path):
    """The control: the same look at a figure that is not ours finds the upload and the maker's
    page.
    """
    go.Figure(go.Scatter(y=[3, 1, 2])).write_html(
        tmp_path / "plain.html", config={"displaylogo": True}
    )
    page.page.goto(f"file://{tmp_path / 'plain.html'}")
    page.page.wait_for_selector(".modebar")
    links, buttons = page.ways_out("body")
    assert any("plotly.com" in link for link in links) and any(
        "uploaded to" in words for words in links
    )
    assert "Share chart..." in buttons


BUILDS = re.compile(r"go\.Figure\(|make_subplots\(")


def test_every_figure_has_the_template_and_every_live_one_is_made_in_one_place():
    root = Path(__file__).parents[2]
    modules = {
        path.name: path.read_text(encoding="utf-8") for path in (root / "vitseg").rglob("*.py")
    }
    cells = {}
    for path in (root / "notebooks").glob("*.ipynb"):
        sources = [cell.source for cell in nbformat.read(path, as_version=4).cells]
        cells |= {f"{path.stem}, cell {n}": source for n, source in enumerate(sources)}
    building = {place: code for place, code in (modules | cells).items() if BUILDS.search(code)}
    assert (
        len(building) > 10
        and [place for place, code in building.items() if "theme.TEMPLATE" not in code] == []
    )
    assert [
        name
        for name, code in modules.items()
        if re.search(r"(FigureWidget|LiveFigure)\((?!go)", code)
    ] == ["screen.py"]
    assert [place for place, source in cells.items() if re.search("https?://", source)] == []


def test_a_figure_that_is_saved_and_opened_elsewhere_has_no_upload_either():
    assert charts.planned_lr(vitseg.quick(), 20).to_plotly_json()["layout"]["template"]["layout"][
        "modebar"
    ]["remove"][0] == ("sendChartToCloud")
