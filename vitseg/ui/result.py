"""A result as figures and tables: pure functions of a Reading. What is shown is what
`vitseg.insight` has counted.
"""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from statistics import fmean, median

import numpy as np
import plotly.graph_objects as go

from vitseg.images import color_of
from vitseg.insight.reading import TOLERANCE, Reading
from vitseg.ui import theme
from vitseg.ui.table import Table, number_or_na


def score_card(reading: Reading, batch_size: int = 8) -> Table:
    """Three ways to say "IoU" of the same predictions, with the interval over images."""
    means, interval = reading.means(batch_size), reading.interval()
    rows = (
        (
            "data set",
            "all pixels in one matrix: what training logs",
            number_or_na(means["data set"]),
        ),
        ("", "95 % of resampled sets of images lie in", str(interval) if interval else "n/a"),
        (
            "images",
            "the mean over images: a small object counts as much as a large one",
            number_or_na(means["images"]),
        ),
        (
            "batches",
            f"the mean over batches of {batch_size}: depends on their order",
            number_or_na(means["batches"]),
        ),
        (
            "calibration error",
            "how far sureness and success are apart",
            f"{reading.calibration.error():.3f}",
        ),
    )
    return Table(
        ("IoU over", "how", "value"),
        rows,
        f"{len(reading.names)} {reading.split} images, at their own size",
    )


def class_scores(reading: Reading) -> Table:
    """A row a class: how common it is, how well it is met, how far its border is off."""
    scores, pixels = reading.scores(), reading.matrix.sum(1).double()
    rows = []
    for i, name in enumerate(reading.classes):
        borders = [b for b in reading.borders if b.class_id == i]
        off = f"{median(b.distance for b in borders):.1f}" if borders else ""
        met = f"{100 * median(b.within for b in borders):.0f} %" if borders else ""
        share = f"{100 * float(pixels[i] / pixels.sum()):.2f} %"
        things = str(sum(t.class_id == i for t in reading.things) or "")
        rows.append((name, share, things, number_or_na(scores["per_class_iou"][i]), off, met))
    heads = (
        "class",
        "pixels",
        "objects",
        "IoU",
        "border off by, pixels",
        f"of it within {TOLERANCE:g} pixels",
    )
    return Table(
        heads,
        tuple(rows),
        "Border errors: the median over images that hold the class and a prediction of it",
    )


def confusion_figure(reading: Reading, of: str = "truth") -> go.Figure:
    """Which class was taken for which, as shares of the truth (rows) or of the prediction
    (columns).
    """
    shares, counts = reading.shares(of).numpy(), reading.matrix.numpy()
    text = np.vectorize(
        lambda s: (
            "" if np.isnan(s) else "0" if s == 0 else "<0.1" if s < 0.001 else f"{100 * s:.1f}"
        )
    )(shares)
    hover = (
        "%{customdata:,} pixels of %{y} were taken for %{x}: %{text} %"
        + f" of the {of}<extra></extra>"
    )
    names = list(map(escape, reading.classes))
    look = {
        "colorscale": "Cividis",
        "zmin": 0,
        "zmax": 1,
        "showscale": False,
        "xgap": 3,
        "ygap": 3,
        "texttemplate": "%{text}",
    }
    figure = go.Figure(
        go.Heatmap(
            z=shares, x=names, y=names, text=text, customdata=counts, hovertemplate=hover, **look
        )
    )
    figure.update_xaxes(
        title_text="prediction", showgrid=False, ticks="", side="top", type="category"
    )
    figure.update_yaxes(
        title_text="truth",
        title_standoff=14,
        showgrid=False,
        ticks="",
        autorange="reversed",
        automargin=True,
        type="category",
    )
    figure = _titled(
        figure,
        f"Confusion, per cent of the {of}",
        170 + 36 * len(names),
        margin={"t": 120, "b": 24},
    )
    return figure.update_layout(title_y=0.98, title_yanchor="top")


def size_figure(reading: Reading) -> go.Figure:
    """IoU of every object against its size; a line through the means of eighths of them."""
    figure = go.Figure()
    for i, name in enumerate(reading.classes):
        mine = [t for t in reading.things if t.class_id == i]
        if mine:
            hover = [f"{t.name}: {t.pixels:,} pixels, {100 * t.found:.0f} % found" for t in mine]
            dot = {"size": 6, "opacity": 0.6, "color": _color(i)}
            figure.add_scatter(
                x=[t.pixels for t in mine],
                y=[t.iou for t in mine],
                mode="markers",
                name=name,
                marker=dot,
                text=hover,
                hovertemplate="%{text}, IoU %{y:.2f}<extra></extra>",
            )
    ordered = sorted(reading.things, key=lambda t: t.pixels)
    parts = [part for part in np.array_split(np.arange(len(ordered)), 8) if len(part)]
    figure.add_scatter(
        x=[median(ordered[i].pixels for i in part) for part in parts],
        y=[fmean(ordered[i].iou for i in part) for part in parts],
        name="mean of an eighth",
        mode="lines+markers",
        line={"color": theme.TEXT, "width": 2.5},
    )
    figure.update_xaxes(type="log", title_text="pixels of the object")
    figure.update_yaxes(title_text="IoU of the object", range=[-0.03, 1.03])
    return _titled(figure, "Small objects are lost first", 380)


def frequency_figure(reading: Reading) -> go.Figure:
    """IoU of each class against how common it is."""
    pixels, scores = reading.matrix.sum(1).double(), reading.scores()["per_class_iou"]
    known = [i for i, iou in enumerate(scores) if iou is not None]
    figure = go.Figure(
        go.Scatter(
            x=[100 * float(pixels[i] / pixels.sum()) for i in known],
            y=[scores[i] for i in known],
            text=[reading.classes[i] for i in known],
            mode="markers+text",
            textposition="top center",
            marker={"size": 11, "color": [_color(i) for i in known]},
            hovertemplate="%{text}: %{x:.2f} % of the pixels, IoU %{y:.3f}<extra></extra>",
            cliponaxis=False,
        )
    )
    figure.update_xaxes(type="log", title_text="per cent of all pixels")
    figure.update_yaxes(title_text="IoU", range=[-0.03, 1.1])
    return _titled(figure, "Rare classes and common ones", 340)


def calibration_figure(reading: Reading) -> go.Figure:
    """How often it was right, against how sure it was; bars: the share of the pixels."""
    curve = reading.calibration.curve()
    sure, right, share = ([point[k] for point in curve] for k in range(3))
    figure = go.Figure()
    figure.add_bar(
        x=sure,
        y=share,
        width=0.05,
        name="share of pixels",
        marker={"color": theme.FROZEN, "opacity": 0.6},
    )
    figure.add_scatter(
        x=[0, 1],
        y=[0, 1],
        mode="lines",
        name="as sure as right",
        line={"color": theme.PLAN, "dash": "dot"},
    )
    figure.add_scatter(
        x=sure,
        y=right,
        mode="lines+markers",
        name="right answers",
        line={"color": theme.VALID, "width": 2.5},
    )
    figure.update_xaxes(title_text="probability of the answer", range=[0, 1.03])
    figure.update_yaxes(title_text="share", range=[0, 1.03])
    return _titled(figure, f"Calibration: off by {reading.calibration.error():.3f} on average", 360)


def drift_figure(moved: Mapping[int, Mapping[str, float]]) -> go.Figure:
    """How far each part of the encoder has moved by the end of each stage; dark is unmoved
    (`vitseg.drift`).
    """
    parts = list(next(iter(moved.values())))
    z = [[100 * moved[stage][part] for part in parts] for stage in moved]
    text = [["0" if value == 0 else f"{value:.2g}" for value in row] for row in z]
    names = [part.removeprefix("block ") for part in parts]
    look = {
        "colorscale": "Cividis",
        "showscale": False,
        "xgap": 3,
        "ygap": 3,
        "texttemplate": "%{text}",
        "zmin": 0,
    }
    hover = "%{y}, %{x}: %{text} %<extra></extra>"
    figure = go.Figure(
        go.Heatmap(
            z=z, x=names, y=[f"stage {s}" for s in moved], text=text, hovertemplate=hover, **look
        )
    )
    figure.update_xaxes(showgrid=False, ticks="", type="category")
    figure.update_yaxes(
        showgrid=False, ticks="", autorange="reversed", automargin=True, type="category"
    )
    return _titled(
        figure, "Way from the pretrained weights, per cent of their length", 130 + 42 * len(z)
    )


def _color(class_id: int) -> str:
    return "rgb({}, {}, {})".format(*color_of(class_id)) if class_id else theme.PLAN


def _titled(figure: go.Figure, title: str, height: int, **layout: object) -> go.Figure:
    return figure.update_layout(template=theme.TEMPLATE, title=title, height=height, **layout)
