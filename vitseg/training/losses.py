"""Losses as sums and counts, so that a batch in portions gives what it would give in one."""

from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor

from vitseg.data.dataset import SegmentationData
from vitseg.errors import ConfigError
from vitseg.images import IGNORE
from vitseg.recipe import Recipe
from vitseg.settings import ByFrequency, Loss

_SMOOTH = 1e-5


class SegmentationLoss:
    """The weighted sum of cross-entropy, focal and Dice that a recipe asks for.

    `sums` / `counts`, element by element, added up, is the loss: cross-entropy and focal per pixel
    (weighted by the class weight of the truth, as PyTorch's mean does), Dice per image. Logits are
    (B, classes, H, W), masks (B, H, W) with IGNORE where nothing counts.
    """

    def __init__(self, cfg: Loss, classes: int, device: torch.device | str = "cpu"):
        weights = (1.0,) * classes if cfg.class_weights is None else cfg.class_weights
        if isinstance(weights, ByFrequency) or len(weights) != classes:
            allowed = f"{classes} positive numbers, one a class"
            hint = "Weights by frequency are counted by loss_of(recipe, data)."
            raise ConfigError("loss.class_weights", weights, allowed, hint)
        self.cfg, self.weights = cfg, torch.tensor(weights, device=device)

    def __call__(self, logits: Tensor, masks: Tensor) -> Tensor:
        """The loss of a batch that is whole."""
        return self.mean(self.sums(logits, masks), self.counts(masks))

    @staticmethod
    def mean(sums: Tensor, counts: Tensor) -> Tensor:
        """Where nothing counts, as in a batch that is ignored altogether, the loss is 0."""
        return (sums / counts.where(counts > 0, 1)).sum()

    def counts(self, masks: Tensor) -> Tensor:
        """What the sums are to be divided by: (weight of the pixels, number of images)."""
        # faster than to take pixels out
        seen = torch.bincount(masks.flatten(), minlength=IGNORE + 1)[: len(self.weights)]
        images = (masks != IGNORE).flatten(1).any(1)
        number = images.sum() if self.cfg.dice_over == "image" else images.any()
        return torch.stack([(seen * self.weights).sum(), number.to(self.weights)])

    def sums(self, logits: Tensor, masks: Tensor) -> Tensor:
        """(cross-entropy and focal over pixels, Dice over images), differentiable, in fp32."""
        cfg, logits, valid = self.cfg, logits.float(), masks != IGNORE
        truth = masks.where(valid, 0)
        pixels = dice = logits.new_zeros(())
        if cfg.cross_entropy:
            pixels = pixels + cfg.cross_entropy * F.cross_entropy(
                logits,
                masks,
                self.weights,
                ignore_index=IGNORE,
                reduction="sum",
                label_smoothing=cfg.label_smoothing,
            )
        if cfg.focal:
            pixels = pixels + cfg.focal * self._focal(logits, truth, valid)
        if cfg.dice:
            dice = cfg.dice * self._dice(logits, truth, valid)
        return torch.stack([pixels, dice])

    def _focal(self, logits: Tensor, truth: Tensor, valid: Tensor) -> Tensor:
        """-w_t (1 - p_t)^gamma log p_t (Lin et al. 2017), summed over pixels."""
        log_p = logits.log_softmax(1).gather(1, truth[:, None])[:, 0]
        # at 0 the gradient of a power below 1 is infinite
        doubt = (-torch.expm1(log_p)).clamp(min=1e-7)
        return (-self.weights[truth] * doubt**self.cfg.focal_gamma * log_p)[valid].sum()

    def _dice(self, logits: Tensor, truth: Tensor, valid: Tensor) -> Tensor:
        """1 - 2|P T| / (|P| + |T|) (Milletari et al. 2016), mean over the classes present, summed
        over images.
        """
        p = logits.softmax(1) * valid[:, None]
        # gathered rather than one-hot, which costs three times
        p_true = p.gather(1, truth[:, None])[:, 0]
        empty = p.new_zeros(p.shape[:2])
        overlap = empty.scatter_add(1, truth.flatten(1), p_true.flatten(1))
        truths = empty.scatter_add(1, truth.flatten(1), valid.to(p).flatten(1))
        sums = overlap, p.sum((2, 3)), truths
        if self.cfg.dice_over == "batch":
            sums = [each.sum(0, keepdim=True) for each in sums]
        overlap, predicted, truths = sums
        present = truths > 0
        dice = (2 * overlap + _SMOOTH) / (predicted + truths + _SMOOTH)
        return (((1 - dice) * present).sum(1) / present.sum(1).clamp(min=1)).sum()


def loss_of(
    recipe: Recipe, data: SegmentationData, device: torch.device | str = "cpu"
) -> SegmentationLoss:
    """A recipe's loss on its data; weights by frequency are counted over the training images."""
    cfg, classes = recipe.loss, len(data.classes)
    if isinstance(cfg.class_weights, ByFrequency):
        counted = weights_by_frequency(cfg.class_weights, data.pixels("train"), classes)
        cfg = cfg.model_copy(update={"class_weights": counted})
    return SegmentationLoss(cfg, classes, device)


def loss_notes(
    recipe: Recipe, data: SegmentationData, loss: SegmentationLoss | None = None
) -> list[str]:
    """What a reader should know about class weights before training: counted ones, and what
    smoothing does to them. `loss` is `loss_of(recipe, data)`, where that is known already.
    """
    classes, smoothing, said = data.classes, recipe.loss.label_smoothing, []
    weights = (loss or loss_of(recipe, data)).weights.tolist()
    if isinstance(recipe.loss.class_weights, ByFrequency):
        named = [f"{name} {w:.3g}" for name, w in zip(classes, weights, strict=True)]
        said.append(f"Class weights: {', '.join(named)}.")
    lowest, i = min((best_of_an_oracle(weights, smoothing, i), i) for i in range(len(weights)))
    if lowest < 0.5:
        name = classes[i]
        said.append(
            f"With these class weights label_smoothing={smoothing:g} asks even of a model that "
            f"knows every pixel for P({name}) = {lowest:.2f} where it is {name}. Lower the "
            "smoothing, or the weights."
        )
    return said


def weights_by_frequency(
    cfg: ByFrequency, pixels: Mapping[str, Mapping[int, float]], classes: int
) -> tuple[float, ...]:
    """One weight a class, from the pixels of the training images, by image and class.

    "inverse": all pixels / (classes * pixels of the class). "median": median frequency over
    frequency, where the frequency of a class is its share of the pixels of those images that hold
    it (Eigen & Fergus 2015). With `largest` the foreground's weights are multiplied so that the
    largest is that, and the first class, background, weighs 1. A class without a pixel weighs 1.
    """
    total, where = Counter(), Counter()
    for counts in pixels.values():
        total.update(counts)
        where.update(dict.fromkeys(counts, sum(counts.values())))
    total = +total  # without the classes that have no pixel
    if cfg.kind == "inverse":
        everything = sum(total[i] for i in sorted(total))
        found = {i: everything / (len(total) * n) for i, n in total.items()}
    else:
        frequency = {i: n / where[i] for i, n in total.items()}
        found = {i: median(frequency.values()) / share for i, share in frequency.items()}
    if cfg.largest is not None:
        found.pop(0, None)
        most = max(found.values(), default=1.0)
        found = {i: weight * cfg.largest / most for i, weight in found.items()}
    return tuple(found.get(i, 1.0) for i in range(classes))


def best_of_an_oracle(weights: Sequence[float], smoothing: float, truth: int = 0) -> float:
    """The P(truth) that weighted, smoothed cross-entropy asks of a model that knows the truth of a
    pixel.

    The loss is - sum_c q_c w_c log p_c with q = smoothing / K, and 1 - smoothing more for the
    truth; it is least at p_c proportional to q_c w_c.
    """
    asked = [smoothing / len(weights) * weight for weight in weights]
    asked[truth] += (1 - smoothing) * weights[truth]
    return asked[truth] / sum(asked)
