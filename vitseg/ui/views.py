"""Looking at views in a notebook: an image with its mask in several of its views, each said to be
what it is.
"""

from __future__ import annotations

from html import escape

import ipywidgets as w

from vitseg.data.augment import description, view_name
from vitseg.data.dataset import SegmentationData
from vitseg.errors import VitsegError
from vitseg.ui import panels, pictures
from vitseg.ui.controls import HANDLE

_FRESH = 100
"""Views on the slider where there is no end of them."""


def show_views(data: SegmentationData, columns: int = 4, side: int = 190) -> w.VBox:
    """A panel with an image picker and a view slider, for a cell of its own.

    It shows `columns` views from the chosen one on: the image as the network gets it, below it the
    mask laid over it, and what was done. Views are in the order in which the epochs of stage 1 show
    them.
    """
    count = _FRESH if data.cfg.views == "fresh" else data.cfg.views
    views = [view_name(data.cfg, 1, epoch) for epoch in range(1, count + 1)]
    starts = range(max(1, count - columns + 1))
    names = [(f"{name} ({split})", name) for split, found in data.splits.items() for name in found]
    image = w.Dropdown(
        options=names, value=data.splits["train"][0], description="Image", layout={"width": "420px"}
    )
    places, look = [(views[i], i) for i in starts], {"layout": {"width": "420px"}, "style": HANDLE}
    first = w.SelectionSlider(options=places, description="View", disabled=len(starts) == 1, **look)
    shown = w.HTML()

    def draw(_: object = None) -> None:
        some = views[first.value : first.value + columns]
        try:
            figures = "".join(_figure(data, image.value, view, side) for view in some)
            key = (
                f'<img alt="" '
                f'src="{pictures.data_uri(pictures.legend(data.classes, columns * (side + 12)))}">'
            )
            shown.value = panels.html(
                f"<div style='display: flex; flex-wrap: wrap; gap: 12px'>{figures}</div>{key}"
            )
        except VitsegError as error:
            shown.value = panels.html(f"<p class=bad>{escape(str(error))}</p>")

    image.observe(draw, "value")
    first.observe(draw, "value")
    draw()
    return w.VBox([w.HTML(panels.STYLE), image, first, shown])


def _figure(data: SegmentationData, name: str, view: str, side: int) -> str:
    """One view as HTML: image, overlay, and its title."""
    sample = data[name, view]
    mask = (sample.binary_mask if data.mode == "binary" else sample.multiclass_mask).numpy()
    source = pictures.data_uri(pictures.with_mask(pictures.picture(sample.image), mask, side))
    done = escape(description(data.foreground(sample.original.numpy()), data.cfg, name, view))
    title = f"view {escape(view)}: {done}"
    return (
        f'<div style="width: {side}px"><img alt="{title}" src="{source}"><p><b>view '
        f"{escape(view)}</b><br>{done}</p></div>"
    )
