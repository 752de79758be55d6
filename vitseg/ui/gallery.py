"""Looking at a result in a notebook: the best and the worst images, what was taken for what."""

from __future__ import annotations

import ipywidgets as w
from PIL import Image

from vitseg.data.dataset import SegmentationData
from vitseg.insight.reading import Reading
from vitseg.model.segmenter import Segmenter
from vitseg.ui import markup, pictures, result
from vitseg.ui.screen import live_figure
from vitseg.ui.widgets import Fit


def gallery(
    reading: Reading, model: Segmenter, data: SegmentationData, each: int = 2, side: int = 150
) -> Image.Image:
    """The best images, those around the median, and the worst, each with truth, prediction and
    where they disagree.
    """
    iou, parts, titles = reading.iou_by_image(), [], []
    for kind, names in reading.examples(each).items():
        scores = ", ".join(f"{name} (IoU {iou[name]:.3f})" for name in names)
        titles.append(f"{kind}: {scores}")
        parts.append(pictures.predictions(model, data, names, side))
    return pictures.column(parts, titles)


def show_confusions(
    reading: Reading, model: Segmenter, data: SegmentationData, most: int = 3, side: int = 150
) -> w.VBox:
    """The confusion matrix as a panel: click a cell, or choose two classes, to see the images where
    it happened most.
    """
    mistakes = reading.matrix.clone().fill_diagonal_(0)
    worst = divmod(int(mistakes.argmax()), len(mistakes))
    truth = w.Dropdown(options=reading.classes, index=worst[0], description="Truth")
    prediction = w.Dropdown(options=reading.classes, index=worst[1], description="Prediction")
    figure, shown = live_figure(result.confusion_figure(reading)), w.HTML()

    def draw(_: object = None) -> None:
        found = reading.confused(truth.value, prediction.value)
        words = (
            f"{found.sum():,} pixels of {truth.value!r} were taken for {prediction.value!r}, in "
            f"{len(found)} of {len(reading.names)} images"
        )
        picture, some = "", found.head(most)
        if len(found):
            words += ": " + ", ".join(f"{name} ({n:,})" for name, n in some.items())
            sheet = pictures.predictions(model, data, list(some.index), side)
            picture = pictures.data_uri(sheet)
        shown.value = markup.html(markup.render("sheet", figures=[(words, picture)]))

    def clicked(_: object, points: object, __: object) -> None:
        if points.point_inds:
            truth.index, prediction.index = points.point_inds[0]

    figure.data[0].on_click(clicked)
    truth.observe(draw, "value")
    prediction.observe(draw, "value")
    draw()
    return w.VBox([w.HTML(markup.STYLE), figure, Fit(), w.HBox([truth, prediction]), shown])
