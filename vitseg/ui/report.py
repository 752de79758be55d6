"""A run as one HTML file that opens without a network."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image

from vitseg.data.dataset import SegmentationData
from vitseg.events import Event, StageEnded, StageStarted
from vitseg.model.segmenter import load_segmenter
from vitseg.runs.folder import RunFolder
from vitseg.ui import charts, pictures, table, theme

STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1080px; margin: 2rem auto; padding: 0 1rem; }
h2 { margin-top: 2.2rem; } .bad { color: #D55E00; font-weight: 600; }
.quiet, figcaption { color: #7a7a7a; } figcaption { padding-bottom: .4rem; }
table { border-collapse: collapse; } pre { white-space: pre-wrap; } img { max-width: 100%; }
th, td { padding: .25rem .8rem .25rem 0; border-bottom: 1px solid rgba(128,128,128,.3); vertical-align: top; }
"""


def report(folder: str | Path, shown: int = 6) -> Path:
    """Write `report.html` into a run folder that has ended, with predictions of `shown` validation
    images.
    """
    run = RunFolder(folder)
    events, recipe = list(run.events()), run.recipe
    summary = run.summary
    data = SegmentationData(recipe.data)
    run.check_split(data.splits)
    sheet = pictures.predictions(load_segmenter(run.best), data, data.splits["validation"][:shown])
    page = _page(summary, events, sheet, recipe.model_dump_json(indent=2))
    path = run.path / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


def _page(summary: dict[str, Any], events: list[Event], sheet: Image.Image, recipe: str) -> str:
    encoder, images = summary["encoder"], summary["images"]
    generated = (
        " Generated images: the figures compare settings, they say nothing about real ones."
        if summary["data"] == "generated"
        else ""
    )
    figures = [charts.curves(events), charts.freeze_map_of(events), charts.class_map(events)]
    draw = {"full_html": False, "config": theme.CONFIG}
    first, *rest = (f.to_html(include_plotlyjs=i == 0, **draw) for i, f in enumerate(figures))
    body = [
        f"<h1>{escape(summary['name'])}</h1>",
        f"<p>{images['train']} training, {images['validation']} validation, {images['test']} test "
        f"images; "
        f"{len(summary['classes'])} classes; masks: {escape(summary['masks'])}.{generated}</p>",
        f"<p class=quiet>Encoder {escape(encoder['name'])}, from {escape(encoder['source'])}, "
        f"sha256 {encoder['sha256']}; "
        f"licence: {escape(encoder['licence'])}.</p>",
        table.results(summary)._repr_html_(),
        *(
            f"<p class=bad>{escape(event.warning)}</p>"
            for event in events
            if isinstance(event, StageEnded) and event.warning
        ),
        f"<h2>Curves</h2>{first}",
        f"<h2>What trained</h2>{rest[0]}<pre>{escape(_audits(events))}</pre>",
        f"<h2>Classes</h2>{rest[1]}{table.classes(summary)._repr_html_()}",
        (
            f'<h2>Predictions</h2><img alt="image, truth, prediction, disagreement" '
            f'src="{pictures.data_uri(sheet)}">'
        ),
        (
            f"<h2>Recipe</h2><details><summary>all "
            f"settings</summary><pre>{escape(recipe)}</pre></details>"
        ),
    ]
    return page(summary["name"], body)


def page(title: str, body: Iterable[str]) -> str:
    """A whole HTML page that asks for nothing from outside."""
    head = (
        f"<!doctype html><html lang=en><meta "
        f"charset=utf-8><title>{escape(title)}</title><style>{STYLE}</style>"
    )
    return head + "\n".join(body)


def _audits(events: Iterable[Event]) -> str:
    """What the audit said before and after each stage."""
    lines = []
    for event in events:
        if isinstance(event, StageStarted):
            lines += [f"Stage {event.stage}, before the first step:", event.audit]
        elif isinstance(event, StageEnded):
            lines += [f"Stage {event.stage}, after the last step: {event.audit}", ""]
    return "\n".join(lines)
