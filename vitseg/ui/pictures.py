"""Pictures of data and predictions, made with PIL: they show in a notebook and embed in a
report.
"""

import base64
import io
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch import Tensor

from vitseg.data.dataset import SegmentationData
from vitseg.images import IGNORE, color_of, overlay
from vitseg.model.segmenter import Segmenter

_GAP, _PAPER, _QUIET = 6, "#ffffff00", "#7a7a7a"


def grid(
    images: Sequence[Image.Image], columns: int = 1, titles: Sequence[str] = ()
) -> Image.Image:
    """Rows of so many images on a transparent ground, each below its title, if they have any."""
    if titles:
        images = [grid(pair) for pair in zip(map(_label, titles), images, strict=True)]
    places, left, top, right, bottom = [], 0, 0, 0, 0
    for number, image in enumerate(images):
        if number % columns == 0:
            left, top = 0, bottom
        places.append((left, top))
        left += image.width + _GAP
        right, bottom = max(right, left), max(bottom, top + image.height + _GAP)
    canvas = Image.new("RGBA", (right - _GAP, bottom - _GAP), _PAPER)
    for image, place in zip(images, places, strict=True):
        canvas.paste(image, place)
    return canvas


def contact_sheet(
    data: SegmentationData, names: Sequence[str], side: int = 150, columns: int = 6
) -> Image.Image:
    """Each image above its mask, laid over it in the class colours."""
    tiles = [with_mask(*data.load(name), side) for name in names]
    return grid([grid(tiles, columns), legend(data.all_classes, columns * side)])


def with_mask(image: Image.Image, mask: np.ndarray, side: int) -> Image.Image:
    """An image above its mask (h, w), laid over it in the class colours."""
    return grid([tile(image, side), tile(overlay(image, mask), side)])


def predictions(
    model: Segmenter, data: SegmentationData, names: Sequence[str], side: int = 190
) -> Image.Image:
    """A row for each image: the image, the truth, the prediction, and where they disagree
    (white).
    """
    return comparison(data, names, [model.predict(data.load(name)[0]) for name in names], side)


def comparison(
    data: SegmentationData, names: Sequence[str], masks: Sequence[np.ndarray], side: int = 190
) -> Image.Image:
    """What `predictions` shows, of masks that have been predicted."""
    tiles = []
    for name, predicted in zip(names, masks, strict=True):
        image, ids = data.load(name)
        truth = data.trained(torch.from_numpy(ids)).numpy()
        wrong = Image.fromarray((predicted != truth) & (truth != IGNORE))
        shown = image, overlay(image, truth), overlay(image, predicted), wrong
        tiles += [tile(each, side) for each in shown]
    sheet = grid(tiles, 4, ("image", "truth", "prediction", "disagreement") * len(names))
    return grid([sheet, legend(data.classes, sheet.width)])


def strip(images: Sequence[Image.Image], titles: Sequence[str], height: int = 168) -> Image.Image:
    """Pictures of one height side by side, each below its title."""
    nearest = Image.Resampling.NEAREST
    row = [ImageOps.scale(image, height / image.height, nearest) for image in images]
    return grid(row, len(row), titles)


def spotlight(image: Image.Image, heat: Tensor) -> Image.Image:
    """The image, as dark as `heat` (h, w) in 0..1 is low."""
    light = 0.15 + 0.85 * heat.clamp(0, 1).numpy()[..., None]
    return Image.fromarray((np.asarray(image.convert("RGB")) * light).round().astype(np.uint8))


def picture(image: Tensor) -> Image.Image:
    """An RGB tensor (3, H, W) uint8, as a Sample holds it."""
    return Image.fromarray(image.permute(1, 2, 0).numpy())


def legend(classes: Sequence[str], width: int) -> Image.Image:
    """Class names above their colours, in as many lines as they need."""
    bars = [Image.new("RGB", (90, 12), color_of(i)) for i in range(len(classes))]
    bars = [ImageOps.expand(bar, 1, _QUIET) for bar in bars]
    return grid(bars, max(1, width // 100), classes)


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def data_uri(image: Image.Image) -> str:
    """The picture as a PNG within an HTML page."""
    return f"data:image/png;base64,{base64.b64encode(png(image)).decode()}"


def tile(image: Image.Image, side: int) -> Image.Image:
    """As wide as `side`; only where it would be very high less."""
    return ImageOps.contain(image.convert("RGB"), (side, 2 * side))


def _label(text: str) -> Image.Image:
    font = ImageFont.load_default(13)
    canvas = Image.new("RGBA", (round(font.getlength(text)) + 10, 18), _PAPER)
    ImageDraw.Draw(canvas).text((0, 0), text, _QUIET, font)
    return canvas
