"""What a trained model makes of the images of a split: scores image by image, confusions, objects,
borders, calibration.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from PIL import Image, ImageOps
from scipy.ndimage import binary_erosion, distance_transform_edt, label
from torch import Tensor
from tqdm.auto import tqdm

from vitseg.data.dataset import SegmentationData
from vitseg.data.masks import refuse_unknown
from vitseg.draws import seed_for
from vitseg.errors import ConfigError
from vitseg.images import IGNORE
from vitseg.model.segmenter import Segmenter
from vitseg.training.metrics import confusion, scores

BINS = 15
"""Of a calibration."""

TOLERANCE = 2.0
"""Pixels within which a border counts as met: about what two annotators differ by."""


def probabilities(model: Segmenter, image: Image.Image) -> Tensor:
    """Softmax (classes, h, w) of one image at its own size, on the CPU."""
    return model.logits(image).softmax(0).cpu()


def flipped(model: Segmenter, image: Image.Image) -> Tensor:
    """Test-time augmentation: the mean of the probabilities of the image and of its mirror image,
    turned back.

    Probabilities, not logits: a mean of logits is a geometric mean, in which the surer of two
    passes has more than a vote.
    """
    mirrored = probabilities(model, ImageOps.mirror(image)).flip(2)
    return (probabilities(model, image) + mirrored) / 2


Predict = Callable[[Segmenter, Image.Image], Tensor]
"""From a model and an image to probabilities (classes, h, w) at the image's own size:
`probabilities`, or `flipped`.
"""


THINGS = ("name", "class_id", "pixels", "found", "IoU")
"""Of an object, a connected piece of one class in the truth: the image's name, the class, and the
size; `found` is the share of its pixels that were predicted as its class; `IoU` is its overlap with
the predicted pieces that touch it. A score over pixels hides what happens to small ones.
"""

BORDERS = ("name", "class_id", "distance", "within")
"""How far the borders of one class in one image are apart. `distance` is the average symmetric
surface distance: the mean way from a pixel of either border to the nearest of the other; `within`
is the share of those pixels with at most TOLERANCE to go.
"""


def objects_of(
    name: str, truth: np.ndarray, predicted: np.ndarray, classes: Iterable[int]
) -> tuple[list[tuple], list[tuple]]:
    """Of these classes in class ids (h, w): a row of THINGS for each piece, of which pixels that
    touch at a corner belong to one, and a row of BORDERS for each class that is in the truth and in
    the prediction. Ignored pixels are of no class in either.
    """
    things, borders, corners = [], [], np.ones((3, 3))
    for class_id in classes:
        regions = predicted == class_id, truth == class_id
        (guesses, _), (pieces, count) = (label(region, corners) for region in regions)
        sizes = np.bincount(guesses.ravel())
        for number in range(1, count + 1):
            inside = guesses[pieces == number]
            hit, pixels = inside[inside > 0], len(inside)
            union = pixels + sizes[np.unique(hit)].sum() - len(hit)
            things.append((name, class_id, pixels, len(hit) / pixels, len(hit) / union))
        # of what is cut off by the frame the border ends there
        mine, theirs = (region & ~binary_erosion(region) for region in regions)
        if mine.any() and theirs.any():
            there = distance_transform_edt(~theirs)[mine]
            back = distance_transform_edt(~mine)[theirs]
            ways = np.concatenate([there, back])
            borders.append((name, class_id, ways.mean(), (ways <= TOLERANCE).mean()))
    return things, borders


class Calibration(NamedTuple):
    """Whether a model that says 90 % is right nine times in ten: pixels by how sure it was of its
    answer, in BINS bins of equal width. Sums (BINS,) float64.
    """

    pixels: Tensor
    confidence: Tensor  # sum of the probabilities of the answers
    right: Tensor  # pixels whose answer is the truth

    def error(self) -> float:
        """Expected calibration error (Naeini et al. 2015): mean |confidence - accuracy| over
        pixels.
        """
        return float((self.confidence - self.right).abs().sum() / self.pixels.sum())

    def curve(self) -> pd.DataFrame:
        """Mean confidence, accuracy, and share of all pixels of every bin that holds any."""
        n, sure, right = torch.stack(self)[:, self.pixels > 0]
        return pd.DataFrame(
            {"confidence": sure / n, "accuracy": right / n, "share of pixels": n / n.sum()}
        )


def binned(confidence: Tensor, predicted: Tensor, truth: Tensor) -> Tensor:
    """The sums (3, BINS) of a Calibration, so that images add up, of one image: probabilities of
    the answers, the answers, and the truth, all (h, w); ignored pixels are left out.
    """
    counted = truth != IGNORE
    sure = confidence[counted].double()
    place = (sure * BINS).long().clamp(max=BINS - 1)  # a bin holds its lower end
    rows = torch.stack([torch.ones_like(sure), sure, (predicted == truth)[counted]])
    return torch.zeros(3, BINS, dtype=torch.float64).index_add_(1, place, rows)


@dataclass(frozen=True, eq=False)
class Reading:
    """A model on a split. `matrices` (N, C, C) int64 are pixel counts by image, truth by row,
    ignored pixels left out; `things` and `borders` have the columns THINGS and BORDERS.
    """

    classes: tuple[str, ...]
    mode: str
    score_background: bool
    split: str
    names: tuple[str, ...]
    matrices: Tensor
    things: pd.DataFrame
    borders: pd.DataFrame
    calibration: Calibration

    @property
    def matrix(self) -> Tensor:
        """Pixel counts (C, C) int64 of all images."""
        return self.matrices.sum(0)

    def scores(self) -> dict[str, Any]:
        """As training logs them: from one confusion matrix over all images."""
        return scores(self.matrix, self.mode, self.score_background)

    def iou_by_image(self) -> pd.Series:
        """By name; nan where an image holds nothing that is scored."""
        return self._iou(self.matrices).set_axis(self.names)

    def _iou(self, matrices: Iterable[Tensor]) -> pd.Series:
        found = [scores(matrix, self.mode, self.score_background)["iou"] for matrix in matrices]
        return pd.Series(found, dtype=float)

    def means(self, batch_size: int) -> dict[str, float | None]:
        """One and the same predictions, three usual ways to say "IoU": they differ where images
        hold unequally much.

        Over the data set pixels count alike, so large objects decide. Over images each image counts
        alike, an image without a class is left out of that class. Over batches is an accident of
        their order, and what many training loops print.
        """
        batches = (batch.sum(0) for batch in self.matrices.split(batch_size))
        return {
            "data set": self.scores()["iou"],
            "images": float(self._iou(self.matrices).mean()),
            "batches": float(self._iou(batches).mean()),
        }

    def interval(self) -> list[float]:
        """95 % interval, low and high, of the data set's IoU over images like these: percentiles of
        a bootstrap over images (Efron 1979).

        It knows nothing of what another seed of training would have changed. The draws are the same
        each time. nan where no image holds anything that is scored.
        """
        rng, n = np.random.default_rng(seed_for("bootstrap")), len(self.names)
        counts = torch.from_numpy(rng.multinomial(n, [1 / n] * n, 1000))
        totals = torch.einsum("rn,nij->rij", counts, self.matrices)
        return self._iou(totals).quantile([0.025, 0.975]).tolist()

    def by_class(self) -> pd.DataFrame:
        """A row a class: its IoU, its share of the pixels, how many objects it has, and what is
        usual of its borders: the medians over images that hold the class and a prediction of it.
        """
        pixels, things = self.matrix.sum(1).double(), self.things["class_id"].astype(int)
        columns = {
            "class_id": range(len(pixels)),
            "class": self.classes,
            "IoU": self.scores()["per_class_iou"],
            "share": pixels / pixels.sum(),
            "objects": np.bincount(things, minlength=len(pixels)),
        }
        borders = self.borders.groupby("class_id")[["distance", "within"]].median()
        return pd.DataFrame(columns).join(borders)

    def summary(self, batch_size: int = 8) -> pd.DataFrame:
        """A row a score; nan where nothing is scored."""
        means, found = self.means(batch_size), self.scores()
        low, high = self.interval()
        numbers = {
            "IoU over all pixels: what training logs": means["data set"],
            "the same, 95 % interval over images, from": low,
            "to": high,
            "IoU, mean over images: small objects count as much as large": means["images"],
            f"IoU, mean over batches of {batch_size}: depends on their order": means["batches"],
            "F1": found["f1"],
            "accuracy": found["accuracy"],
            "calibration error: mean |confidence - accuracy|": self.calibration.error(),
        }
        return pd.DataFrame(numbers.items(), columns=["score", "value"])

    def examples(self, each: int = 2) -> dict[str, list[str]]:
        """Names of the `each` best images, those around the median, and the worst; of three images
        or more none twice.
        """
        ranked = self.iou_by_image().dropna().sort_values(kind="stable").index.tolist()
        each = min(each, len(ranked) // 3) or 1
        middle = (len(ranked) - each) // 2
        return {
            "best": ranked[-each:][::-1],
            "median": ranked[middle : middle + each],
            "worst": ranked[:each],
        }

    def confused(self, truth: int | str, predicted: int | str) -> pd.Series:
        """How many pixels of class `truth` were taken for `predicted`, by name of the image, the
        most first; without those in which none was.
        """
        counts = self.matrices[:, self._id(truth), self._id(predicted)].numpy()
        found = pd.Series(counts, self.names).sort_values(ascending=False, kind="stable")
        return found[found > 0]

    def shares(self, of: str) -> Tensor:
        """The matrix (C, C) as shares: `of="truth"` (rows add up to 1, recall on the diagonal) or
        "prediction" (columns).

        nan where a class does not occur.
        """
        axes = {"truth": 1, "prediction": 0}
        refuse_unknown("of", [of], axes)
        counts = self.matrix.double()
        return counts / counts.sum(axes[of], keepdim=True)

    def _id(self, named: int | str) -> int:
        for class_id, name in enumerate(self.classes):
            if named in (class_id, name):
                return class_id
        raise ConfigError("class", named, ", ".join(map(repr, self.classes)))


def in_text(table: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    """The heads of its columns and its rows, for people: of a score three digits."""
    text = table.astype(object).fillna("n/a")
    text = text.map(lambda value: f"{value:.3f}" if isinstance(value, float) else str(value))
    return list(text), text.to_numpy().tolist()


def read(
    model: Segmenter, data: SegmentationData, split: str = "validation", by: Predict = probabilities
) -> Reading:
    """Predict the images of a split at their own size, under a bar if it takes longer than a
    moment, and count what can be counted. The model is left as it was.

    `by` says how: `vitseg.probabilities`, or `vitseg.flipped` for test-time augmentation. Raises
    ConfigError for a split without images, and for a model of other classes.
    """
    classes = data.classes
    if model.shape.classes != classes:
        allowed = f"a model of the data's classes, {classes}"
        raise ConfigError("model", model.shape.classes, allowed, "Read its own run's data.")
    refuse_unknown("split", [split], [name for name, names in data.splits.items() if names])
    ground = data.mode == "binary" or classes[0] == "background"
    objects = range(ground, len(classes))
    matrices, things, borders, bins = [], [], [], torch.zeros(3, BINS, dtype=torch.float64)
    for name in tqdm(data.splits[split], split, unit="image", leave=False, delay=1.0, disable=None):
        image, ids = data.load(name)
        truth = data.trained(torch.from_numpy(ids))
        confidence, predicted = by(model, image).max(0)
        matrices.append(confusion(predicted, truth, len(classes)))
        bins += binned(confidence, predicted, truth)
        predicted[truth == IGNORE] = IGNORE
        found, edges = objects_of(name, truth.numpy(), predicted.byte().numpy(), objects)
        things += found
        borders += edges
    return Reading(
        classes,
        data.mode,
        data.cfg.score_background,
        split,
        tuple(data.splits[split]),
        torch.stack(matrices),
        pd.DataFrame(things, columns=THINGS),
        pd.DataFrame(borders, columns=BORDERS),
        Calibration(*bins),
    )
