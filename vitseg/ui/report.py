"""A run as one HTML file that opens without a network."""

from pathlib import Path

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
    body = markup.render(
        "report",
        opening=line(events[0]),
        generated=summary["data"] == "generated",
        encoder=summary["encoder"],
        results=table.results(summary),
        curves=curves,
        freeze_map=charts.freeze_map_of(events),
        checks=charts.checks(events),
        class_map=charts.class_map(events),
        classes=table.classes(summary),
        sheet=pictures.data_uri(sheet),
        recipe=run.recipe.model_dump_json(indent=2),
    )
    path = run.path / "report.html"
    path.write_text(markup.page(summary["name"], body), encoding="utf-8")
    return path
