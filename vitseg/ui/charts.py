"""Charts as pure functions of events: the same for a live run, a replayed one and one in a report.
No torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from vitseg import plan
from vitseg.events import EpochEnded, Event, RunStarted, StageStarted
from vitseg.recipe import Recipe
from vitseg.ui import theme
from vitseg.ui.curves import Curves, Points

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
        color = theme.stage_color(band.stage)
        for column in ("", "2", "3"):
            where = {
                "xref": f"x{column}",
                "x0": band.start,
                "x1": band.end,
                "yref": "paper",
                "y0": 0,
                "y1": 1,
            }
            shapes.append(
                {
                    "type": "rect",
                    "fillcolor": color,
                    "opacity": 0.09,
                    "line": {"width": 0},
                    "layer": "below",
                }
                | where
            )
            at = {
                "xref": f"x{column}",
                "x": (band.start + band.end) / 2,
                "yref": "paper",
                "y": 1.0,
                "yanchor": "bottom",
            }
            text = {"text": f"<b>{band.stage}</b>", "hovertext": f"stage {band.stage}: {band.name}"}
            words.append(text | {"showarrow": False, "font": {"color": color, "size": 11}} | at)
    return {"shapes": shapes, "annotations": words}


def _titles(beneath: Curves | None) -> list[dict[str, Any]]:
    """Of each chart, and in place of a legend, which would take width, its curves in their
    colours.
    """
    titles = []
    for column, (title, names) in enumerate(_TITLES, start=1):
        if beneath is not None and column in {
            _PARENT[name] for name in _PARENT if beneath.points[name].x
        }:
            names = (*names, ("earlier run", theme.PLAN))
        words = " ".join(f'<span style="color:{color}">■ {name}</span>' for name, color in names)
        where = {
            "xref": f"x{column if column > 1 else ''} domain",
            "x": 0,
            "xanchor": "left",
            "align": "left",
        }
        where |= {
            "yref": "paper",
            "y": 1.0,
            "yanchor": "bottom",
            "yshift": 16,
            "showarrow": False,
            "font": {"size": 12},
        }
        titles.append({"text": f"<b>{title}</b><br>{words}"} | where)
    return titles


def trace_data(points: Points, most: int | None = None) -> dict[str, Any]:
    """What changes of a trace while a run goes on."""
    x, y, steps = points.arrays(most)
    return {"x": x, "y": y, "customdata": steps}


def _trace(name: str, curves: Curves, most: int | None) -> go.Scatter:
    _, color, line, more = _STYLE[name]
    line = {"color": color, "width": 2, "shape": "vh" if name.startswith("LR") else "linear"} | line
    digits = ".3g" if name.startswith("LR") else ".3f"
    more = {
        "mode": "lines",
        "marker": {"size": 6},
        "hovertemplate": f"%{{y:{digits}}} (step %{{customdata}})",
    } | more
    return go.Scatter(name=name, line=line, **more, **trace_data(curves.points[name], most))


def _parent_trace(name: str, beneath: Curves, most: int | None) -> go.Scatter:
    line, points = {"color": theme.PLAN, "width": 4, "dash": "dot"}, beneath.points[name]
    more = {"mode": "lines", "visible": bool(points.x), "zorder": -1}
    return go.Scatter(name=f"{name}, parent", line=line, **more, **trace_data(points, most))


def planned_lr(recipe: Recipe, batches_per_epoch: int) -> go.Figure:
    """The promised LR of every step, before any training."""
    planned = plan.preview(recipe, batches_per_epoch)
    figure = go.Figure()
    start = 0
    for number, stage in enumerate(recipe.stages, start=1):
        own = [p for p in planned if p.stage == number]
        figure.add_scatter(
            name=f"{number} {stage.name}: {plan.describe(stage)}",
            x=[p.epoch for p in own],
            y=[p.lr for p in own],
            mode="lines",
            line={"color": theme.stage_color(number), "shape": "vh"},
            customdata=[p.step for p in own],
            hovertemplate="step %{customdata}: %{y:.3g}",
        )
        _band(figure, number, stage.name, start, start + stage.epochs)
        start += stage.epochs
    figure.update_yaxes(title_text="learning rate", type="log", exponentformat="power", dtick=1)
    figure.update_xaxes(title_text="epoch")
    legend = {"orientation": "h", "y": -0.25}
    return figure.update_layout(template=theme.TEMPLATE, height=380, legend=legend)


def freeze_map(rows: Sequence[tuple[str, Sequence[dict[str, Any]]]]) -> go.Figure:
    """Which parts train: a row for each (label, parts), a cell for each part with its `name`,
    `trains`, `parameters`.
    """
    names = [p["name"] for p in rows[0][1]]
    short = [_SHORT.get(n, n.removeprefix("block ")) for n in names]
    z = [[int(p["trains"]) for p in parts] for _, parts in rows]
    text = [
        [
            f"{p['name']}: {p['parameters']:,} parameters, {'trains' if p['trains'] else 'frozen'}"
            for p in parts
        ]
        for _, parts in rows
    ]
    figure = go.Figure(
        go.Heatmap(
            z=z,
            x=list(range(len(names))),
            y=[label for label, _ in rows],
            text=text,
            hovertemplate="%{text}<extra></extra>",
            xgap=3,
            ygap=5,
            zmin=0,
            zmax=1,
            showscale=False,
            colorscale=[[0, theme.FROZEN], [1, theme.TRAINED]],
        )
    )
    for label, color in (("frozen", theme.FROZEN), ("trains", theme.TRAINED)):
        marker = {"color": color, "symbol": "square", "size": 12}
        figure.add_scatter(x=[None], y=[None], mode="markers", name=label, marker=marker)
    figure.update_xaxes(
        tickvals=list(range(len(names))), ticktext=short, side="top", showgrid=False, ticks=""
    )
    figure.update_yaxes(
        autorange="reversed", showgrid=False, ticks="", type="category", automargin=True
    )
    legend = {"orientation": "h", "y": -0.05, "yanchor": "top"}
    return figure.update_layout(template=theme.TEMPLATE, height=110 + 42 * len(rows), legend=legend)


def freeze_map_of(events: Iterable[Event]) -> go.Figure:
    """The freeze map of a run, a row for each stage begun."""
    started = [e for e in events if isinstance(e, StageStarted)]
    return freeze_map([(f"{e.stage} {e.name}", e.parts) for e in started])


def class_map(events: Iterable[Event]) -> go.Figure:
    """IoU of every class over epochs. Absent classes stay blank."""
    events = list(events)
    classes = next(e.classes for e in events if isinstance(e, RunStarted))
    ended = [e for e in events if isinstance(e, EpochEnded)]
    z = [[e.validation["per_class_iou"][i] for e in ended] for i in range(len(classes))]
    bar = {"title": "IoU", "thickness": 12}
    hover = "epoch %{x}, %{y}: %{z:.3f}<extra></extra>"
    x = [e.epoch for e in ended]
    figure = go.Figure(
        go.Heatmap(
            z=z,
            x=x,
            y=classes,
            zmin=0,
            zmax=1,
            colorscale="Cividis",
            colorbar=bar,
            hovertemplate=hover,
        )
    )
    figure.update_yaxes(autorange="reversed", type="category", automargin=True, showgrid=False)
    figure.update_xaxes(title_text="epoch", showgrid=False)
    return figure.update_layout(template=theme.TEMPLATE, height=140 + 26 * len(classes))


_SHORT = {"embeddings": "E", "final norm": "N", "decoder": "decoder"}


def _band(figure: go.Figure, stage: int, name: str, start: float, end: float) -> None:
    figure.add_vrect(
        x0=start,
        x1=end,
        fillcolor=theme.stage_color(stage),
        opacity=0.09,
        line_width=0,
        layer="below",
    )
    figure.add_annotation(
        x=(start + end) / 2,
        y=1.0,
        yref="paper",
        yanchor="bottom",
        text=f"{stage} {name}",
        showarrow=False,
        font={"color": theme.stage_color(stage)},
    )
