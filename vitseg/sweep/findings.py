"""What a sweep found: means over seeds with their intervals, main effects, and what unfreezing
bought. No torch.

Every comparison is paired: the same seed on both sides. Intervals are Student's, over seeds; they
speak of initialisation, order and dropout on these images, and not of other images.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from scipy.special import stdtrit

from vitseg.recipe import Recipe
from vitseg.sweep.grid import Grid, Trial, short_path, total_epochs

LEVEL = 0.95


@dataclass(frozen=True, slots=True)
class Result:
    """What one trial ended with: IoU and F1 of its best weights, and (epoch, valid IoU) over the
    whole run.
    """

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
        if self.half is None:
            return f"{self.mean:+.3f} (one seed, no interval)"
        low, high = self.mean - self.half, self.mean + self.half
        return f"{self.mean:+.3f} ({low:+.3f} to {high:+.3f})"

    @property
    def covers_0(self) -> bool:
        """Whether the data leave open if there is a difference at all; one seed always does."""
        return self.half is None or abs(self.mean) <= self.half


@dataclass(frozen=True, slots=True)
class Comparison:
    """A value of an axis against the axis's first, `pairs` of settings alike in everything else.

    Where the axis has no effect both values are one training, which is no pair. `where` says at
    which values of the other axes the pairs lie, "" if at all of them. Every combination of those
    weighs the same, so a pair may stand here twice.
    """

    axis: str
    value: str
    first: str
    where: str
    pairs: tuple[tuple[int, int], ...]

    def __str__(self) -> str:
        """ "stage 2 encoder_lr_factor 0.5, against 0.1, at stage 2 unfrozen_blocks 2, 4" """
        where = f", {self.where}" if self.where else ""
        return f"{self.axis} {self.value}, against {self.first}{where}"


@dataclass(frozen=True, slots=True)
class Effect:
    """What a value of an axis gains over the axis's first, averaged over the pairs of the
    comparison `of`.
    """

    of: Comparison
    gain: Estimate

    @property
    def axis(self) -> str:
        return self.of.axis

    @property
    def value(self) -> str:
        return self.of.value

    def __str__(self) -> str:
        return f"{self.of}: {self.gain}"


def estimate(values: Sequence[float]) -> Estimate | None:
    """Mean and half the interval: t(0.975, n - 1) s / sqrt(n) (Student 1908). None of no values."""
    n = len(values)
    if n < 2:
        return Estimate(values[0], None, 1) if values else None
    half = float(stdtrit(n - 1, (1 + LEVEL) / 2)) * stdev(values) / math.sqrt(n)
    return Estimate(fmean(values), half, n)


def scores(grid: Grid, results: Mapping[str, Result], setting: int) -> dict[int, float]:
    """IoU of a combination by seed, of the trials that have ended."""
    return ious_by_seed((t for t in grid.trials if t.setting == setting), results)


def ious_by_seed(trials: Iterable[Trial], results: Mapping[str, Result]) -> dict[int, float]:
    """Of the trials that have ended, and have an IoU."""
    found = {}
    for trial in trials:
        result = results.get(trial.name)
        if result and result.iou is not None:
            found[trial.seed] = result.iou
    return found


def gain(grid: Grid, results: Mapping[str, Result], setting: int) -> Estimate | None:
    """IoU of a combination over that of its control, the same number of epochs wholly in stage
    1.
    """
    trials = [t for t in grid.trials if t.setting == setting]
    return estimate(_over_controls(trials, results))


def comparisons(grid: Grid) -> list[Comparison]:
    """Every value but the first of each axis, unless the axis has no effect anywhere."""
    found = []
    for place, (path, values) in enumerate(grid.axes.items()):
        for level in range(1, len(values)):
            paired = _paired(grid, place, level)
            if paired:
                words, where = grid.labels[place], _where(grid, place, paired)
                pairs = tuple(paired.values())
                found.append(Comparison(short_path(path), words[level], words[0], where, pairs))
    return found


def main_effects(grid: Grid, results: Mapping[str, Result]) -> list[Effect]:
    """Of every comparison. Only seeds in which all its pairs have ended count."""
    by_seed = [scores(grid, results, number) for number in range(len(grid.settings))]
    found = []
    for comparison in comparisons(grid):
        needed = {setting for pair in comparison.pairs for setting in pair}
        differences = []
        for seed in grid.seeds:
            if all(seed in by_seed[setting] for setting in needed):
                gains = [by_seed[a][seed] - by_seed[b][seed] for a, b in comparison.pairs]
                differences.append(fmean(gains))
        if differences:
            found.append(Effect(comparison, estimate(differences)))
    return found


def unfreezing(grid: Grid, results: Mapping[str, Result]) -> Estimate | None:
    """IoU that the trials which unfreeze a block gain over their controls, averaged within each
    seed.
    """
    differences = []
    for seed in grid.seeds:
        trials = [t for t in grid.trials if t.seed == seed and t.control and _unfreezes(t.recipe)]
        own = _over_controls(trials, results)
        if own and len(own) == len(trials):
            differences.append(fmean(own))
    return estimate(differences)


def _unfreezes(recipe: Recipe) -> bool:
    return any(stage.unfrozen_blocks for stage in recipe.stages)


def sentence(grid: Grid, results: Mapping[str, Result]) -> str:
    """What unfreezing bought, in words that say no more than the seeds do."""
    found = unfreezing(grid, results)
    if found is None:
        return (
            "What unfreezing bought is not known yet: no seed has all its trials and their "
            "controls."
        )
    lengths = sorted({total_epochs(trial.recipe) for trial in grid.trials})
    epochs = " to ".join(map(str, dict.fromkeys([lengths[0], lengths[-1]])))
    against = f"against the same {epochs} epochs spent wholly in stage 1"
    if found.half is None:
        return (
            f"Unfreezing changed the IoU by {found.mean:+.3f} {against}, with one seed: "
            f"nothing can be said about chance."
        )
    over = f"(mean and 95 % interval over {found.n} seeds)"
    head = f"Unfreezing changed the IoU by {found} {against} {over}."
    if found.covers_0:
        return f"{head} The interval covers 0: these seeds do not show that it helps, or harms."
    side = "above" if found.mean > 0 else "below"
    return f"{head} The interval lies {side} 0, on these validation images."


def _over_controls(trials: Iterable[Trial], results: Mapping[str, Result]) -> list[float]:
    """IoU of each trial less that of its control, where both are known."""
    found = []
    for trial in trials:
        own, control = results.get(trial.name), results.get(trial.control or "")
        if own and control and own.iou is not None and control.iou is not None:
            found.append(own.iou - control.iou)
    return found


def _paired(grid: Grid, axis: int, level: int) -> dict[tuple[int, ...], tuple[int, int]]:
    """The settings at `level` and at the first value of an axis, by the levels of both; not where
    they are one training.
    """
    found = {}
    for levels, setting in grid.places.items():
        first = grid.places[(*levels[:axis], 0, *levels[axis + 1 :])]
        if levels[axis] == level and setting != first:
            found[levels] = setting, first
    return found


def _where(grid: Grid, axis: int, paired: Collection[tuple[int, ...]]) -> str:
    """At which values of the other axes the pairs lie: by axis, or one by one where that would name
    others, too.
    """
    words = grid.labels
    taken = [sorted(set(column)) for column in zip(*paired, strict=True)]
    if len(paired) < math.prod(map(len, taken)):
        others = []
        for levels in paired:
            named = [words[i][level] for i, level in enumerate(levels) if i != axis]
            others.append(" · ".join(named))
        return f"at {', '.join(others)}"
    limited = []
    for i, path in enumerate(grid.axes):
        if i != axis and len(taken[i]) < len(words[i]):
            named = [words[i][level] for level in taken[i]]
            limited.append(f"{short_path(path)} {', '.join(named)}")
    return f"at {' and '.join(limited)}" if limited else ""
