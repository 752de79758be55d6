"""Looking at views in a notebook: an image with its mask in several of its views, each said to be
what it is.
"""

from __future__ import annotations

import ipywidgets as w

from vitseg.data.augment import view_name
from vitseg.data.dataset import SegmentationData
from vitseg.errors import VitsegError
from vitseg.ui import markup, pictures, theme

_FRESH = 100
"""Views on the slider where there is no end of them."""


def show_views(data: SegmentationData, columns: int = 4, side: int = 190) -> w.VBox:
    """A panel with an image picker and a view slider, for a cell of its own.

    It shows `columns` views from the chosen one on: the image as the network gets it, below it the
    mask laid over it, and what was done. Views are in the order in which the epochs of stage 1 show
    them.
    """
    count = _FRESH if data.cfg.views == "fresh" else data.cfg.views
    views, images = [view_name(data.cfg, 1, epoch) for epoch in range(1, count + 1)], []
    for split, names in data.splits.items():
        images += [(f"{name} ({split})", name) for name in names]
    image = w.Dropdown(options=images, description="Image")
    view = w.IntSlider(max=max(0, count - columns), description="View", style=theme.HANDLE)
    view.disabled, shown = view.max == 0, w.HTML()

    def draw(_: object = None) -> None:
        try:
            figures = []
            for name in views[view.value :][:columns]:
                sample = data[image.value, name]
                mask = data.trained(sample.multiclass_mask).numpy()
                picture = pictures.with_mask(pictures.picture(sample.image), mask, side)
                figures.append((f"view {name}: {sample.made_by}", pictures.data_uri(picture)))
            key = pictures.legend(data.classes, columns * (side + 12))
            figures.append(("", pictures.data_uri(key)))
            body = markup.render("sheet", figures=figures)
        except VitsegError as error:
            body = markup.render("lines", lines=[("bad", "", error)])
        shown.value = markup.html(body)

    for control in (image, view):
        control.observe(draw, "value")
    draw()
    return w.VBox([w.HTML(markup.STYLE), image, view, shown])
