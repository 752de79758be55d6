"""Charts as pure functions of events: the same for a live run, a replayed one and one in a report.
No torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from vitseg import plan
from vitseg.events import EpochEnded, Event, RunStarted, StageStarted
from vitseg.recipe import Recipe
from vitseg.ui import theme
from vitseg.ui.curves import Band, Curves, Points
from vitseg.ui.table import Cell, Table

POINTS = 1000
"""Of a longer curve, where it is drawn again and again, only the extremes are shown."""


def curves(events: Iterable[Event], beneath: Iterable[Event] | None = None) -> go.Figure:
    """Learning rate, loss, IoU and F1 over epochs, a band for each stage; those of another run grey
    and dotted beneath.
    """
    return curves_figure(Curves.of(events), None if beneath is None else Curves.of(beneath))


_STYLE = {
    "LR (planned)": (1, theme.PLAN, {"width": 5}, {"opacity": 0.45}),
    "LR": (1, theme.TRAIN, {}, {}),
    "LR, encoder": (1, theme.SECOND, {}, {}),
    "train loss": (2, theme.TRAIN, {"width": 1.2}, {}),
    "valid loss": (2, theme.VALID, {}, {"mode": "lines+markers"}),
    "train IoU": (3, theme.TRAIN, {"dash": "dot"}, {"mode": "lines+markers"}),
    "valid IoU": (3, theme.VALID, {}, {"mode": "lines+markers"}),
    "valid F1": (3, theme.SECOND, {}, {"mode": "lines+markers"}),
}
"""Column, colour, line and the rest of each curve."""

_TITLES = (
    ("learning rate", (("planned", theme.PLAN), ("used", theme.TRAIN), ("encoder", theme.SECOND))),
    ("loss", (("train", theme.TRAIN), ("valid", theme.VALID))),
    ("IoU, F1", (("train IoU", theme.TRAIN), ("valid IoU", theme.VALID), ("F1", theme.SECOND))),
)
"""Each chart's title, and its curves in their colours."""

_ABOVE = {"yref": "paper", "y": 1.0, "yanchor": "bottom", "showarrow": False}
"""Of an annotation, to stand on top of a chart."""

_PARENT = {"valid loss": 2, "valid IoU": 3}
"""What is shown of another run laid beneath."""


def curves_figure(
    curves: Curves, beneath: Curves | None = None, most: int | None = None
) -> go.Figure:
    """Three charts side by side on one epoch axis. `beneath`, the curves of another run, is drawn
    grey and dotted.

    `most` is the number of points of a curve above which it is thinned.
    """
    figure = make_subplots(rows=1, cols=3, shared_xaxes="all", horizontal_spacing=0.07)
    for name, (column, *_) in _STYLE.items():
        figure.add_trace(_trace(name, curves, most), row=1, col=column)
    if beneath is not None:
        for name, column in _PARENT.items():
            figure.add_trace(_parent_trace(name, beneath, most), row=1, col=column)
    figure.update_xaxes(title={"text": "epoch", "font": {"size": 12}})
    figure.update_yaxes(
        type="log", exponentformat="power", dtick=1, tickfont={"size": 11}, row=1, col=1
    )
    figure.update_yaxes(rangemode="tozero", row=1, col=2)
    figure.update_yaxes(range=[0, 1], row=1, col=3)
    figure.update_layout(**around(curves, beneath))
    margin = {"l": 52, "r": 12, "t": 76, "b": 48}
    return figure.update_layout(
        template=theme.TEMPLATE,
        height=352,
        hovermode="x",
        margin=margin,
        uirevision="stay",
        showlegend=False,
        autosize=True,
    )


def around(curves: Curves, beneath: Curves | None = None) -> dict[str, list]:
    """Shapes and annotations of a figure: titles, and a coloured band with its number for each
    stage in each chart.
    """
    shapes, words = [], _titles(beneath)
    for band in curves.bands:
        for column in ("", "2", "3"):
            shapes.append(_ground(band, column))
            words.append(_number(band, column))
    return {"shapes": shapes, "annotations": words}


def _ground(band: Band, column: str = "") -> dict[str, Any]:
    """The band behind the curves of a stage."""
    return {
        "type": "rect",
        "fillcolor": theme.stage_color(band.stage),
        "opacity": 0.09,
        "line": {"width": 0},
        "layer": "below",
        "xref": f"x{column}",
        "x0": band.start,
        "x1": band.end,
        "yref": "paper",
        "y0": 0,
        "y1": 1,
    }


def _number(band: Band, column: str = "") -> dict[str, Any]:
    """The stage's number above its band, and its name as the tooltip."""
    return {
        "text": f"<b>{band.stage}</b>",
        "hovertext": f"stage {band.stage}: {theme.literal(band.name)}",
        "font": {"color": theme.stage_color(band.stage), "size": 11},
        "xref": f"x{column}",
        "x": (band.start + band.end) / 2,
        **_ABOVE,
    }


def _titles(beneath: Curves | None) -> list[dict[str, Any]]:
    """Of each chart, and in place of a legend, which would take width, its curves in their
    colours.
    """
    titles, drawn = [], set()
    for name, column in _PARENT.items():
        if beneath is not None and beneath.points[name].x:
            drawn.add(column)
    for column, (title, names) in enumerate(_TITLES, start=1):
        if column in drawn:
            names = (*names, ("earlier run", theme.PLAN))
        words = " ".join(f'<span style="color:{color}">■ {name}</span>' for name, color in names)
        where = {
            "xref": f"x{column if column > 1 else ''} domain",
            "x": 0,
            "xanchor": "left",
            "align": "left",
            "yshift": 16,
            "font": {"size": 12},
        }
        titles.append({"text": f"<b>{title}</b><br>{words}"} | where | _ABOVE)
    return titles


def trace_data(points: Points, most: int | None = None) -> dict[str, Any]:
    """What changes of a trace while a run goes on."""
    x, y, steps = points.arrays(most)
    return {"x": x, "y": y, "customdata": steps}


def _trace(name: str, curves: Curves, most: int | None) -> go.Scatter:
    _, color, line, more = _STYLE[name]
    shape, digits = ("vh", ".3g") if name.startswith("LR") else ("linear", ".3f")
    line = {"color": color, "width": 2, "shape": shape} | line
    hover = f"%{{y:{digits}}} (step %{{customdata}})"
    more = {"mode": "lines", "marker": {"size": 6}, "hovertemplate": hover} | more
    return go.Scatter(name=name, line=line, **more, **trace_data(curves.points[name], most))


def _parent_trace(name: str, beneath: Curves, most: int | None) -> go.Scatter:
    line, points = {"color": theme.PLAN, "width": 4, "dash": "dot"}, beneath.points[name]
    more = {"mode": "lines", "visible": bool(points.x), "zorder": -1}
    return go.Scatter(name=f"{name}, parent", line=line, **more, **trace_data(points, most))


def planned_lr(recipe: Recipe, batches_per_epoch: int) -> go.Figure:
    """The promised LR of every step, before any training."""
    planned, bands = plan.preview(recipe, batches_per_epoch), Curves(recipe).bands
    figure = go.Figure()
    for stage, band in zip(recipe.stages, bands, strict=True):
        own = [p for p in planned if p.stage == band.stage]
        name = f"{band.stage} {theme.literal(stage.name)}"
        figure.add_scatter(
            name=f"{name}: {plan.describe(stage)}",
            x=[p.epoch for p in own],
            y=[p.lr for p in own],
            mode="lines",
            line={"color": theme.stage_color(band.stage), "shape": "vh"},
            customdata=[p.step for p in own],
            hovertemplate="step %{customdata}: %{y:.3g}",
        )
        figure.add_shape(_ground(band))
        figure.add_annotation(_number(band), text=name, font_size=13)
    figure.update_yaxes(title_text="learning rate", type="log", exponentformat="power", dtick=1)
    figure.update_xaxes(title_text="epoch")
    legend = {"orientation": "h", "y": -0.25}
    return figure.update_layout(template=theme.TEMPLATE, height=380, legend=legend)


def freeze_map(rows: Sequence[tuple[str, Sequence[Mapping[str, Any]]]], edited: int = 0) -> Table:
    """Which parts train: a row for each (label, parts), a cell for each part. `edited` is the row
    that stands out.

    A part has `name`, `block`, `trains` and `parameters`; once its stage runs, `in_optimizer`, how many of
    them the optimizer holds; and `broken` where a detector found it otherwise than promised.
    """
    names = [str(p.get("block") or _SHORT.get(p["name"], p["name"])) for p in rows[0][1]]
    cells, broken = [], ""
    for label, parts in rows:
        cells.append((label, *map(_part, parts)))
        if any(part.get("broken") for part in parts):
            broken = ", ✗ promise broken"
    caption = (
        "Freeze map: E embeddings, N final norm, numbers the blocks. · frozen, ○ trains, "
        f"● in the optimizer, counted when the stage began{broken}"
    )
    return Table(("", *names), tuple(cells), caption, "cells", edited)


def _part(part: Mapping[str, Any]) -> Cell:
    kind, mark = ("trains", "○") if part["trains"] else ("frozen", "·")
    words = f"{part['name']}: {kind}, {part['parameters']:,} parameters"
    if "in_optimizer" in part:
        words += f", {part['in_optimizer']:,} in the optimizer"
        mark = "●" if part["in_optimizer"] else mark
    if part.get("broken"):
        kind, mark, words = "broken", "✗", f"{words}. Promised, but not so: see Checks"
    return Cell(mark, kind, words, *_LOOKS[kind])


def freeze_map_of(events: Iterable[Event]) -> Table:
    """The freeze map of a run, a row for each stage begun."""
    started = [e for e in events if isinstance(e, StageStarted)]
    return freeze_map([(f"{e.stage} {e.name}", e.parts) for e in started])


def class_map(events: Iterable[Event], most: int | None = None) -> Table:
    """Validation IoU of every class over epochs. Of more than `most` epochs, evenly many are
    shown.
    """
    classes, ended = [], []
    for event in events:
        if isinstance(event, RunStarted):
            classes = event.classes
        elif isinstance(event, EpochEnded):
            ended.append(event)
    if not ended:
        return Table((), (), "After the first epoch: the IoU of every class, epoch by epoch.")
    if most and len(ended) > most:
        ended = [ended[round(i * (len(ended) - 1) / (most - 1))] for i in range(most)]
    heads, rows = ["epoch"], [[name] for name in classes]
    for event in ended:
        heads.append(str(event.epoch))
        for row, iou in zip(rows, event.validation["per_class_iou"], strict=True):
            row.append(_iou(f"{row[0]}, epoch {event.epoch}", iou))
    caption = "Validation IoU in hundredths, images at their own size. n/a: absent from the truth."
    return Table(tuple(heads), tuple(map(tuple, rows)), caption, "cells")


def _iou(of: str, iou: float | None) -> Cell:
    if iou is None:
        return Cell("n/a", "absent", f"{of}: absent", "none", "inherit")
    return Cell(f"{100 * iou:.0f}", "iou", f"{of}: {iou:.3f}", *theme.heat(iou))


_LOOKS = {
    "frozen": (theme.FROZEN, "#333"),
    "trains": (theme.TRAINED, "#111"),
    "broken": (theme.BROKEN, "#fff"),
}
"""Ground and ink of a cell."""

_SHORT = {"embeddings": "E", "final norm": "N", "decoder": "decoder"}
