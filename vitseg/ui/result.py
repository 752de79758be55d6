"""A result as figures and tables: pure functions of a Reading. What is shown is what
`vitseg.insight` has counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

import numpy as np
import pandas as pd
import plotly.express as px
import plotly.graph_objects as go

from vitseg.images import color_of
from vitseg.insight.reading import TOLERANCE, Reading
from vitseg.ui import theme
from vitseg.ui.table import Table, number_or_na


def score_card(reading: Reading, batch_size: int = 8) -> Table:
    """Three ways to say "IoU" of the same predictions, with the interval over images."""
    how = {
        "data set": "all pixels in one matrix: what training logs",
        "images": "the mean over images: a small object counts as much as a large one",
        "batches": f"the mean over batches of {batch_size}: depends on their order",
    }
    rows = []
    for over, mean in reading.means(batch_size).items():
        rows.append((over, how[over], number_or_na(mean)))
    interval, error = str(reading.interval() or "n/a"), f"{reading.calibration.error():.3f}"
    rows.append(("", "95 % of resampled sets of images, as data set, lie in", interval))
    rows.append(("calibration error", "mean |confidence - accuracy|", error))
    caption = f"{len(reading.names)} {reading.split} images, at their own size"
    return Table(("IoU over", "how", "value"), rows, caption)


def class_scores(reading: Reading) -> Table:
    """A row a class: how common it is, how well it is met, how far its border is off."""
    rows = []
    for i, (name, share, iou) in enumerate(_of_classes(reading)):
        borders = [b for b in reading.borders if b.class_id == i]
        things = sum(thing.class_id == i for thing in reading.things)
        off, met = "", ""
        if borders:
            off = f"{median(b.distance for b in borders):.1f}"
            met = f"{100 * median(b.within for b in borders):.0f} %"
        rows.append((name, f"{share:.2f} %", str(things or ""), number_or_na(iou), off, met))
    within = f"of it within {TOLERANCE:g} pixels"
    caption = "Border errors: the median over images that hold the class and a prediction of it"
    heads = ("class", "pixels", "objects", "IoU", "border off by, pixels", within)
    return Table(heads, rows, caption)


def confusion_figure(reading: Reading, of: str = "truth") -> go.Figure:
    """Which class was taken for which, as shares of the truth (rows) or of the prediction
    (columns).
    """
    names, shares = _names(reading), reading.shares(of).numpy()
    hover = f"%{{customdata:,}} pixels of %{{y}} were taken for %{{x}}: %{{z:.3~p}} of the {of}"
    figure = _map(shares, names, names, hover, f"Confusion, shares of the {of}")
    figure.update_traces(customdata=reading.matrix.numpy(), zmin=0, zmax=1)
    return figure.update_layout(xaxis_title="prediction", yaxis_title="truth")


def size_figure(reading: Reading) -> go.Figure:
    """IoU of every object against its size; a line through the means of eighths of them."""
    size, iou = "pixels of the object", "IoU of the object"
    things = pd.DataFrame(reading.things, columns=["name", "class", size, "found", iou])
    things = things.sort_values(size)
    things["name"] = things["name"].map(theme.literal)
    things["class"] = things["class"].map(dict(enumerate(_names(reading))))
    eighths = things.groupby(np.arange(len(things)) * 8 // max(1, len(things)))
    x, y = eighths[size].median(), eighths[iou].mean()
    found = {"found": ":.0%"}
    figure = _dots(reading, things, size, iou, hover_name="name", hover_data=found)
    figure.add_scatter(x=x, y=y, name="mean of an eighth", line_color=theme.TEXT)
    return _titled(figure, "Small objects are lost first")


def frequency_figure(reading: Reading) -> go.Figure:
    """IoU of each class against how common it is."""
    share = "per cent of all pixels"
    classes = pd.DataFrame(_of_classes(reading), columns=["class", share, "IoU"])
    classes["class"] = _names(reading)
    figure = _dots(reading, classes.dropna(), share, "IoU", text="class")
    figure.update_traces(textposition="top center", cliponaxis=False, showlegend=False)
    return _titled(figure, "Rare classes and common ones")


def _dots(reading: Reading, rows: pd.DataFrame, x: str, y: str, **more: Any) -> go.Figure:
    """A dot a row, in the colour of its class; of class 0, which would be black, a grey."""
    colors = {}
    for i, name in enumerate(_names(reading)):
        colors[name] = "rgb({}, {}, {})".format(*color_of(i)) if i else theme.PLAN
    look = {"color": "class", "color_discrete_map": colors, "log_x": True, "render_mode": "svg"}
    return px.scatter(rows, x=x, y=y, range_y=[-0.05, 1.1], **look, **more)


def calibration_figure(reading: Reading) -> go.Figure:
    """How often it was right, against how sure it was; bars: the share of the pixels."""
    columns = ["confidence", "accuracy", "share of pixels"]
    curve = pd.DataFrame(reading.calibration.curve(), columns=columns)
    curve["perfect calibration"] = curve["confidence"]
    figure = px.line(curve, x="confidence", y=["accuracy", "perfect calibration"], markers=True)
    figure.add_bar(x=curve["confidence"], y=curve["share of pixels"], name="share of pixels")
    figure.update_layout(yaxis_title="share", legend_title="")
    return _titled(figure, f"Calibration: off by {reading.calibration.error():.3f} on average")


def drift_figure(moved: Mapping[int, Mapping[str, float]]) -> go.Figure:
    """How far each part of the encoder has moved by the end of each stage; dark is unmoved
    (`vitseg.drift`).
    """
    ways, title = pd.DataFrame(moved).T, "Way from the pretrained weights, relative to their length"
    stages = [f"stage {stage}" for stage in moved]
    return _map(ways, list(ways), stages, "%{y}, %{x}: %{z:.3~p}", title)


def _of_classes(reading: Reading) -> list[tuple[str, float, float | None]]:
    """Name, per cent of the pixels and IoU of each class."""
    pixels = reading.matrix.sum(1).double()
    shares = (100 * pixels / pixels.sum()).tolist()
    return list(zip(reading.classes, shares, reading.scores()["per_class_iou"], strict=True))


def _names(reading: Reading) -> list[str]:
    return list(map(theme.literal, reading.classes))


def _map(shares: Any, x: Sequence[str], y: Sequence[str], hover: str, title: str) -> go.Figure:
    """A heat map of shares, which stand in it; nan is empty."""
    hover, text = f"{hover}<extra></extra>", "%{z:.3~p}"
    heat = go.Heatmap(z=shares, x=x, y=y, hovertemplate=hover, texttemplate=text)
    figure = _titled(go.Figure(heat), title).update_layout(height=170 + 36 * len(y))
    figure.update_xaxes(type="category")
    return figure.update_yaxes(type="category", autorange="reversed", automargin=True)


def _titled(figure: go.Figure, title: str) -> go.Figure:
    return figure.update_layout(template=theme.TEMPLATE, title_text=title, height=360)
