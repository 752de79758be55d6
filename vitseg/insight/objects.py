"""Objects of the truth, and how much of each was found: a score over pixels hides what happens to
small ones.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from scipy import ndimage

EIGHT = np.ones((3, 3), dtype=bool)
"""Pixels that touch at a corner belong together."""


class Thing(NamedTuple):
    """A connected piece of one class in the truth. `found` is the share of its pixels that were
    predicted as its class; `iou` is its overlap with the predicted pieces that touch it.
    """

    name: str
    class_id: int
    pixels: int
    found: float
    iou: float


def things_of(
    name: str, truth: np.ndarray, predicted: np.ndarray, classes: Iterable[int]
) -> list[Thing]:
    """The pieces of these classes in class ids (h, w); ignored pixels are of no class in either."""
    found: list[Thing] = []
    for class_id in classes:
        if not (truth == class_id).any():
            continue
        pieces, count = ndimage.label(truth == class_id, EIGHT)
        guesses, _ = ndimage.label(predicted == class_id, EIGHT)
        sizes = np.bincount(guesses.ravel())
        found += [_thing(name, class_id, pieces == n, guesses, sizes) for n in range(1, count + 1)]
    return found


def _thing(
    name: str, class_id: int, piece: np.ndarray, guesses: np.ndarray, sizes: np.ndarray
) -> Thing:
    inside = guesses[piece]
    hit, touching = int((inside > 0).sum()), np.unique(inside[inside > 0])
    union = len(inside) + int(sizes[touching].sum()) - hit
    return Thing(name, class_id, len(inside), hit / len(inside), hit / union)
