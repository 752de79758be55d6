"""A run as one HTML file that opens without a network."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from markupsafe import Markup

from vitseg.data.dataset import SegmentationData
from vitseg.model.segmenter import load_segmenter
from vitseg.runs.folder import RunFolder
from vitseg.ui import charts, markup, panels, pictures, table, theme


def report(folder: str | Path, shown: int = 6) -> Path:
    """Write `report.html` into a run folder that has ended, with predictions of `shown` validation
    images.
    """
    run = RunFolder(folder)
    events, summary = list(run.events()), run.summary
    data = SegmentationData(run.recipe.data)
    run.check_split(data.splits)
    sheet = pictures.predictions(load_segmenter(run.best), data, data.splits["validation"][:shown])
    draw = {"full_html": False, "config": theme.CONFIG}
    content = {
        "title": summary["name"],
        "summary": summary,
        "results": table.results(summary),
        "curves": Markup(charts.curves(events).to_html(**draw)),
        "freeze_map": charts.freeze_map_of(events),
        "class_map": charts.class_map(events),
        "classes": table.classes(summary),
        "sheet": pictures.data_uri(sheet),
        "recipe": run.recipe.model_dump_json(indent=2),
        "checks": Markup(panels.checks(events)),
    }
    path = run.path / "report.html"
    path.write_text(markup.render("report", **content), encoding="utf-8")
    return path


def page(title: str, body: Iterable[str]) -> str:
    """A whole HTML page that asks for nothing from outside. `body` is HTML."""
    return markup.render("page", title=title, body=Markup("\n".join(body)))
