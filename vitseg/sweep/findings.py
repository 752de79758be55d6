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

from vitseg.sweep.grid import Grid, Trial, short_path, value_words

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
        spread = (
            "one seed, no interval"
            if self.half is None
            else f"{self.mean - self.half:+.3f} to {self.mean + self.half:+.3f}"
        )
        return f"{self.mean:+.3f} ({spread})"

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
        return ", ".join(
            filter(None, [f"{self.axis} {self.value}", f"against {self.first}", self.where])
        )


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
    return Estimate(
        fmean(values), float(stdtrit(n - 1, (1 + LEVEL) / 2)) * stdev(values) / math.sqrt(n), n
    )


def scores(grid: Grid, results: Mapping[str, Result], setting: int) -> dict[int, float]:
    """IoU of a combination by seed, of the trials that have ended."""
    return _by_seed((t for t in grid.trials if t.setting == setting), results)


def gain(grid: Grid, results: Mapping[str, Result], setting: int) -> Estimate | None:
    """IoU of a combination over that of its control, the same number of epochs wholly in stage
    1.
    """
    return estimate(
        [
            d
            for t in grid.trials
            if t.setting == setting
            if (d := _over_control(t, results)) is not None
        ]
    )


def comparisons(grid: Grid) -> list[Comparison]:
    """Every value but the first of each axis, unless the axis has no effect anywhere."""
    found = []
    for place, (path, values) in enumerate(grid.axes.items()):
        for level, value in list(enumerate(values))[1:]:
            paired = _paired(grid, place, level)
            if paired:
                words = [value_words(v, values) for v in (value, values[0])]
                found.append(
                    Comparison(
                        short_path(path),
                        *words,
                        _where(grid, place, paired),
                        tuple(paired.values()),
                    )
                )
    return found


def main_effects(grid: Grid, results: Mapping[str, Result]) -> list[Effect]:
    """Of every comparison. Only seeds in which all its pairs have ended count."""
    by_seed = [scores(grid, results, number) for number in range(len(grid.settings))]
    found = []
    for comparison in comparisons(grid):
        differences = [
            fmean(by_seed[a][seed] - by_seed[b][seed] for a, b in comparison.pairs)
            for seed in grid.seeds
            if all(seed in by_seed[a] and seed in by_seed[b] for a, b in comparison.pairs)
        ]
        if (mean := estimate(differences)) is not None:
            found.append(Effect(comparison, mean))
    return found


def unfreezing(grid: Grid, results: Mapping[str, Result]) -> Estimate | None:
    """IoU that the trials which unfreeze a block gain over their controls, averaged within each
    seed.
    """
    differences = []
    for seed in grid.seeds:
        trials = [
            t
            for t in grid.trials
            if t.seed == seed and t.control and any(s.unfrozen_blocks for s in t.recipe.stages)
        ]
        own = [_over_control(t, results) for t in trials]
        if own and None not in own:
            differences.append(fmean(own))
    return estimate(differences)


def sentence(grid: Grid, results: Mapping[str, Result]) -> str:
    """What unfreezing bought, in words that say no more than the seeds do."""
    found = unfreezing(grid, results)
    if found is None:
        return (
            "What unfreezing bought is not known yet: no seed has all its trials and their "
            "controls."
        )
    lengths = sorted({sum(s.epochs for s in t.recipe.stages) for t in grid.trials})
    epochs = f"{lengths[0]}" if len(lengths) == 1 else f"{lengths[0]} to {lengths[-1]}"
    against = f"against the same {epochs} epochs spent wholly in stage 1"
    if found.half is None:
        return (
            f"Unfreezing changed the IoU by {found.mean:+.3f} {against}, with one seed: "
            f"nothing can be said about chance."
        )
    head = (
        f"Unfreezing changed the IoU by {found} {against} (mean and 95 % interval over "
        f"{found.n} seeds)."
    )
    if found.covers_0:
        return f"{head} The interval covers 0: these seeds do not show that it helps, or harms."
    return (
        f"{head} The interval lies {'above' if found.mean > 0 else 'below'} 0, on these "
        f"validation images."
    )


def _over_control(trial: Trial, results: Mapping[str, Result]) -> float | None:
    own, control = results.get(trial.name), results.get(trial.control or "")
    if own is None or control is None or own.iou is None or control.iou is None:
        return None
    return own.iou - control.iou


def _by_seed(trials: Iterable[Trial], results: Mapping[str, Result]) -> dict[int, float]:
    return {
        t.seed: results[t.name].iou
        for t in trials
        if t.name in results and results[t.name].iou is not None
    }


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
    values = list(grid.axes.values())
    words = [[value_words(v, known) for v in known] for known in values]
    taken = [sorted(set(column)) for column in zip(*paired, strict=True)]
    if len(paired) < math.prod(map(len, taken)):
        others = [
            [words[i][level] for i, level in enumerate(levels) if i != axis] for levels in paired
        ]
        return f"at {', '.join(map(' · '.join, others))}"
    limited = [
        f"{short_path(path)} {', '.join(words[i][level] for level in taken[i])}"
        for i, path in enumerate(grid.axes)
        if i != axis and len(taken[i]) < len(values[i])
    ]
    return f"at {' and '.join(limited)}" if limited else ""
