"""Augmented views of an image, each a function of (view seed, image name, view).

Image and mask go through one affine warp with the same parameters, then through the effects of the
recipe, each with a random generator of its own. PIL does the work in 8-bit integers on one thread,
so a view is the same bits whatever the number of threads or loader workers. The three distortions
are one resampling by PIL through a mesh, image and mask through the same; see decision 18.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import cache
from importlib.metadata import version
from itertools import product
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageFilter

from vitseg.draws import seed_for
from vitseg.effects import (
    Blur,
    Clahe,
    CoarseDropout,
    Effect,
    Elastic,
    GridDistortion,
    Hue,
    OpticalDistortion,
    RightAngle,
)
from vitseg.images import FILL, IGNORE, fit_image, fit_mask
from vitseg.settings import Data

CLEAN = "0"
Both = tuple[Image.Image, Image.Image]
"""Image (RGB) and mask (class ids, mode L) of one size."""

_LENS_CELLS = 12
"""Fine enough that the curve of the strongest lens is met within a hundredth of the canvas."""

_TURNS = Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_270
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
    whole: tuple[Image.Image, np.ndarray], foreground: np.ndarray, data: Data, name: str, view: str
) -> tuple[Image.Image, np.ndarray]:
    """Of an image and its class ids (h, w) what the view is made of: the whole, or a box around the
    foreground (h, w) bool.
    """
    box = crop_box(foreground, data, name, view)
    if box is None:
        return whole
    image, ids = whole
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
    top, bottom = int(rows.min()), int(rows.max()) + 1
    left, right = int(columns.min()), int(columns.max()) + 1
    margin = round(data.crop.margin * max(bottom - top, right - left))
    height, width = foreground.shape
    start = max(0, left - margin), max(0, top - margin)
    return *start, min(width, right + margin), min(height, bottom + margin)


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
    done = {
        "cropped": crop_box(foreground, data, name, view) is not None,
        "mirrored": drawn.mirrored,
        "upside down": drawn.upside_down,
        f"turned {drawn.degrees:+.0f}°": abs(drawn.degrees) >= 0.5,
        f"zoom {drawn.zoom:.2f}": abs(drawn.zoom - 1) >= 0.005,
    }
    for colour, change in drawn.colours.items():
        done[f"{colour} {change:+.0%}"] = abs(change) >= 0.005
    words = [word for word, was_done in done.items() if was_done]
    words += [effect.kind.replace("_", " ") for effect, _ in occurring(data, name, view)]
    return ", ".join(words) or "unchanged"


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
    fx, fy = 1 - 2 * drawn.mirrored, 1 - 2 * drawn.upside_down
    angle, zoom = math.radians(drawn.degrees), drawn.zoom
    a, b = math.cos(angle) / zoom * fx, math.sin(angle) / zoom * fx
    d, e = -math.sin(angle) / zoom * fy, math.cos(angle) / zoom * fy
    cx, cy = image.width / 2, image.height / 2
    # PIL maps output pixels to input pixels, (x, y) -> (ax + by + c, dx + ey + f)
    warp = (a, b, cx - a * cx - b * cy, d, e, cy - d * cx - e * cy)
    size, method = image.size, Image.Transform.AFFINE
    return (
        image.transform(size, method, warp, Image.Resampling.BILINEAR, fillcolor=FILL),
        mask.transform(size, method, warp, Image.Resampling.NEAREST, fillcolor=IGNORE),
    )


# ---------------------------------------------------------------------- effects


def occurring(data: Data, name: str, view: str) -> Iterator[tuple[Effect, np.random.Generator]]:
    """The effects that chance gives a view, in order, each with the generator that its numbers come
    from.

    A generator is a function of the effect's place too, so that no effect changes what another one
    draws.
    """
    for place, effect in enumerate(data.effects):
        seed = seed_for(data.view_seed, "effect", name, view, place, effect.kind)
        rng = np.random.default_rng(seed)
        if rng.random() < effect.p:
            yield effect, rng


def apply_effect(pair: Both, effect: Effect, rng: np.random.Generator) -> Both:
    """The pair after an effect. What is brought in is FILL in the image, IGNORE in the mask."""
    return _WORK[effect.kind](pair, effect, rng)


@cache
def libraries(effects: tuple[Effect, ...]) -> dict[str, str]:
    """Versions of what else the pixels of these effects depend on."""
    return {"kornia": version("kornia")} if any(isinstance(e, Clahe) for e in effects) else {}


def _right_angle(pair: Both, cfg: RightAngle, rng: np.random.Generator) -> Both:
    image, mask = pair
    turn = _TURNS[rng.integers(3)]
    size = (image.height, image.width)
    return fit_image(image.transpose(turn), size), fit_mask(np.asarray(mask.transpose(turn)), size)


def _hue(pair: Both, cfg: Hue, rng: np.random.Generator) -> Both:
    hsv = np.array(pair[0].convert("HSV"))
    steps = round(rng.uniform(-cfg.degrees, cfg.degrees) / 360 * 256)
    hsv[..., 0] = (hsv[..., 0].astype(np.int64) + steps) % 256
    return Image.fromarray(hsv, "HSV").convert("RGB"), pair[1]


def _blur(pair: Both, cfg: Blur, rng: np.random.Generator) -> Both:
    return pair[0].filter(ImageFilter.GaussianBlur(rng.uniform(0, cfg.sigma_pixels))), pair[1]


def _elastic(pair: Both, cfg: Elastic, rng: np.random.Generator) -> Both:
    nodes = _lattice(pair[0], cfg.cells)
    cell = np.array(pair[0].size) / cfg.cells
    return _through_mesh(pair, nodes + rng.uniform(-cfg.strength, cfg.strength, nodes.shape) * cell)


def _grid_distortion(pair: Both, cfg: GridDistortion, rng: np.random.Generator) -> Both:
    nodes = _lattice(pair[0], cfg.cells)
    for axis, length in enumerate(pair[0].size):
        steps = 1 + rng.uniform(-cfg.strength, cfg.strength, cfg.cells)
        ends = np.concatenate([[0], np.cumsum(steps / steps.sum())]) * length
        nodes[..., axis] = ends if axis == 0 else ends[:, None]
    return _through_mesh(pair, nodes)


def _optical_distortion(pair: Both, cfg: OpticalDistortion, rng: np.random.Generator) -> Both:
    k = rng.uniform(-cfg.strength, cfg.strength)
    middle = np.array(pair[0].size) / 2
    away = _lattice(pair[0], _LENS_CELLS) - middle
    r2 = (away**2).sum(-1, keepdims=True) / (middle**2).sum()
    return _through_mesh(pair, middle + away * (1 + k * r2))


def _coarse_dropout(pair: Both, cfg: CoarseDropout, rng: np.random.Generator) -> Both:
    image = pair[0].copy()
    for _ in range(rng.integers(1, cfg.holes + 1)):
        width, height = (max(1, round(rng.uniform(0, cfg.side) * length)) for length in image.size)
        x, y = rng.integers(image.width - width + 1), rng.integers(image.height - height + 1)
        image.paste(FILL, (int(x), int(y), int(x) + width, int(y) + height))
    return image, pair[1]


def _clahe(pair: Both, cfg: Clahe, rng: np.random.Generator) -> Both:
    from kornia.enhance import equalize_clahe  # a quarter of a second, and of use here alone

    y, cb, cr = pair[0].convert("YCbCr").split()
    values = torch.from_numpy(np.array(y)).double()[None] / 255
    limit = rng.uniform(1, cfg.clip_limit)
    equal = equalize_clahe(values, limit, (cfg.cells, cfg.cells))[0] * 255
    # Counts are whole numbers, so sums are exact in any order. What is left to the threads is the
    # last bit of a mixture of four of them, a multiple of 1 / (4 x pixels of a tile): far from a
    # half, or on it, which is always rounded up.
    rounded = (equal + (0.5 + 1e-9)).floor().clamp(0, 255).to(torch.uint8)
    return Image.merge("YCbCr", (Image.fromarray(rounded.numpy()), cb, cr)).convert("RGB"), pair[1]


def _lattice(image: Image.Image, cells: int) -> np.ndarray:
    """Nodes (cells + 1, cells + 1, 2) of an even lattice over the image: (x, y) in whole pixels, as
    float64.
    """
    x, y = (np.linspace(0, length, cells + 1).round() for length in image.size)
    return np.stack(np.meshgrid(x, y), axis=-1)


def _through_mesh(pair: Both, taken_from: np.ndarray) -> Both:
    """Image and mask resampled at once: what is to lie on each node of the even lattice is
    `taken_from` (x, y) there.

    Between the nodes places are mixed bilinearly, so that neighbouring cells meet.
    """
    image, mask = pair
    cells = len(taken_from) - 1
    even, mesh = _lattice(image, cells).astype(int), []
    for row, column in product(range(cells), repeat=2):
        box = (*even[row, column].tolist(), *even[row + 1, column + 1].tolist())
        rows = (row, row + 1, row + 1, row)  # PIL's order: NW SW SE NE
        columns = (column, column, column + 1, column + 1)
        mesh.append((box, taken_from[rows, columns].ravel().tolist()))
    method = Image.Transform.MESH
    return (
        image.transform(image.size, method, mesh, Image.Resampling.BILINEAR, fillcolor=FILL),
        mask.transform(mask.size, method, mesh, Image.Resampling.NEAREST, fillcolor=IGNORE),
    )


_WORK: dict[str, Callable[[Both, Effect, np.random.Generator], Both]] = {
    "right_angle": _right_angle,
    "hue": _hue,
    "blur": _blur,
    "elastic": _elastic,
    "grid_distortion": _grid_distortion,
    "optical_distortion": _optical_distortion,
    "coarse_dropout": _coarse_dropout,
    "clahe": _clahe,
}
