"""A result as figures and tables: pure functions of a Reading. What is shown is what
`vitseg.insight` has counted.
"""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean, median

import numpy as np
import plotly.graph_objects as go

from vitseg.images import color_of
from vitseg.insight.reading import TOLERANCE, Reading, Thing
from vitseg.ui import theme
from vitseg.ui.table import Table, number_or_na


def score_card(reading: Reading, batch_size: int = 8) -> Table:
    """Three ways to say "IoU" of the same predictions, with the interval over images."""
    means, interval = reading.means(batch_size), reading.interval()
    iou = {over: number_or_na(mean) for over, mean in means.items()}
    rows = (
        ("data set", "all pixels in one matrix: what training logs", iou["data set"]),
        ("", "95 % of resampled sets of images lie in", str(interval or "n/a")),
        (
            "images",
            "the mean over images: a small object counts as much as a large one",
            iou["images"],
        ),
        (
            "batches",
            f"the mean over batches of {batch_size}: depends on their order",
            iou["batches"],
        ),
        (
            "calibration error",
            "how far sureness and success are apart",
            f"{reading.calibration.error():.3f}",
        ),
    )
    caption = f"{len(reading.names)} {reading.split} images, at their own size"
    return Table(("IoU over", "how", "value"), rows, caption)


def class_scores(reading: Reading) -> Table:
    """A row a class: how common it is, how well it is met, how far its border is off."""
    rows = []
    for i, (name, share, iou) in enumerate(_of_classes(reading)):
        borders = [b for b in reading.borders if b.class_id == i]
        off, met = "", ""
        if borders:
            off = f"{median(b.distance for b in borders):.1f}"
            met = f"{100 * median(b.within for b in borders):.0f} %"
        things = len(_things(reading, i))
        rows.append((name, f"{share:.2f} %", str(things or ""), number_or_na(iou), off, met))
    within = f"of it within {TOLERANCE:g} pixels"
    caption = "Border errors: the median over images that hold the class and a prediction of it"
    heads = ("class", "pixels", "objects", "IoU", "border off by, pixels", within)
    return Table(heads, tuple(rows), caption)


def confusion_figure(reading: Reading, of: str = "truth") -> go.Figure:
    """Which class was taken for which, as shares of the truth (rows) or of the prediction
    (columns).
    """
    shares, names = reading.shares(of).numpy(), list(map(theme.literal, reading.classes))
    heat = go.Heatmap(
        z=shares,
        x=names,
        y=names,
        zmax=1,
        text=np.vectorize(_per_cent)(shares),
        customdata=reading.matrix.numpy(),
        hovertemplate=(
            "%{customdata:,} pixels of %{y} were taken for %{x}: %{text} % "
            f"of the {of}<extra></extra>"
        ),
    )
    figure = _map(heat, f"Confusion, per cent of the {of}", 170 + 36 * len(names))
    figure.update_xaxes(title_text="prediction", side="top")
    figure.update_yaxes(title={"text": "truth", "standoff": 14})
    title = {"y": 0.98, "yanchor": "top"}
    return figure.update_layout(title=title, margin={"t": 120, "b": 24})


def _per_cent(share: float) -> str:
    if np.isnan(share):
        return ""
    if share == 0:
        return "0"
    return "<0.1" if share < 0.001 else f"{100 * share:.1f}"


def size_figure(reading: Reading) -> go.Figure:
    """IoU of every object against its size; a line through the means of eighths of them."""
    figure = go.Figure()
    for i, name in enumerate(map(theme.literal, reading.classes)):
        mine, hover = _things(reading, i), []
        for t in mine:
            found = f"{t.pixels:,} pixels, {100 * t.found:.0f} % found"
            hover.append(f"{theme.literal(t.name)}: {found}")
        if mine:
            figure.add_scatter(
                x=[t.pixels for t in mine],
                y=[t.iou for t in mine],
                mode="markers",
                name=name,
                marker={"size": 6, "opacity": 0.6, "color": _color(i)},
                text=hover,
                hovertemplate="%{text}, IoU %{y:.2f}<extra></extra>",
            )
    ordered, sizes, means = sorted(reading.things, key=lambda t: t.pixels), [], []
    for part in np.array_split(np.arange(len(ordered)), 8):
        if len(part):
            sizes.append(median(ordered[i].pixels for i in part))
            means.append(fmean(ordered[i].iou for i in part))
    line = {"color": theme.TEXT, "width": 2.5}
    figure.add_scatter(x=sizes, y=means, name="mean of an eighth", mode="lines+markers", line=line)
    figure.update_xaxes(type="log", title_text="pixels of the object")
    figure.update_yaxes(title_text="IoU of the object", range=[-0.03, 1.03])
    return _titled(figure, "Small objects are lost first", 380)


def frequency_figure(reading: Reading) -> go.Figure:
    """IoU of each class against how common it is."""
    names, shares, ious, colors = [], [], [], []
    for i, (name, share, iou) in enumerate(_of_classes(reading)):
        if iou is not None:
            names.append(theme.literal(name))
            shares.append(share)
            ious.append(iou)
            colors.append(_color(i))
    dots = go.Scatter(
        x=shares,
        y=ious,
        text=names,
        mode="markers+text",
        textposition="top center",
        marker={"size": 11, "color": colors},
        hovertemplate="%{text}: %{x:.2f} % of the pixels, IoU %{y:.3f}<extra></extra>",
        cliponaxis=False,
    )
    figure = go.Figure(dots)
    figure.update_xaxes(type="log", title_text="per cent of all pixels")
    figure.update_yaxes(title_text="IoU", range=[-0.03, 1.1])
    return _titled(figure, "Rare classes and common ones", 340)


def calibration_figure(reading: Reading) -> go.Figure:
    """How often it was right, against how sure it was; bars: the share of the pixels."""
    sure, right, share = zip(*reading.calibration.curve(), strict=True)
    bars = {"color": theme.FROZEN, "opacity": 0.6}
    diagonal = {"color": theme.PLAN, "dash": "dot"}
    line = {"color": theme.VALID, "width": 2.5}
    figure = go.Figure()
    figure.add_bar(x=sure, y=share, width=0.05, name="share of pixels", marker=bars)
    figure.add_scatter(x=[0, 1], y=[0, 1], mode="lines", name="as sure as right", line=diagonal)
    figure.add_scatter(x=sure, y=right, mode="lines+markers", name="right answers", line=line)
    figure.update_xaxes(title_text="probability of the answer", range=[0, 1.03])
    figure.update_yaxes(title_text="share", range=[0, 1.03])
    return _titled(figure, f"Calibration: off by {reading.calibration.error():.3f} on average", 360)


def drift_figure(moved: Mapping[int, Mapping[str, float]]) -> go.Figure:
    """How far each part of the encoder has moved by the end of each stage; dark is unmoved
    (`vitseg.drift`).
    """
    names, z, text = [], [], []
    for parts in moved.values():
        names = list(parts)
        for block in range(1, len(names) - 1):  # between embeddings and final norm
            names[block] = str(block)
        z.append([100 * value for value in parts.values()])
        text.append([f"{value:.2g}" for value in z[-1]])
    heat = go.Heatmap(
        z=z,
        x=names,
        y=[f"stage {stage}" for stage in moved],
        text=text,
        hovertemplate="%{y}, %{x}: %{text} %<extra></extra>",
    )
    title = "Way from the pretrained weights, per cent of their length"
    return _map(heat, title, 130 + 42 * len(z))


def _of_classes(reading: Reading) -> list[tuple[str, float, float | None]]:
    """Name, per cent of the pixels and IoU of each class."""
    pixels = reading.matrix.sum(1).double()
    shares = (100 * pixels / pixels.sum()).tolist()
    return list(zip(reading.classes, shares, reading.scores()["per_class_iou"], strict=True))


def _things(reading: Reading, class_id: int) -> list[Thing]:
    return [thing for thing in reading.things if thing.class_id == class_id]


def _color(class_id: int) -> str:
    return "rgb({}, {}, {})".format(*color_of(class_id)) if class_id else theme.PLAN


def _map(heat: go.Heatmap, title: str, height: int) -> go.Figure:
    """A heat map of named rows and columns, with its numbers in it."""
    look = {"colorscale": "Cividis", "showscale": False, "xgap": 3, "ygap": 3, "zmin": 0}
    figure = go.Figure(heat.update(look, texttemplate="%{text}"))
    axis = {"showgrid": False, "ticks": "", "type": "category"}
    figure.update_xaxes(axis)
    figure.update_yaxes(axis, autorange="reversed", automargin=True)
    return _titled(figure, title, height)


def _titled(figure: go.Figure, title: str, height: int) -> go.Figure:
    return figure.update_layout(template=theme.TEMPLATE, title_text=title, height=height)
