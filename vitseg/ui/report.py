"""A run as one HTML file that opens without a network."""

from pathlib import Path

from markupsafe import Markup

from vitseg.data.dataset import SegmentationData
from vitseg.model.segmenter import load_segmenter
from vitseg.runs.folder import RunFolder
from vitseg.runs.narrate import line
from vitseg.ui import charts, markup, pictures, table, theme


def report(folder: str | Path, shown: int = 6) -> Path:
    """Write `report.html` into a run folder that has ended, with predictions of `shown` validation
    images.
    """
    run = RunFolder(folder)
    events, summary = list(run.events()), run.summary
    data = SegmentationData(run.recipe.data)
    run.check_split(data.splits)
    sheet = pictures.predictions(load_segmenter(run.best), data, data.splits["validation"][:shown])
    curves = charts.curves(events).to_html(full_html=False, config=theme.CONFIG)
    weights = "Encoder weights: sha256 {sha256}; licence: {licence}.".format(**summary["encoder"])
    page = markup.page(
        (summary["name"], line(events[0]), weights, table.results(summary)),
        ("Curves", Markup(curves)),
        ("What trained", charts.freeze_map_of(events), charts.checks(events)),
        ("Classes", charts.class_map(events), table.classes(summary)),
        ("Predictions", Markup(f"<img alt=predictions src='{pictures.data_uri(sheet)}'>")),
        ("Recipe", markup.verbatim(run.recipe.model_dump_json(indent=2))),
    )
    path = run.path / "report.html"
    path.write_text(page, encoding="utf-8")
    return path
