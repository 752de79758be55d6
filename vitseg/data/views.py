"""Views: augmented versions of an image, each a function of (view seed, image name, view).

Image and mask go through one affine warp with the same parameters, then through the effects of the
recipe. PIL does the work in 8-bit integers on one thread, so a view is the same bits whatever the
number of threads or loader workers.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageEnhance

from vitseg.data.effects import apply_effect, occurring
from vitseg.draws import seed_for
from vitseg.images import FILL, IGNORE
from vitseg.settings import Data

CLEAN = "0"
_COLOURS = {
    "brightness": ImageEnhance.Brightness,
    "contrast": ImageEnhance.Contrast,
    "saturation": ImageEnhance.Color,
}


class _Drawn(NamedTuple):
    """What chance makes of `Augment` for one view."""

    mirrored: bool
    upside_down: bool
    degrees: float
    zoom: float
    colours: dict[str, float]


def view_name(data: Data, stage: int, epoch: int) -> str:
    """Which view epoch `epoch` (from 1) of a stage shows; "0" is the clean one."""
    return f"fresh {stage} {epoch}" if data.views == "fresh" else str((epoch - 1) % data.views)


def crop(
    image: Image.Image, ids: np.ndarray, foreground: np.ndarray, data: Data, name: str, view: str
) -> tuple[Image.Image, np.ndarray]:
    """Of an image and its class ids (h, w) what the view is made of: the whole, or a box around the
    foreground (h, w) bool.
    """
    box = crop_box(foreground, data, name, view)
    if box is None:
        return image, ids
    left, top, right, bottom = box
    return image.crop(box), np.ascontiguousarray(ids[top:bottom, left:right])


def crop_box(
    foreground: np.ndarray, data: Data, name: str, view: str
) -> tuple[int, int, int, int] | None:
    """(left, top, right, bottom) in pixels of the original image; None where it stays whole."""
    if data.crop is None or view == CLEAN:
        return None
    rng = np.random.default_rng(seed_for(data.view_seed, "crop", name, view))
    rows, columns = np.nonzero(foreground)
    if rng.random() >= data.crop.p or not len(rows):
        return None
    top, bottom, left, right = (
        int(v) for v in (rows.min(), rows.max() + 1, columns.min(), columns.max() + 1)
    )
    margin = round(data.crop.margin * max(bottom - top, right - left))
    height, width = foreground.shape
    return (
        max(0, left - margin),
        max(0, top - margin),
        min(width, right + margin),
        min(height, bottom + margin),
    )


def make_view(
    image: Image.Image, mask: Image.Image, data: Data, name: str, view: str
) -> tuple[Image.Image, Image.Image]:
    """The view of a fitted image (RGB) and its mask (class ids, mode L)."""
    if view == CLEAN:
        return image, mask
    drawn = _draw(data, name, view)
    image, mask = _warp(image, mask, drawn)
    for colour, change in drawn.colours.items():
        image = _COLOURS[colour](image).enhance(1 + change)
    for effect, rng in occurring(data, name, view):
        image, mask = apply_effect((image, mask), effect, rng)
    return image, mask


def description(foreground: np.ndarray, data: Data, name: str, view: str) -> str:
    """What is done to make the view of an image with class ids (h, w), in a few words and in
    order.
    """
    if view == CLEAN:
        return "clean"
    drawn = _draw(data, name, view)
    words = {
        "cropped": crop_box(foreground, data, name, view) is not None,
        "mirrored": drawn.mirrored,
        "upside down": drawn.upside_down,
        f"turned {drawn.degrees:+.0f}°": abs(drawn.degrees) >= 0.5,
        f"zoom {drawn.zoom:.2f}": abs(drawn.zoom - 1) >= 0.005,
        **{
            f"{colour} {change:+.0%}": abs(change) >= 0.005
            for colour, change in drawn.colours.items()
        },
    }
    said = [word for word, done in words.items() if done]
    said += [effect.kind.replace("_", " ") for effect, _ in occurring(data, name, view)]
    return ", ".join(said) or "unchanged"


def _draw(data: Data, name: str, view: str) -> _Drawn:
    """The order of these draws is kept: another one would change every view that there is."""
    cfg = data.augment
    rng = np.random.default_rng(seed_for(data.view_seed, "view", name, view))
    largest = {"brightness": cfg.brightness, "contrast": cfg.contrast, "saturation": cfg.saturation}
    return _Drawn(
        mirrored=cfg.flip_horizontal and rng.random() < 0.5,
        upside_down=cfg.flip_vertical and rng.random() < 0.5,
        degrees=rng.uniform(-cfg.rotate_degrees, cfg.rotate_degrees),
        zoom=math.exp(rng.uniform(-1, 1) * math.log1p(cfg.zoom)),
        colours={colour: rng.uniform(-most, most) for colour, most in largest.items()},
    )


def _warp(image: Image.Image, mask: Image.Image, drawn: _Drawn) -> tuple[Image.Image, Image.Image]:
    """Flip, rotate and zoom about the centre in one resampling."""
    fx, fy = -1 if drawn.mirrored else 1, -1 if drawn.upside_down else 1
    angle, zoom = math.radians(drawn.degrees), drawn.zoom
    a, b = math.cos(angle) / zoom * fx, math.sin(angle) / zoom * fx
    d, e = -math.sin(angle) / zoom * fy, math.cos(angle) / zoom * fy
    cx, cy = image.width / 2, image.height / 2
    # PIL maps output pixels to input pixels: (x, y) -> (ax + by + c, dx + ey + f), here about the
    # centre
    warp = (a, b, cx - a * cx - b * cy, d, e, cy - d * cx - e * cy)
    size, method = image.size, Image.Transform.AFFINE
    return (
        image.transform(size, method, warp, Image.Resampling.BILINEAR, fillcolor=FILL),
        mask.transform(size, method, warp, Image.Resampling.NEAREST, fillcolor=IGNORE),
    )
