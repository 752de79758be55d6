"""A result as figures and tables: pure functions of a Reading. What is shown is what
`vitseg.insight` has counted.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.express as px
import plotly.graph_objects as go

from vitseg.images import PALETTE
from vitseg.insight.reading import TOLERANCE, Reading, in_text
from vitseg.ui import theme
from vitseg.ui.table import Table


def score_card(reading: Reading, batch_size: int = 8) -> Table:
    """Three ways to say "IoU" of the same predictions, with the interval over images."""
    caption = f"{len(reading.names)} {reading.split} images, at their own size"
    return Table(*in_text(reading.summary(batch_size)), caption)


def class_scores(reading: Reading) -> Table:
    """A row a class: how well it is met, how common it is, how far its border is off."""
    caption = (
        f"distance: from border to border, in pixels; within: at most {TOLERANCE:g} to go; medians "
        f"over images that hold the class and a prediction of it"
    )
    return Table(*in_text(reading.by_class()), caption)


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
    things = reading.things.sort_values("pixels")
    eighths = things.groupby(np.arange(len(things)) * 8 // max(1, len(things)))
    x, y = eighths["pixels"].median(), eighths["IoU"].mean()
    things["name"] = things["name"].map(theme.literal)
    figure = _dots(reading, things, "pixels", hover_name="name", hover_data={"found": ":.0%"})
    figure.add_scatter(x=x, y=y, name="mean of an eighth", line_color=theme.TEXT)
    return _titled(figure, "Small objects are lost first")


def frequency_figure(reading: Reading) -> go.Figure:
    """IoU of each class against how common it is."""
    classes = reading.by_class().dropna(subset="IoU")
    figure = _dots(reading, classes, "share", text="class")
    figure.update_traces(textposition="top center", cliponaxis=False, showlegend=False)
    return _titled(figure, "Rare classes and common ones")


def _dots(reading: Reading, rows: pd.DataFrame, x: str, **more: Any) -> go.Figure:
    """A dot a row, its IoU over `x`, in the colour of its class; of class 0, which would be black,
    a grey.
    """
    names = _names(reading)
    rows["class"] = rows["class_id"].map(dict(enumerate(names)))
    return px.scatter(
        rows,
        x=x,
        y="IoU",
        color="class",
        category_orders={"class": names},
        color_discrete_sequence=[theme.PLAN, *(f"rgb{color}" for color in PALETTE[1:])],
        log_x=True,
        range_y=[-0.05, 1.1],
        render_mode="svg",
        **more,
    )


def calibration_figure(reading: Reading) -> go.Figure:
    """How often it was right, against how sure it was; bars: the share of the pixels."""
    curve = reading.calibration.curve()
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


def _names(reading: Reading) -> list[str]:
    return list(map(theme.literal, reading.classes))


def _map(shares: Any, x: Sequence[str], y: Sequence[str], hover: str, title: str) -> go.Figure:
    """A heat map of shares, which stand in it; nan is empty."""
    hover, text = f"{hover}<extra></extra>", "%{z:.3~p}"
    heat = go.Heatmap(z=shares, x=x, y=y, hovertemplate=hover, texttemplate=text)
    figure = _titled(go.Figure(heat), title).update_layout(height=170 + 36 * len(y))
    return figure.update_yaxes(autorange="reversed", automargin=True)


def _titled(figure: go.Figure, title: str) -> go.Figure:
    return figure.update_layout(template=theme.TEMPLATE, title_text=title, height=360)
