"""Whether a model that says 90 % is right nine times in ten."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vitseg.images import IGNORE

BINS = 15


@dataclass(frozen=True, slots=True, eq=False)
class Calibration:
    """Pixels by how sure the model was of its answer, in BINS bins of equal width. Sums, so that
    images add up.
    """

    pixels: Tensor  # (BINS,) float64
    confidence: Tensor  # (BINS,) sum of the probabilities of the answers
    right: Tensor  # (BINS,) pixels whose answer is the truth

    @classmethod
    def empty(cls) -> Calibration:
        return cls(*(torch.zeros(BINS, dtype=torch.float64) for _ in range(3)))

    @classmethod
    def of(cls, confidence: Tensor, predicted: Tensor, truth: Tensor) -> Calibration:
        """Of one image: probabilities of the answers, the answers, and the truth, all (h, w);
        ignored pixels are left out.
        """
        counted = truth != IGNORE
        sure, right = confidence[counted].double(), (predicted == truth)[counted].double()
        place = (sure * BINS).long().clamp(max=BINS - 1)  # a bin holds its lower end
        sums = [
            torch.zeros(BINS, dtype=torch.float64).index_add_(0, place, x)
            for x in (torch.ones_like(sure), sure, right)
        ]
        return cls(*sums)

    def __add__(self, other: Calibration) -> Calibration:
        return Calibration(
            self.pixels + other.pixels, self.confidence + other.confidence, self.right + other.right
        )

    def error(self) -> float:
        """Expected calibration error (Naeini et al. 2015): how far sureness and success are apart,
        mean over pixels.
        """
        return float((self.confidence - self.right).abs().sum() / self.pixels.sum())

    def curve(self) -> list[tuple[float, float, float]]:
        """Of every bin that holds pixels: mean sureness, share of right answers, share of all
        pixels.
        """
        held = self.pixels > 0
        n = self.pixels[held]
        parts = (self.confidence[held] / n, self.right[held] / n, n / n.sum())
        return list(zip(*(part.tolist() for part in parts), strict=True))
