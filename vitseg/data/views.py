"""Views: augmented versions of an image, each a function of (view seed, image name, view).

Image and mask go through one affine warp with the same parameters. PIL does the work in 8-bit integers on one thread,
so a view is the same bits whatever the number of threads or loader workers.
"""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageEnhance

from vitseg.draws import seed_for
from vitseg.images import FILL, IGNORE
from vitseg.settings import Augment, Data


def view_name(data: Data, stage: int, epoch: int) -> str:
    """Which view epoch `epoch` (from 1) of a stage shows; "0" is the clean one."""
    return f"fresh {stage} {epoch}" if data.views == "fresh" else str((epoch - 1) % data.views)


def make_view(image: Image.Image, mask: Image.Image, data: Data, name: str, view: str) -> tuple[Image.Image, Image.Image]:
    """The view of a fitted image (RGB) and its mask (class ids, mode L)."""
    if view == "0":
        return image, mask
    rng = np.random.default_rng(seed_for(data.view_seed, "view", name, view))
    image, mask = _warp(image, mask, data.augment, rng)
    for enhance, most in (
        (ImageEnhance.Brightness, data.augment.brightness),
        (ImageEnhance.Contrast, data.augment.contrast),
        (ImageEnhance.Color, data.augment.saturation),
    ):
        image = enhance(image).enhance(1 + rng.uniform(-most, most))
    return image, mask


def _warp(image: Image.Image, mask: Image.Image, cfg: Augment, rng: np.random.Generator) -> tuple[Image.Image, Image.Image]:
    """Flip, rotate and zoom about the centre in one resampling."""
    fx = -1 if cfg.flip_horizontal and rng.random() < 0.5 else 1
    fy = -1 if cfg.flip_vertical and rng.random() < 0.5 else 1
    angle = math.radians(rng.uniform(-cfg.rotate_degrees, cfg.rotate_degrees))
    zoom = math.exp(rng.uniform(-1, 1) * math.log1p(cfg.zoom))
    a, b = math.cos(angle) / zoom * fx, math.sin(angle) / zoom * fx
    d, e = -math.sin(angle) / zoom * fy, math.cos(angle) / zoom * fy
    cx, cy = image.width / 2, image.height / 2
    # PIL maps output pixels to input pixels: (x, y) -> (ax + by + c, dx + ey + f), here about the centre
    warp = (a, b, cx - a * cx - b * cy, d, e, cy - d * cx - e * cy)
    size, method = image.size, Image.Transform.AFFINE
    return (
        image.transform(size, method, warp, Image.Resampling.BILINEAR, fillcolor=FILL),
        mask.transform(size, method, warp, Image.Resampling.NEAREST, fillcolor=IGNORE),
    )
