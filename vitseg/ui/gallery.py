"""Looking at a result in a notebook: read it under a bar, the best and the worst images, what was
taken for what.
"""

from __future__ import annotations

from collections.abc import Iterator

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

    def counted(names: list[str]) -> Iterator[str]:
        return iter(tqdm(names, desc=split, unit="image", leave=False, delay=1.0, disable=None))

    return read_images(model, data, split, by, counted)


def gallery(
    reading: Reading, model: Segmenter, data: SegmentationData, each: int = 2, side: int = 150
) -> Image.Image:
    """The best images, those around the median, and the worst, each with truth, prediction and
    where they disagree.
    """
    iou = dict(zip(reading.names, map(number_or_na, reading.iou_by_image()), strict=True))
    parts, titles = [], []
    for kind, names in reading.examples(each).items():
        scores = [f"{name} (IoU {iou[name]})" for name in names]
        titles.append(f"{kind}: {', '.join(scores)}")
        parts.append(pictures.predictions(model, data, names, side))
    return pictures.column(parts, titles)


def show_confusions(
    reading: Reading, model: Segmenter, data: SegmentationData, most: int = 3, side: int = 150
) -> w.VBox:
    """The confusion matrix as a panel: click a cell, or choose two classes, to see the images where
    it happened most.
    """
    names = [(name, i) for i, name in enumerate(reading.classes)]
    figure = live_figure(result.confusion_figure(reading))
    boxes, wide = [], {"width": "300px"}
    for label, worst in zip(("Truth", "Prediction"), _worst_cell(reading), strict=True):
        boxes.append(w.Dropdown(options=names, value=worst, description=label, layout=wide))
    truth, prediction = boxes
    shown = w.HTML()

    def draw(_: object = None) -> None:
        found = reading.confused(truth.value, prediction.value)
        words = (
            f"{sum(n for _, n in found):,} pixels of {reading.classes[truth.value]!r} were taken "
            f"for {reading.classes[prediction.value]!r}, "
            f"in {len(found)} of {len(reading.names)} images"
        )
        listed, picture = "", ""
        if found:
            listed = ": " + ", ".join(f"{name} ({n:,})" for name, n in found[:most])
            sheet = pictures.predictions(model, data, [name for name, _ in found[:most]], side)
            picture = pictures.data_uri(sheet)
        body = markup.render("picture", words=words, listed=listed, picture=picture)
        shown.value = markup.html(body)

    def clicked(_: object, points: object, __: object) -> None:
        if points.point_inds:
            truth.value, prediction.value = points.point_inds[0]

    figure.data[0].on_click(clicked)
    truth.observe(draw, "value")
    prediction.observe(draw, "value")
    draw()
    return w.VBox([w.HTML(markup.STYLE), figure, Fit(), w.HBox(boxes), shown])


def _worst_cell(reading: Reading) -> tuple[int, int]:
    """The commonest mistake."""
    wrong = reading.matrix.clone().fill_diagonal_(0)
    return divmod(int(wrong.argmax()), len(reading.classes))
