"""Pictures to look through in a notebook: an image in several of its views, each said to be what
it is; the best and the worst images of a result, and what was taken for what.
"""

from collections.abc import Callable

import ipywidgets as w
from PIL import Image

from vitseg.data.augment import view_name
from vitseg.data.dataset import SegmentationData
from vitseg.errors import VitsegError
from vitseg.insight.reading import Reading
from vitseg.model.segmenter import Segmenter
from vitseg.ui import markup, pictures, result, theme
from vitseg.ui.screen import live_figure
from vitseg.ui.widgets import Fit


def show_views(data: SegmentationData, columns: int = 4, side: int = 190) -> w.VBox:
    """A panel with an image picker and a view slider, for a cell of its own.

    It shows `columns` views from the chosen one on: the image as the network gets it, below it the
    mask laid over it, and what was done. Views are in the order in which the epochs of stage 1 show
    them.
    """
    count = 100 if data.cfg.views == "fresh" else data.cfg.views  # of fresh ones there is no end
    views = [view_name(data.cfg, 1, epoch) for epoch in range(1, count + 1)]
    options = [(f"{n} ({split})", n) for split, names in data.splits.items() for n in names]
    image = w.Dropdown(options=options, description="Image")
    view = w.IntSlider(max=max(0, count - columns), description="View", style=theme.HANDLE)
    view.disabled = view.max == 0

    def draw() -> Figures:
        figures = []
        for name in views[view.value :][:columns]:
            sample = data[image.value, name]
            mask = data.trained(sample.multiclass_mask).numpy()
            picture = pictures.with_mask(pictures.picture(sample.image), mask, side)
            figures.append((f"view {name}: {sample.made_by}", pictures.data_uri(picture)))
        key = pictures.legend(data.classes, columns * (side + 12))
        return [*figures, ("", pictures.data_uri(key))]

    return _panel(draw, image, view)


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
    return pictures.grid(parts, titles=titles)


def show_confusions(
    reading: Reading, model: Segmenter, data: SegmentationData, most: int = 3, side: int = 150
) -> w.VBox:
    """The confusion matrix as a panel: click a cell, or choose two classes, to see the images where
    it happened most.
    """
    mistakes = reading.matrix.clone().fill_diagonal_(0)
    worst, taken_for = divmod(int(mistakes.argmax()), len(mistakes))
    truth = w.Dropdown(options=reading.classes, index=worst, description="Truth")
    prediction = w.Dropdown(options=reading.classes, index=taken_for, description="Prediction")
    figure = live_figure(result.confusion_figure(reading))

    def draw() -> Figures:
        found = reading.confused(truth.value, prediction.value)
        words = (
            f"{found.sum():,} pixels of {truth.value!r} were taken for {prediction.value!r}, in "
            f"{len(found)} of {len(reading.names)} images"
        )
        if found.empty:
            return [(words, "")]
        some = found.head(most)
        names = ", ".join(f"{name} ({n:,})" for name, n in some.items())
        sheet = pictures.predictions(model, data, some.index, side)
        return [(f"{words}: {names}", pictures.data_uri(sheet))]

    def clicked(_: object, points: object, __: object) -> None:
        if points.point_inds:
            truth.index, prediction.index = points.point_inds[0]

    figure.data[0].on_click(clicked)
    return w.VBox([figure, Fit(), _panel(draw, truth, prediction)])


Figures = list[tuple[str, str]]
"""What is said of each picture, and its data URI."""


def _panel(draw: Callable[[], Figures], *controls: w.Widget) -> w.VBox:
    """Controls, and the figures that `draw` gives, or why it cannot, again whenever one has
    moved.
    """
    shown = w.HTML()

    def redraw(_: object = None) -> None:
        try:
            body = markup.render("sheet", figures=draw())
        except VitsegError as error:
            body = markup.render("lines", lines=[("bad", error)])
        shown.value = markup.html(body)

    for control in controls:
        control.observe(redraw, "value")
    redraw()
    return w.VBox([w.HTML(markup.STYLE), *controls, shown])
