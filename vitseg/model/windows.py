"""Sliding windows: an image larger than the network's canvas, segmented at its own resolution piece
by piece.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import torch
from torch import Tensor

from vitseg.errors import ConfigError
from vitseg.images import Size


def window_starts(length: int, window: int, overlap: float) -> list[int]:
    """Where windows begin along one side: `overlap` (0 <= overlap < 1) of a window apart, the last
    one moved to the end.
    """
    if not 0 <= overlap < 1:
        raise ConfigError("overlap", overlap, "a share of a window, 0 <= overlap < 1")
    step = max(1, int(window * (1 - overlap)))
    return [*range(0, length - window, step), length - window]


def window_logits(
    image: Tensor, window: Size, overlap: float, logits_of: Callable[[Tensor], Tensor]
) -> Tensor:
    """Logits (classes, H, W) of an image (3, H, W) no smaller than a window, averaged where windows
    overlap.

    `logits_of` takes one window (3, *window) and gives its logits (classes, *window).
    """
    _, height, width = image.shape
    total, seen = None, torch.zeros(height, width)
    starts = product(
        *(window_starts(n, w, overlap) for n, w in zip((height, width), window, strict=True))
    )
    for top, left in starts:
        place = (..., slice(top, top + window[0]), slice(left, left + window[1]))
        logits = logits_of(image[place]).float().cpu()
        total = torch.zeros(len(logits), height, width) if total is None else total
        total[place] += logits
        seen[place] += 1
    return total / seen
