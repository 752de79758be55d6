"""IoU, F1 and accuracy, all from one confusion matrix over a whole epoch."""

from __future__ import annotations

from collections.abc import Iterable
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
    present, binary = truth > 0, mode == "binary"
    f1 = 2 * hit / (truth + predicted)
    per_iou, per_f1 = _where(present, hit / (truth + predicted - hit)), _where(present, f1)
    counted = present.nonzero().flatten().tolist()
    if not (binary or score_background):
        counted = [i for i in counted if i > 0]
    iou, macro = (mean_of_known([of[i] for i in counted]) for of in (per_iou, per_f1))
    total, support = truth.sum(), truth[counted].sum()
    micro = 2 * hit[counted].sum() / (support + predicted[counted].sum())
    weighted = (f1 * truth)[counted].sum() / support
    micro, weighted, accuracy = _where(
        (support > 0, support > 0, total > 0), (micro, weighted, hit.sum() / total)
    )
    return {
        "iou": per_iou[1] if binary else iou,
        "f1": per_f1[1] if binary else macro,
        "f1_macro": macro,
        "f1_micro": micro,
        "f1_weighted": weighted,
        "accuracy": accuracy,
        "per_class_iou": per_iou,
        "per_class_f1": per_f1,
    }


def _where(present: Iterable[Tensor], values: Iterable[Tensor]) -> list[float | None]:
    """The values that there are, None for the others."""
    return [float(v) if there else None for there, v in zip(present, values, strict=True)]


def mean_of_known(values: list[float | None]) -> float | None:
    """None where no value is known."""
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known else None
