"""What a sweep found: means over seeds with their intervals, main effects, and what unfreezing
bought. No torch.

Every comparison is paired: the same seed on both sides. Intervals are Student's, over seeds; they
speak of initialisation, order and dropout on these images, and not of other images.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean, stdev
from typing import NamedTuple

import numpy as np
from scipy.special import stdtrit

from vitseg.sweep.grid import Grid, total_epochs


class Result(NamedTuple):
    """What one trial ended with: IoU and F1 of its best weights, and the valid IoU by epoch over
    the whole run.
    """

    iou: float | None
    f1: float | None
    curve: dict[int, float | None]
    seconds: float


class Estimate(NamedTuple):
    """A mean over `n` seeds, and half its 95 % interval; None where one seed gives none."""

    mean: float
    half: float | None
    n: int

    def __str__(self) -> str:
        """ "+0.012 (+0.004 to +0.020)" """
        if self.half is None:
            return f"{self.mean:+.3f} (one seed, no interval)"
        low, high = self.mean - self.half, self.mean + self.half
        return f"{self.mean:+.3f} ({low:+.3f} to {high:+.3f})"


def estimate(values: Sequence[float]) -> Estimate | None:
    """Mean and half the interval: t(0.975, n - 1) s / sqrt(n) (Student 1908). None of no values."""
    n = len(values)
    if n < 2:
        return Estimate(values[0], None, 1) if values else None
    half = float(stdtrit(n - 1, 0.975)) * stdev(values) / math.sqrt(n)
    return Estimate(fmean(values), half, n)


class Findings:
    """What the trials of a grid that have ended, `results` by name, say about its settings."""

    def __init__(self, grid: Grid, results: Mapping[str, Result]):
        self.grid = grid
        known = {name: found.iou for name, found in results.items()}
        own = [trial for trial in grid.trials if trial.setting is not None]
        own.sort(key=lambda trial: trial.setting)
        pairs = [(known.get(trial.name), known.get(trial.control)) for trial in own]
        ious = np.array(pairs, float)  # nan where it is not known
        ious = ious.reshape(len(grid.settings), len(grid.seeds), 2)
        self._ious, self._gains = ious[..., 0], ious[..., 0] - ious[..., 1]

    def scores(self, setting: int) -> dict[int, float]:
        """IoU of a combination by seed, of the trials that have ended."""
        found = zip(self.grid.seeds, self._ious[setting].tolist(), strict=True)
        return {seed: iou for seed, iou in found if not math.isnan(iou)}

    def gain(self, setting: int) -> Estimate | None:
        """IoU of a combination over that of its control, the same number of epochs wholly in stage
        1.
        """
        return _mean_over_seeds(self._gains[[setting]])

    def main_effects(self) -> list[tuple[str, Estimate | None]]:
        """What each value of an axis but the first gains over that, averaged over pairs of settings
        that are alike in everything else; None until all pairs have ended with some seed.

        Where the axis has no effect both values are one training, which is no pair. A name says at
        which values of the other axes the pairs lie, unless at all: "stage 2 lr 0.001, against 0.1,
        at stage 2 unfrozen_blocks 2, 4". Every combination of those weighs the same.
        """
        found, grid = [], self.grid
        for axis, (name, words) in enumerate(grid.labels.items()):
            first, *others = np.moveaxis(grid.places, axis, 0)
            for word, level in zip(words[1:], others, strict=True):
                apart = level != first
                if apart.any():
                    gains = self._ious[level[apart]] - self._ious[first[apart]]
                    name_there = f"{name} {word}, against {words[0]}{_where(grid, axis, apart)}"
                    found.append((name_there, _mean_over_seeds(gains)))
        return found

    def unfreezing(self) -> Estimate | None:
        """IoU that the trials which unfreeze a block gain over their controls, averaged within each
        seed.
        """
        rows = {}
        for trial in self.grid.trials:
            if trial.control and any(stage.unfrozen_blocks for stage in trial.recipe.stages):
                rows[trial.setting] = self._gains[trial.setting]
        return _mean_over_seeds(rows.values())

    def sentence(self) -> str:
        """What unfreezing bought, in words that say no more than the seeds do."""
        found = self.unfreezing()
        if found is None:
            return (
                "What unfreezing bought is not known yet: no seed has all its trials and their "
                "controls."
            )
        lengths = [total_epochs(trial.recipe) for trial in self.grid.trials]
        epochs = " to ".join(map(str, sorted({min(lengths), max(lengths)})))
        against = f"by {found} against the same {epochs} epochs spent wholly in stage 1"
        if found.half is None:
            return f"Unfreezing changed the IoU {against}: nothing can be said about chance."
        verdict = f"lies {'above' if found.mean > 0 else 'below'} 0, on these validation images"
        if abs(found.mean) <= found.half:
            verdict = "covers 0: these seeds do not show that it helps, or harms"
        over = f"(mean and 95 % interval over {found.n} seeds)"
        return f"Unfreezing changed the IoU {against} {over}. The interval {verdict}."


def _mean_over_seeds(rows: Iterable[Iterable[float]]) -> Estimate | None:
    """Of rows of differences, a column for each seed: averaged within a seed, unless one of its
    differences is nan.
    """
    means = map(fmean, zip(*rows, strict=True))
    return estimate([mean for mean in means if not math.isnan(mean)])


def _where(grid: Grid, axis: int, apart: np.ndarray) -> str:
    """At which values of the other axes an axis has an effect: by axis, or one by one where that
    would name others, too.
    """
    others, pairs, named = list(grid.labels.items()), np.argwhere(apart), []
    del others[axis]
    taken = [np.unique(levels) for levels in pairs.T]
    if len(pairs) < math.prod(map(len, taken)):
        for levels in pairs:
            words = [labels[i] for (_, labels), i in zip(others, levels, strict=True)]
            named.append(" · ".join(words))
        return f", at {', '.join(named)}"
    for (name, labels), levels in zip(others, taken, strict=True):
        if len(levels) < len(labels):
            named.append(f"{name} {', '.join([labels[level] for level in levels])}")
    return f", at {' and '.join(named)}" if named else ""
