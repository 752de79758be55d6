"""Small data sets on disk, for tests of whatever reads them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SIDE = 24


def to_image(pixels: np.ndarray | Image.Image) -> Image.Image:
    return pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)


def write_pairs(
    place: Path, masks: Mapping[str, np.ndarray | Image.Image], **declared: Any
) -> Path:
    """`images/` and `masks/` under `place`, a grey image for each mask; `declared` becomes
    `classes.json`.
    """
    for kind in ("images", "masks"):
        (place / kind).mkdir(parents=True, exist_ok=True)
    for name, pixels in masks.items():
        mask = to_image(pixels)
        mask.save(place / "masks" / f"{name}.png")
        Image.new("RGB", mask.size, (120, 110, 100)).save(place / "images" / f"{name}.png")
    if declared:
        (place / "classes.json").write_text(json.dumps(declared), encoding="utf-8")
    return place


def stripes(*values: int, dtype: type = np.uint8) -> np.ndarray:
    """A mask (SIDE, SIDE) that holds each of the values, in vertical stripes."""
    return np.broadcast_to(np.resize(np.array(values, dtype=dtype), SIDE), (SIDE, SIDE)).copy()
