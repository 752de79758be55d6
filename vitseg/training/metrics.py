"""IoU, F1 and accuracy, all from one confusion matrix over a whole epoch."""

import math
from typing import Any

import torch
from torch import Tensor

from vitseg.images import IGNORE


def confusion(predicted: Tensor, truth: Tensor, classes: int) -> Tensor:
    """Pixel counts (classes, classes) int64, truth by row, prediction by column; ignored pixels
    left out.
    """
    # IGNORE has a row of its own: faster than to take pixels out
    index = truth.long() * classes + predicted
    counts = torch.bincount(index.flatten(), minlength=(IGNORE + 1) * classes)
    return counts.reshape(-1, classes)[:classes].cpu()


def scores(matrix: Tensor, mode: str, score_background: bool = True) -> dict[str, Any]:
    """Scores of a confusion matrix; a class absent from the truth is None, neither 0 nor 1.

    `iou` and `f1` are the foreground's in binary mode, else the mean over the classes present in
    the truth, the background among them if `score_background`. `f1_macro`, `f1_micro`,
    `f1_weighted` and `accuracy` are over the same classes as scikit-learn has them with those
    labels (binary: both).
    """
    counts = matrix.double()
    hit, truth, predicted = counts.diag(), counts.sum(1), counts.sum(0)
    counted, first = truth > 0, int(mode != "binary" and not score_background)
    per_iou = _known((hit / (truth + predicted - hit)).where(counted, math.nan))
    f1 = (2 * hit / (truth + predicted)).where(counted, math.nan)
    per_f1 = _known(f1)
    macro = mean_of_known(per_f1[first:])
    accuracy = hit.sum() / truth.sum()
    counted[:first] = False
    support = truth[counted].sum()  # where it is 0, so is all that is divided by it
    micro = 2 * hit[counted].sum() / (support + predicted[counted].sum())
    weighted = (f1 * truth)[counted].sum() / support
    micro, weighted, accuracy = _known(torch.stack([micro, weighted, accuracy]))
    binary = mode == "binary"
    return {
        "iou": per_iou[1] if binary else mean_of_known(per_iou[first:]),
        "f1": per_f1[1] if binary else macro,
        "f1_macro": macro,
        "f1_micro": micro,
        "f1_weighted": weighted,
        "accuracy": accuracy,
        "per_class_iou": per_iou,
        "per_class_f1": per_f1,
    }


def _known(values: Tensor) -> list[float | None]:
    """The values as numbers, None where there is none."""
    return [None if math.isnan(value) else value for value in values.tolist()]


def mean_of_known(values: list[float | None]) -> float | None:
    """None where no value is known."""
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known else None
