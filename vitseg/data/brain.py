"""Slices of the MNI152 template, which the package nilearn brings with it: several classes, without
a network.
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vitseg.data.public import make_places, write_classes
from vitseg.errors import DataError
from vitseg.images import palette_image

CLASSES = ("background", "grey matter", "white matter", "rest of brain")
FIRST, BLOCK, GAP = 10, 12, 4
"""Slices of 1 mm: the first that shows much of a brain, those of a block, and those of each block
that are left out.
"""

SPLITS = ("train", "train", "validation", "train", "train", "test") * 2
"""Of the blocks, from below."""


def write_slices(folder: Path) -> dict[str, Any]:
    """96 axial slices of 1 mm, RGB, 233 x 197 pixels, in blocks from below: eight in a row, then
    four that are left out.

    Slices next to each other are almost the same image. As whole blocks go into a split, with 5 mm
    from the last slice of one to the first of the next, no validation or test slice has a near
    neighbour in training. It is still one brain, the mean of 152 people: scores on it say nothing
    of other brains. Raises DataError without nilearn.
    """
    brain, ids = _volumes()
    for number, split in enumerate(SPLITS):
        place = folder / split
        images, masks = (
            (place / "images", place / "masks") if place.is_dir() else make_places(place)
        )
        start = FIRST + number * BLOCK
        for z in range(start, start + BLOCK - GAP):
            Image.fromarray(_upright(brain, z)).convert("RGB").save(images / f"z{z:03}.png")
            palette_image(_upright(ids, z)).save(masks / f"z{z:03}.png")
    write_classes(folder, CLASSES)
    return {
        "nilearn": version("nilearn"),
        "masks": "the tissue whose probability is at least one half",
        "left_out": {},
    }


def _volumes() -> tuple[np.ndarray, np.ndarray]:
    """The T1 template as grey values and its class ids, both (x, y, z) uint8, a voxel a
    millimetre.
    """
    try:
        from nilearn import datasets  # 2 s
    except ImportError:
        raise DataError(
            "mni-brain: the package nilearn is not installed.", "Install it: pip install nilearn."
        ) from None
    load = (
        datasets.load_mni152_template,
        datasets.load_mni152_gm_template,
        datasets.load_mni152_wm_template,
        datasets.load_mni152_brain_mask,
    )
    brain, grey, white, mask = (
        np.asarray(volume(resolution=1).dataobj, dtype=np.float32) for volume in load
    )
    ids = np.select([mask == 0, grey >= 0.5, white >= 0.5], [0, 1, 2], default=3)
    return (brain * 255).clip(0, 255).round().astype(np.uint8), ids.astype(np.uint8)


def _upright(volume: np.ndarray, z: int) -> np.ndarray:
    """A slice as one looks at it from above (y, x), the forehead on top."""
    return np.ascontiguousarray(np.rot90(volume[:, :, z]))
