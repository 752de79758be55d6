"""What a sweep found: means over seeds with their intervals, main effects, and what unfreezing bought. No torch.

Every comparison is paired: the same seed on both sides. Intervals are Student's, over seeds; they speak of initialisation,
order and dropout on these images, and not of other images.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from scipy.special import stdtrit

from vitseg.sweep.grid import Grid, Trial, short_path, value_words

LEVEL = 0.95


@dataclass(frozen=True, slots=True)
class Result:
    """What one trial ended with: IoU and F1 of its best weights, and (epoch, valid IoU) over the whole run."""

    iou: float | None
    f1: float | None
    curve: tuple[tuple[int, float | None], ...]
    seconds: float


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over `n` seeds, and half its 95 % interval; None where one seed gives none."""

    mean: float
    half: float | None
    n: int

    def __str__(self) -> str:
        """ "+0.012 (+0.004 to +0.020)" """
        spread = (
            "one seed, no interval" if self.half is None else f"{self.mean - self.half:+.3f} to {self.mean + self.half:+.3f}"
        )
        return f"{self.mean:+.3f} ({spread})"

    @property
    def covers_0(self) -> bool:
        """Whether the data leave open if there is a difference at all; one seed always does."""
        return self.half is None or abs(self.mean) <= self.half


@dataclass(frozen=True, slots=True)
class Effect:
    """What a value of an axis gains over the axis's first, everything else alike."""

    axis: str
    value: str
    gain: Estimate


def estimate(values: Sequence[float]) -> Estimate | None:
    """Mean and half the interval: t(0.975, n - 1) s / sqrt(n) (Student 1908). None of no values."""
    n = len(values)
    if n < 2:
        return Estimate(values[0], None, 1) if values else None
    return Estimate(fmean(values), float(stdtrit(n - 1, (1 + LEVEL) / 2)) * stdev(values) / math.sqrt(n), n)


def scores(grid: Grid, results: Mapping[str, Result], setting: int) -> dict[int, float]:
    """IoU of a combination by seed, of the trials that have ended."""
    return _by_seed((t for t in grid.trials if t.setting == setting), results)


def gain(grid: Grid, results: Mapping[str, Result], setting: int) -> Estimate | None:
    """IoU of a combination over that of its control, the same number of epochs wholly in stage 1."""
    return estimate([d for t in grid.trials if t.setting == setting if (d := _over_control(t, results)) is not None])


def main_effects(grid: Grid, results: Mapping[str, Result]) -> list[Effect]:
    """Of every value but the first of each axis. Only seeds in which both values have all their combinations count."""
    by_seed = [scores(grid, results, number) for number in range(len(grid.settings))]
    found = []
    for place, (path, values) in enumerate(grid.axes.items()):
        for value in values[1:]:
            pairs = _pairs(grid, place, values.index(value))
            differences = [
                fmean(by_seed[a][seed] - by_seed[b][seed] for a, b in pairs)
                for seed in grid.seeds
                if all(seed in by_seed[a] and seed in by_seed[b] for a, b in pairs)
            ]
            if (mean := estimate(differences)) is not None:
                found.append(Effect(short_path(path), value_words(value, values), mean))
    return found


def unfreezing(grid: Grid, results: Mapping[str, Result]) -> Estimate | None:
    """IoU that the trials which unfreeze a block gain over their controls, averaged within each seed."""
    differences = []
    for seed in grid.seeds:
        trials = [t for t in grid.trials if t.seed == seed and t.control and any(s.unfrozen_blocks for s in t.recipe.stages)]
        own = [_over_control(t, results) for t in trials]
        if own and None not in own:
            differences.append(fmean(own))
    return estimate(differences)


def sentence(grid: Grid, results: Mapping[str, Result]) -> str:
    """What unfreezing bought, in words that say no more than the seeds do."""
    found = unfreezing(grid, results)
    if found is None:
        return "What unfreezing bought is not known yet: no seed has all its trials and their controls."
    lengths = sorted({sum(s.epochs for s in t.recipe.stages) for t in grid.trials})
    epochs = f"{lengths[0]}" if len(lengths) == 1 else f"{lengths[0]} to {lengths[-1]}"
    against = f"against the same {epochs} epochs spent wholly in stage 1"
    if found.half is None:
        return f"Unfreezing changed the IoU by {found.mean:+.3f} {against}, with one seed: nothing can be said about chance."
    head = f"Unfreezing changed the IoU by {found} {against} (mean and 95 % interval over {found.n} seeds)."
    if found.covers_0:
        return f"{head} The interval covers 0: these seeds do not show that it helps, or harms."
    return f"{head} The interval lies {'above' if found.mean > 0 else 'below'} 0, on these validation images."


def _over_control(trial: Trial, results: Mapping[str, Result]) -> float | None:
    own, control = results.get(trial.name), results.get(trial.control or "")
    if own is None or control is None or own.iou is None or control.iou is None:
        return None
    return own.iou - control.iou


def _by_seed(trials: Iterable[Trial], results: Mapping[str, Result]) -> dict[int, float]:
    return {t.seed: results[t.name].iou for t in trials if t.name in results and results[t.name].iou is not None}


def _pairs(grid: Grid, axis: int, level: int) -> list[tuple[int, int]]:
    """Combinations that differ in one axis alone: at `level`, and at the axis's first value."""
    return [
        (setting, grid.places[(*levels[:axis], 0, *levels[axis + 1 :])])
        for levels, setting in grid.places.items()
        if levels[axis] == level
    ]
