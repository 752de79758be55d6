"""What a sweep found: means over seeds with their intervals, main effects, and what unfreezing
bought. No torch.

Every comparison is paired: the same seed on both sides. Intervals are Student's, over seeds; they
speak of initialisation, order and dropout on these images, and not of other images.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
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


def estimate(values: Iterable[float]) -> Estimate | None:
    """Mean and half the interval, t(0.975, n - 1) s / sqrt(n) (Student 1908), of the values that
    are not nan; None if there are none.
    """
    known = [value for value in values if not math.isnan(value)]
    n, half = len(known), None
    if n > 1:
        half = float(stdtrit(n - 1, 0.975)) * stdev(known) / math.sqrt(n)
    return Estimate(fmean(known), half, n) if known else None


class Findings:
    """What the trials of a grid that have ended, `results` by name, say about its settings."""

    def __init__(self, grid: Grid, results: Mapping[str, Result]):
        self.grid = grid
        known = {name: found.iou for name, found in results.items()}
        pairs = defaultdict(list)  # by setting, one for each seed
        for trial in grid.trials:
            pairs[trial.setting].append((known.get(trial.name), known.get(trial.control)))
        settings = map(pairs.get, range(len(grid.settings)))
        ious = np.array([*settings], float)  # nan where it is not known
        self._ious, self._gains = ious[..., 0], ious[..., 0] - ious[..., 1]

    def scores(self, setting: int) -> dict[int, float]:
        """IoU of a combination by seed, of the trials that have ended."""
        scores = zip(self.grid.seeds, self._ious[setting].tolist(), strict=True)
        return {seed: iou for seed, iou in scores if not math.isnan(iou)}

    def gain(self, setting: int) -> Estimate | None:
        """IoU of a combination over that of its control, the same number of epochs wholly in stage
        1.
        """
        return estimate(self._gains[setting])

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
                    pair = f"{name} {word}, against {words[0]}{_where(grid, axis, apart)}"
                    found.append((pair, estimate(gains.mean(axis=0))))
        return found

    def unfreezing(self) -> Estimate | None:
        """IoU that the trials which unfreeze a block gain over their controls, averaged within each
        seed.
        """
        rows = []
        for trial in self.grid.trials:
            if trial.control and any(stage.unfrozen_blocks for stage in trial.recipe.stages):
                rows += [self._gains[trial.setting]]  # once for each seed: all weigh the same
        return estimate(map(fmean, zip(*rows, strict=True)))

    def sentence(self) -> str:
        """What unfreezing bought, in words that say no more than the seeds do."""
        found = self.unfreezing()
        if found is None:
            return "What unfreezing bought is not known yet: no seed has all trials and controls."
        lengths = sorted({total_epochs(trial.recipe) for trial in self.grid.trials})
        changed = (
            f"Unfreezing changed the IoU by {found} against the same "
            f"{' or '.join(map(str, lengths))} epochs spent wholly in stage 1"
        )
        if found.half is None:
            return f"{changed}: nothing can be said about chance."
        verdict = f"lies {'above' if found.mean > 0 else 'below'} 0, on these validation images"
        if abs(found.mean) <= found.half:
            verdict = "covers 0: these seeds do not show that it helps, or harms"
        over = f"mean and 95 % interval over {found.n} seeds"
        return f"{changed} ({over}). The interval {verdict}."


def _where(grid: Grid, axis: int, apart: np.ndarray) -> str:
    """At which values of the other axes an axis has an effect; those that do not matter are left
    out.
    """
    others, names, columns = list(grid.labels.items()), [], []
    del others[axis]
    for place, levels in enumerate(np.argwhere(apart).T):
        name, words = others[place]
        if (apart != apart.take([0], place)).any():
            names.append(name)
            columns.append([words[level] for level in levels])
    there = dict.fromkeys(map(" · ".join, zip(*columns, strict=True)))
    return f", at {' · '.join(names)} {', '.join(there)}" if names else ""
