"""The pixels of the effects. Each draws its numbers from a generator of its own, and works in 8-bit
integers.

The three distortions are one resampling by PIL through a mesh, image and mask through the same; see
decision 18.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from importlib.metadata import version
from itertools import product

import numpy as np
import torch
from PIL import Image, ImageFilter

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

Pair = tuple[Image.Image, Image.Image]
"""Image (RGB) and mask (class ids, mode L) of one size."""

_LENS_CELLS = 12
"""Fine enough that the curve of the strongest lens is met within a hundredth of the canvas."""


def occurring(data: Data, name: str, view: str) -> Iterator[tuple[Effect, np.random.Generator]]:
    """The effects that chance gives a view, in order, each with the generator that its numbers come
    from.

    A generator is a function of the effect's place too, so that no effect changes what another one
    draws.
    """
    for place, effect in enumerate(data.effects):
        rng = np.random.default_rng(
            seed_for(data.view_seed, "effect", name, view, place, effect.kind)
        )
        if rng.random() < effect.p:
            yield effect, rng


def apply_effect(pair: Pair, effect: Effect, rng: np.random.Generator) -> Pair:
    """The pair after an effect. What is brought in is FILL in the image, IGNORE in the mask."""
    return _WORK[effect.kind](pair, effect, rng)


@cache
def libraries(effects: tuple[Effect, ...]) -> dict[str, str]:
    """Versions of what else the pixels of these effects depend on."""
    return {"kornia": version("kornia")} if any(isinstance(e, Clahe) for e in effects) else {}


def _right_angle(pair: Pair, cfg: RightAngle, rng: np.random.Generator) -> Pair:
    image, mask = pair
    turn = (Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_270)[
        rng.integers(3)
    ]
    size = (image.height, image.width)
    return fit_image(image.transpose(turn), size), fit_mask(np.asarray(mask.transpose(turn)), size)


def _hue(pair: Pair, cfg: Hue, rng: np.random.Generator) -> Pair:
    hsv = np.array(pair[0].convert("HSV"))
    steps = round(rng.uniform(-cfg.degrees, cfg.degrees) / 360 * 256)
    hsv[..., 0] = (hsv[..., 0].astype(np.int64) + steps) % 256
    return Image.fromarray(hsv, "HSV").convert("RGB"), pair[1]


def _blur(pair: Pair, cfg: Blur, rng: np.random.Generator) -> Pair:
    return pair[0].filter(ImageFilter.GaussianBlur(rng.uniform(0, cfg.sigma_pixels))), pair[1]


def _elastic(pair: Pair, cfg: Elastic, rng: np.random.Generator) -> Pair:
    nodes = _lattice(pair[0], cfg.cells)
    cell = np.array(pair[0].size) / cfg.cells
    return _through_mesh(pair, nodes + rng.uniform(-cfg.strength, cfg.strength, nodes.shape) * cell)


def _grid_distortion(pair: Pair, cfg: GridDistortion, rng: np.random.Generator) -> Pair:
    nodes = _lattice(pair[0], cfg.cells)
    for axis, length in enumerate(pair[0].size):
        steps = 1 + rng.uniform(-cfg.strength, cfg.strength, cfg.cells)
        ends = np.concatenate([[0], np.cumsum(steps / steps.sum())]) * length
        nodes[..., axis] = ends if axis == 0 else ends[:, None]
    return _through_mesh(pair, nodes)


def _optical_distortion(pair: Pair, cfg: OpticalDistortion, rng: np.random.Generator) -> Pair:
    k = rng.uniform(-cfg.strength, cfg.strength)
    middle = np.array(pair[0].size) / 2
    away = _lattice(pair[0], _LENS_CELLS) - middle
    r2 = (away**2).sum(-1, keepdims=True) / (middle**2).sum()
    return _through_mesh(pair, middle + away * (1 + k * r2))


def _coarse_dropout(pair: Pair, cfg: CoarseDropout, rng: np.random.Generator) -> Pair:
    image = pair[0].copy()
    for _ in range(rng.integers(1, cfg.holes + 1)):
        width, height = (max(1, round(rng.uniform(0, cfg.side) * length)) for length in image.size)
        x, y = rng.integers(image.width - width + 1), rng.integers(image.height - height + 1)
        image.paste(FILL, (int(x), int(y), int(x) + width, int(y) + height))
    return image, pair[1]


def _clahe(pair: Pair, cfg: Clahe, rng: np.random.Generator) -> Pair:
    from kornia.enhance import equalize_clahe  # a quarter of a second, and of use here alone

    y, cb, cr = pair[0].convert("YCbCr").split()
    values = torch.from_numpy(np.array(y)).double()[None] / 255
    limit = rng.uniform(1, cfg.clip_limit)
    equal = equalize_clahe(values, limit, (cfg.cells, cfg.cells))[0] * 255
    # Counts are whole numbers, so sums are exact in any order. What is left to the threads is the
    # last bit of a mixture of
    # four of them, a multiple of 1 / (4 x pixels of a tile): far from a half, or on it, which is
    # always rounded up.
    rounded = (equal + (0.5 + 1e-9)).floor().clamp(0, 255).to(torch.uint8)
    return Image.merge("YCbCr", (Image.fromarray(rounded.numpy()), cb, cr)).convert("RGB"), pair[1]


def _lattice(image: Image.Image, cells: int) -> np.ndarray:
    """Nodes (cells + 1, cells + 1, 2) of an even lattice over the image: (x, y) in whole pixels, as
    float64.
    """
    x, y = (np.linspace(0, length, cells + 1).round() for length in image.size)
    return np.stack(np.meshgrid(x, y), axis=-1)


def _through_mesh(pair: Pair, taken_from: np.ndarray) -> Pair:
    """Image and mask resampled at once: what is to lie on each node of the even lattice is
    `taken_from` (x, y) there.

    Between the nodes places are mixed bilinearly, so that neighbouring cells meet.
    """
    image, mask = pair
    cells = len(taken_from) - 1
    even, mesh = _lattice(image, cells).astype(int), []
    for row, column in product(range(cells), repeat=2):
        corners = (
            (row, column),
            (row + 1, column),
            (row + 1, column + 1),
            (row, column + 1),
        )  # PIL's order: NW SW SE NE
        box = (*even[row, column].tolist(), *even[row + 1, column + 1].tolist())
        mesh.append((box, [float(v) for corner in corners for v in taken_from[corner]]))
    method = Image.Transform.MESH
    return (
        image.transform(image.size, method, mesh, Image.Resampling.BILINEAR, fillcolor=FILL),
        mask.transform(mask.size, method, mesh, Image.Resampling.NEAREST, fillcolor=IGNORE),
    )


_WORK: dict[str, Callable[[Pair, Effect, np.random.Generator], Pair]] = {
    "right_angle": _right_angle,
    "hue": _hue,
    "blur": _blur,
    "elastic": _elastic,
    "grid_distortion": _grid_distortion,
    "optical_distortion": _optical_distortion,
    "coarse_dropout": _coarse_dropout,
    "clahe": _clahe,
}
