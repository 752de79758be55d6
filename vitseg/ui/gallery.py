"""Looking at a result in a notebook: read it under a bar, the best and the worst images, what was
taken for what.
"""

from __future__ import annotations

from functools import partial

import ipywidgets as w
from PIL import Image
from tqdm.auto import tqdm

from vitseg.data.dataset import SegmentationData
from vitseg.insight.reading import Predict, Reading, probabilities, read_images
from vitseg.model.segmenter import Segmenter
from vitseg.ui import markup, pictures, result
from vitseg.ui.screen import live_figure
from vitseg.ui.table import number_or_na
from vitseg.ui.widgets import Fit


def read(
    model: Segmenter, data: SegmentationData, split: str = "validation", by: Predict = probabilities
) -> Reading:
    """Predict the images of a split, under a bar if it takes longer than a moment, and count what
    can be counted.

    `by` says how: `vitseg.probabilities`, or `vitseg.flipped` for test-time augmentation. Raises
    ConfigError for a split that holds no images.
    """
    bar = partial(tqdm, desc=split, unit="image", leave=False, delay=1.0, disable=None)
    return read_images(model, data, split, by, bar)


def gallery(
    reading: Reading, model: Segmenter, data: SegmentationData, each: int = 2, side: int = 150
) -> Image.Image:
    """The best images, those around the median, and the worst, each with truth, prediction and
    where they disagree.
    """
    iou = dict(zip(reading.names, map(number_or_na, reading.iou_by_image()), strict=True))
    parts, titles = [], []
    for kind, names in reading.examples(each).items():
        scores = ", ".join(f"{name} (IoU {iou[name]})" for name in names)
        titles.append(f"{kind}: {scores}")
        parts.append(pictures.predictions(model, data, names, side))
    return pictures.column(parts, titles)


def show_confusions(
    reading: Reading, model: Segmenter, data: SegmentationData, most: int = 3, side: int = 150
) -> w.VBox:
    """The confusion matrix as a panel: click a cell, or choose two classes, to see the images where
    it happened most.
    """
    names = [(name, i) for i, name in enumerate(reading.classes)]
    mistakes = reading.matrix.clone().fill_diagonal_(0)
    worst = divmod(int(mistakes.argmax()), len(names))
    truth = w.Dropdown(options=names, value=worst[0], description="Truth")
    prediction = w.Dropdown(options=names, value=worst[1], description="Prediction")
    figure, shown = live_figure(result.confusion_figure(reading)), w.HTML()

    def draw(_: object = None) -> None:
        found = reading.confused(truth.value, prediction.value)
        words = (
            f"{sum(n for _, n in found):,} pixels of {truth.label!r} were taken for "
            f"{prediction.label!r}, in {len(found)} of {len(reading.names)} images"
        )
        picture = ""
        if found:
            words += ": " + ", ".join(f"{name} ({n:,})" for name, n in found[:most])
            some = [name for name, _ in found[:most]]
            picture = pictures.data_uri(pictures.predictions(model, data, some, side))
        shown.value = markup.html(markup.render("sheet", figures=[(words, picture)]))

    def clicked(_: object, points: object, __: object) -> None:
        if points.point_inds:
            truth.value, prediction.value = points.point_inds[0]

    figure.data[0].on_click(clicked)
    truth.observe(draw, "value")
    prediction.observe(draw, "value")
    draw()
    return w.VBox([w.HTML(markup.STYLE), figure, Fit(), w.HBox([truth, prediction]), shown])
