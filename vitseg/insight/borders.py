"""How far a predicted border runs from the true one, in pixels of the image."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from scipy import ndimage

TOLERANCE = 2.0
"""Pixels within which a border counts as met: about what two annotators differ by."""


class Border(NamedTuple):
    """The borders of one class in one image. `distance` is the average symmetric surface distance:
    the mean way from a pixel of either border to the nearest of the other; `within` is the share of
    those pixels with at most TOLERANCE to go.
    """

    name: str
    class_id: int
    distance: float
    within: float


def borders_of(
    name: str, truth: np.ndarray, predicted: np.ndarray, classes: Iterable[int]
) -> list[Border]:
    """Of each of these classes that is in the truth and in the prediction; where one is missing
    there is no way to go.
    """
    found = []
    for class_id in classes:
        mine, theirs = _edge(predicted == class_id), _edge(truth == class_id)
        if mine.any() and theirs.any():
            ways = np.concatenate([_ways(mine, theirs), _ways(theirs, mine)])
            found.append(
                Border(name, class_id, float(ways.mean()), float((ways <= TOLERANCE).mean()))
            )
    return found


def _edge(region: np.ndarray) -> np.ndarray:
    """The pixels of a region (h, w) bool with a neighbour outside; what is cut off by the frame
    ends there.
    """
    return region & ~ndimage.binary_erosion(region)


def _ways(start: np.ndarray, to: np.ndarray) -> np.ndarray:
    """From each pixel of one edge, the Euclidean distance to the nearest pixel of the other."""
    return ndimage.distance_transform_edt(~to)[start]
