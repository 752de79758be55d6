"""Rare classes: how much their pixels weigh in the loss, and how often their images are shown. From
training images alone.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from statistics import median

from vitseg.errors import ConfigError
from vitseg.settings import ByFrequency

Pixels = Mapping[str, Mapping[int, float]]
"""Pixels on the canvas by image name and class id."""


def weights_by_frequency(cfg: ByFrequency, pixels: Pixels, classes: int) -> tuple[float, ...]:
    """One weight a class, from the pixels of the training images.

    "inverse": all pixels / (classes * pixels of the class). "median": median frequency over
    frequency, where the frequency of a class is its share of the pixels of those images that hold
    it (Eigen & Fergus 2015). With `largest` the foreground's weights are multiplied so that the
    largest is that, and the first class, background, weighs 1. A class without a pixel weighs 1.
    """
    of_class = {i: sum(counts.get(i, 0) for counts in pixels.values()) for i in range(classes)}
    present = {i: total for i, total in of_class.items() if total}
    if cfg.kind == "inverse":
        everything = sum(present.values())
        weights = {i: everything / (len(present) * total) for i, total in present.items()}
    else:
        where = {i: sum(sum(c.values()) for c in pixels.values() if c.get(i)) for i in present}
        share = {i: total / where[i] for i, total in present.items()}
        weights = {i: median(share.values()) / s for i, s in share.items()}
    if cfg.largest is not None:
        most = max((w for i, w in weights.items() if i > 0), default=1.0)
        weights = {i: w * cfg.largest / most if i > 0 else 1.0 for i, w in weights.items()}
    return tuple(weights.get(i, 1.0) for i in range(classes))


def rarity(pixels: Pixels) -> dict[str, float]:
    """How rare each image is: images in all, over images that hold the rarest of its classes.

    The image's repeat factor of Gupta et al. 2019, without its root and threshold. Raises
    ConfigError where all are alike.
    """
    holders: dict[int, int] = {}
    for counts in pixels.values():
        for i in counts:
            holders[i] = holders.get(i, 0) + 1
    weights = {
        name: max((len(pixels) / holders[i] for i in counts), default=1.0)
        for name, counts in pixels.items()
    }
    if len(set(weights.values())) == 1:
        mend = "Every training image holds classes as common as every other's."
        raise ConfigError(
            "data.sampler", "rarity", "'shuffle': rarity has no effect on these images", mend
        )
    return weights


def drawn_by(weights: Mapping[str, float], seed: int) -> list[str]:
    """As many names as there are, drawn with replacement by their weights; their order in `weights`
    does not matter.
    """
    names = sorted(weights)
    return random.Random(seed).choices(names, [weights[name] for name in names], k=len(names))


def best_of_an_oracle(weights: tuple[float, ...], smoothing: float, truth: int = 0) -> float:
    """The P(truth) that weighted, smoothed cross-entropy asks of a model that knows the truth of a
    pixel.

    The loss is - sum_c q_c w_c log p_c with q = smoothing / K, and 1 - smoothing more for the
    truth; it is least at p_c proportional to q_c w_c.
    """
    q = [smoothing / len(weights)] * len(weights)
    q[truth] += 1 - smoothing
    return q[truth] * weights[truth] / sum(a * w for a, w in zip(q, weights, strict=True))
