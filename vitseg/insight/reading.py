"""What a trained model makes of the images of a split: scores image by image, confusions, objects,
borders, calibration.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vitseg.data.dataset import SegmentationData
from vitseg.draws import seed_for
from vitseg.errors import ConfigError
from vitseg.images import IGNORE
from vitseg.insight.borders import Border, borders_of
from vitseg.insight.calibration import Calibration
from vitseg.insight.objects import Thing, things_of
from vitseg.insight.predicting import probabilities
from vitseg.model.segmenter import Segmenter
from vitseg.training.metrics import confusion, mean_of_known, scores

Predict = Callable[[Segmenter, Image.Image], Tensor]
"""From a model and an image to probabilities (classes, h, w) at the image's own size:
`probabilities`, or `flipped`.
"""


class Interval(NamedTuple):
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.low:.3f} to {self.high:.3f}"


@dataclass(frozen=True, slots=True, eq=False)
class Reading:
    """A model on a split. `matrices` (N, C, C) int64 are pixel counts by image, truth by row,
    ignored pixels left out.
    """

    classes: tuple[str, ...]
    mode: str
    score_background: bool
    split: str
    names: tuple[str, ...]
    matrices: Tensor
    things: tuple[Thing, ...]
    borders: tuple[Border, ...]
    calibration: Calibration

    @property
    def matrix(self) -> Tensor:
        """Pixel counts (C, C) int64 of all images."""
        return self.matrices.sum(0)

    def scores(self) -> dict[str, Any]:
        """As training logs them: from one confusion matrix over all images."""
        return self._scores(self.matrix)

    def iou_by_image(self) -> list[float | None]:
        """None where an image holds nothing that is scored."""
        return [self._scores(matrix)["iou"] for matrix in self.matrices]

    def means(self, batch_size: int) -> dict[str, float | None]:
        """One and the same predictions, three usual ways to say "IoU": they differ where images
        hold unequally much.

        Over the data set pixels count alike, so large objects decide. Over images each image counts
        alike, an image without a class is left out of that class. Over batches is an accident of
        their order, and what many training loops print.
        """
        batches = [self._scores(part.sum(0))["iou"] for part in self.matrices.split(batch_size)]
        return {
            "data set": self.scores()["iou"],
            "images": mean_of_known(self.iou_by_image()),
            "batches": mean_of_known(batches),
        }

    def interval(self, resamples: int = 1000) -> Interval | None:
        """95 % interval of the data set's IoU over images like these: percentiles of a bootstrap
        over images (Efron 1979).

        It knows nothing of what another seed of training would have changed. The draws are the same
        each time. None where no image holds anything that is scored.
        """
        rng = np.random.default_rng(seed_for("bootstrap"))
        counts = rng.multinomial(n := len(self.names), np.full(n, 1 / n), size=resamples)
        totals = torch.einsum("rn,nij->rij", torch.from_numpy(counts), self.matrices)
        found = [iou for iou in (self._scores(total)["iou"] for total in totals) if iou is not None]
        return Interval(*(float(q) for q in np.quantile(found, (0.025, 0.975)))) if found else None

    def ranked(self) -> list[str]:
        """Names of the images that can be scored, from the worst to the best."""
        scored = [
            (iou, name)
            for iou, name in zip(self.iou_by_image(), self.names, strict=True)
            if iou is not None
        ]
        return [name for _, name in sorted(scored)]

    def examples(self, each: int = 2) -> dict[str, list[str]]:
        """Names of the `each` best images, those around the median, and the worst; of three images
        or more none twice.
        """
        ranked = self.ranked()
        each = min(each, len(ranked) // 3) or 1
        middle = (len(ranked) - each) // 2
        return {
            "best": ranked[-each:][::-1],
            "median": ranked[middle : middle + each],
            "worst": ranked[:each],
        }

    def confused(self, truth: int | str, predicted: int | str) -> list[tuple[str, int]]:
        """Images in which pixels of class `truth` were taken for `predicted`, with how many, the
        most first.
        """
        counts = self.matrices[:, self._id(truth), self._id(predicted)].tolist()
        found = [(name, n) for name, n in zip(self.names, counts, strict=True) if n]
        return sorted(found, key=lambda item: (-item[1], item[0]))

    def shares(self, of: str) -> Tensor:
        """The matrix (C, C) as shares: `of="truth"` (rows add up to 1, recall on the diagonal) or
        "prediction" (columns).

        nan where a class does not occur.
        """
        if of not in {"truth", "prediction"}:
            raise ConfigError("of", of, "'truth' or 'prediction'")
        counts = self.matrix.double()
        return counts / counts.sum(dim=1 if of == "truth" else 0, keepdim=True)

    def _id(self, named: int | str) -> int:
        if isinstance(named, int) and 0 <= named < len(self.classes):
            return named
        if named not in self.classes:
            raise ConfigError("class", named, ", ".join(map(repr, self.classes)))
        return self.classes.index(named)

    def _scores(self, matrix: Tensor) -> dict[str, Any]:
        return scores(matrix, self.mode, self.score_background)


def read_images(
    model: Segmenter,
    data: SegmentationData,
    split: str = "validation",
    by: Predict = probabilities,
    watch: Callable[[list[str]], Iterator[str]] = iter,
) -> Reading:
    """Predict every image of a split at its own size, and keep what can be counted. The model is
    left as it was.

    `watch` hands on the names as they are asked for: room for a progress bar. Raises ConfigError
    for a split without images, and for a model of other classes.
    """
    if model.shape.classes != data.classes:
        raise ConfigError(
            "model",
            model.shape.classes,
            f"a model of the data's classes, {data.classes}",
            "Read its own run's data.",
        )
    if split not in data.splits or not data.splits[split]:
        raise ConfigError(
            "split", split, ", ".join(repr(s) for s, names in data.splits.items() if names)
        )
    names, matrices, things, borders, calibration = (
        data.splits[split],
        [],
        [],
        [],
        Calibration.empty(),
    )
    ground = data.mode == "binary" or data.classes[0] == "background"
    objects = range(1 if ground else 0, len(data.classes))
    for name in watch(names):
        image, ids = data.load(name)
        truth, given = data.trained(ids), by(model, image)
        confidence, predicted = given.max(0)
        matrices.append(confusion(predicted, torch.from_numpy(truth), len(data.classes)))
        calibration += Calibration.of(confidence, predicted, torch.from_numpy(truth))
        mask = np.where(truth == IGNORE, IGNORE, predicted.numpy()).astype(np.uint8)
        things += things_of(name, truth, mask, objects)
        borders += borders_of(name, truth, mask, objects)
    return Reading(
        data.classes,
        data.mode,
        data.cfg.score_background,
        split,
        tuple(names),
        torch.stack(matrices),
        tuple(things),
        tuple(borders),
        calibration,
    )
