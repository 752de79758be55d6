"""An ablation without its widgets: a sweep, its curves, how far it is, and how long the rest will
take.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vitseg.errors import ConfigError
from vitseg.events import BatchEnded, EpochEnded, Event, RunStarted, TrialStarted, TrialTold
from vitseg.plan import batches_per_epoch
from vitseg.recipe import Recipe
from vitseg.runs.forecast import Cost, forecast, measure
from vitseg.runs.run import kept_events
from vitseg.sweep.grid import Grid, make_grid
from vitseg.sweep.local import Sweep, check_depths, facts_of
from vitseg.training.job import Job
from vitseg.ui.trials import Source, Trials


class SweepSession:
    """`curves` holds (epoch, valid IoU) of every trial begun, `trial` the name of the one that is
    being trained.
    """

    def __init__(
        self,
        recipe: Recipe,
        axes: Mapping[str, Sequence[Any]],
        seeds: int | Sequence[int],
        folder: str | Path | None,
        spread: Callable[[Sweep], Source] | None = None,
    ):
        self.job = Job(recipe)
        self.grid: Grid = make_grid(recipe, axes, seeds, facts_of(self.job))
        check_depths((t.recipe for t in self.grid.trials), self.job)
        self.sweep = Sweep(self.grid, folder)
        self.trials = Trials(spread(self.sweep) if spread else self.sweep, self, self._count)
        self.cost: Cost | None = None
        self.trial: str | None = None
        self.curves = {name: list(found.curve) for name, found in self.sweep.results().items()}
        self._recipes, self._ahead = (
            {t.name: t.recipe for t in self.grid.trials},
            dict[str, list[float]](),
        )
        self._inherits = dict(self.grid.shared)
        self._shares, self._seconds, self._done = dict[str, float](), 0.0, 0.0
        self._worked = time.monotonic()

    def _count(self, event: Event) -> None:
        match event:
            case TrialStarted():
                self._worked = time.monotonic()
                self._turn_to(event.trial)
            case RunStarted():
                self._inherits[self.trial] = event.parent["stage"] if event.parent else 0
            case BatchEnded() if event.stage > self._inherits[self.trial]:
                self._work(self.trial, 1 / max(1, self._own_steps(self.trial)))
            case EpochEnded():
                self.curves[self.trial].append((event.epoch, event.validation["iou"]))
            case TrialTold():
                self.trial = event.trial
                self.curves[event.trial].append((event.epoch, event.iou))
                self._work(
                    event.trial,
                    1 / sum(stage.epochs for stage in self._recipes[event.trial].stages),
                    math.inf,
                )

    def _work(self, trial: str, share: float, most: float = 60.0) -> None:
        """A share of a trial is done, in the seconds since the last one was, or `most`: the machine
        may have slept.
        """
        self._shares[trial] = self._shares.get(trial, 0.0) + share
        if self.trials.state == "running":  # a pause is no work
            now = time.monotonic()
            self._seconds += min(now - self._worked, most)
            self._worked = now
            self._done += self._weight_of(trial) * share

    def _turn_to(self, trial: str) -> None:
        """Of a trial that goes on, what it has already is taken from its folder."""
        self.trial, run = trial, self.sweep.run_of(trial)
        begun = (
            run.events_file.exists() and not self.trials.source.elsewhere
        )  # of one that is elsewhere all will be told
        before = kept_events(run.path) if begun else []
        if forked := run.forked():
            self._inherits[trial] = forked["stage"]
        steps = sum(isinstance(e, BatchEnded) and e.stage > self._inherits[trial] for e in before)
        self._shares[trial] = steps / max(1, self._own_steps(trial))
        self.curves[trial] = [
            (e.epoch, e.validation["iou"]) for e in before if isinstance(e, EpochEnded)
        ]

    def _own_steps(self, trial: str) -> int:
        recipe = self._recipes[trial]
        batches = batches_per_epoch(recipe, len(self.job.data.splits["train"]))
        return batches * sum(stage.epochs for stage in recipe.stages[self._inherits[trial] :])

    def _weight_of(self, trial: str) -> float:
        """Seconds that a trial's own stages will take by forecast; before that, its steps."""
        if self.cost is None:
            return float(self._own_steps(trial))
        if trial not in self._ahead:
            self._ahead[trial] = self._seconds_by_stage(self._recipes[trial])
        return sum(self._ahead[trial][self._inherits[trial] :])

    def _seconds_by_stage(self, recipe: Recipe) -> list[float]:
        """By forecast; of a recipe that cannot train here, such as one with a deeper encoder, as
        if it had the settings of the sweep's own recipe.
        """
        try:
            job = self.job.replace(recipe)
        except ConfigError:
            job = self.job
        return [stage.seconds for stage in forecast(job, self.cost)]

    def predicted_seconds(self) -> float:
        """What the trials that have not ended will take here. The first call times a few
        batches.
        """
        if self.cost is None:
            self.cost = measure(self.job)
        return sum(self._weight_of(t.name) for t in self.sweep.todo())

    def progress(self) -> tuple[float, float | None]:
        """Share of the work that is done, and seconds left once that can be said."""
        todo = [t.name for t in self.sweep.todo()]
        ahead = sum(map(self._weight_of, todo))
        ahead -= sum(self._weight_of(name) * min(1.0, self._shares.get(name, 0.0)) for name in todo)
        total = sum(self._weight_of(t.name) for t in self.grid.trials)
        return (
            1 - ahead / total if total else 1.0,
            ahead * self._seconds / self._done if self._done and self.trials.alive else None,
        )

    def sentence(self) -> tuple[str, str]:
        """What is happening, or "bad" and what is wrong."""
        count, failed = (
            len(self.grid.trials),
            [f"{name} failed: {text}" for name, text in self.sweep.failures.items()],
        )
        ended = count - len(self.sweep.todo())
        words = f"{ended} of {count} trials have ended."
        if self.trials.alive:
            return " ".join(
                filter(
                    None, [self.trials.doing(self.trial), words, *failed, self.trials.incomplete]
                )
            ), ""
        if wrong := self.trials.stopped_by():
            return wrong, "bad"
        if failed:
            return " ".join([words, *failed, "Start tries again."]), "bad"
        if ended == count:
            return f"All {count} trials have ended. Folder: {self.sweep.path}", ""
        return f"{words} Start trains {'the rest' if ended else 'them'}.", ""
