"""Pictures of data and predictions, made with PIL: they show in a notebook and embed in a
report.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from vitseg.data.dataset import SegmentationData
from vitseg.images import IGNORE, color_of, fit_image, overlay
from vitseg.model.segmenter import Segmenter

_GAP, _PAPER, _QUIET = 6, (255, 255, 255, 0), (122, 122, 122)


def contact_sheet(
    data: SegmentationData, names: Sequence[str], side: int = 150, columns: int = 6
) -> Image.Image:
    """Each image above its mask, laid over it in the class colours."""
    tiles = [with_mask(*data.load(name), side) for name in names]
    rows = [_beside(tiles[i : i + columns]) for i in range(0, len(tiles), columns)]
    return _below([*rows, legend(data.all_classes, rows[0].width)])


def with_mask(image: Image.Image, mask: np.ndarray, side: int) -> Image.Image:
    """An image above its mask (h, w), laid over it in the class colours."""
    return _below([_tile(image, side), _tile(overlay(image, mask, 0.65), side)])


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
    rows = [_heads(("image", "truth", "prediction", "disagreement"), side)]
    for name, predicted in zip(names, masks, strict=True):
        image, ids = data.load(name)
        truth = data.trained(torch.from_numpy(ids)).numpy()
        wrong = (predicted != truth) & (truth != IGNORE)
        map_of = Image.fromarray((wrong * 255).astype(np.uint8)).convert("RGB")
        tiles = (image, overlay(image, truth, 0.65), overlay(image, predicted, 0.65), map_of)
        rows.append(_beside([_tile(tile, side) for tile in tiles]))
    return _below([*rows, legend(data.classes, rows[-1].width)])


def strip(images: Sequence[Image.Image], titles: Sequence[str], height: int = 168) -> Image.Image:
    """Pictures of one height side by side, each below its title."""
    columns = []
    for image, title in zip(images, titles, strict=True):
        size = (round(height * image.width / image.height), height)
        scaled = image.convert("RGB").resize(size, Image.Resampling.NEAREST)
        columns.append(column([scaled], [title]))
    return _beside(columns)


def column(images: Sequence[Image.Image], titles: Sequence[str]) -> Image.Image:
    """Pictures one below the other, each below its title."""
    parts = []
    for image, title in zip(images, titles, strict=True):
        parts += [_heads([title], image.width), image]
    return _below(parts)


def spotlight(image: Image.Image, heat: Tensor) -> Image.Image:
    """The image, as dark as `heat` (h, w) in 0..1 is low."""
    light = 0.15 + 0.85 * heat.clamp(0, 1).numpy()[..., None]
    return Image.fromarray((np.asarray(image.convert("RGB")) * light).round().astype(np.uint8))


def picture(image: Tensor) -> Image.Image:
    """An RGB tensor (3, H, W) uint8, as a Sample holds it."""
    return Image.fromarray(image.permute(1, 2, 0).numpy())


def legend(classes: Sequence[str], width: int) -> Image.Image:
    """Class names beside their colours, in as many lines as they need."""
    canvas = Image.new("RGBA", (width, 20 * (1 + len(classes))), _PAPER)
    draw = ImageDraw.Draw(canvas)
    x, y = 0, 4
    for number, name in enumerate(classes):
        needed = 22 + int(draw.textlength(name, font_size=13)) + 16
        if x + needed > width and x:
            x, y = 0, y + 20
        draw.rectangle((x, y + 2, x + 12, y + 14), fill=color_of(number), outline=_QUIET)
        draw.text((x + 18, y), name, fill=_QUIET, font_size=13)
        x += needed
    return canvas.crop((0, 0, width, y + 20))


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def data_uri(image: Image.Image) -> str:
    """The picture as a PNG within an HTML page."""
    return "data:image/png;base64," + base64.b64encode(png(image)).decode()


def _tile(image: Image.Image, side: int) -> Image.Image:
    """A square tile; what an image that is not square leaves free is transparent."""
    height = round(side * image.height / image.width)
    if height > side:
        return fit_image(image, (side, side))
    return image.resize((side, height), Image.Resampling.BILINEAR)


def _heads(titles: Sequence[str], side: int) -> Image.Image:
    canvas = Image.new("RGBA", (len(titles) * (side + _GAP) - _GAP, 18), _PAPER)
    draw = ImageDraw.Draw(canvas)
    for i, title in enumerate(titles):
        draw.text((i * (side + _GAP), 0), title, fill=_QUIET, font_size=13)
    return canvas


def _beside(images: Sequence[Image.Image]) -> Image.Image:
    return _pasted(images, right=1, down=0)


def _below(images: Sequence[Image.Image]) -> Image.Image:
    return _pasted(images, right=0, down=1)


def _pasted(images: Sequence[Image.Image], right: int, down: int) -> Image.Image:
    """The images on a transparent ground, each a step (right, down) of its own size further."""
    left, top, places = 0, 0, []
    for image in images:
        places.append((left, top))
        left, top = left + right * (image.width + _GAP), top + down * (image.height + _GAP)
    width = max(left - _GAP, *(image.width for image in images))
    height = max(top - _GAP, *(image.height for image in images))
    canvas = Image.new("RGBA", (width, height), _PAPER)
    for image, place in zip(images, places, strict=True):
        canvas.paste(image, place)
    return canvas
