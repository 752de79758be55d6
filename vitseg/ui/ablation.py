"""A quick ablation in one cell: the plan before it runs, a table that fills, and the sentence at
the end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import plotly.graph_objects as go

from vitseg.errors import ConfigError
from vitseg.events import BatchEnded, EpochEnded, Event, Polled, RunStarted, TrialStarted, TrialTold
from vitseg.recipe import Recipe
from vitseg.runs.forecast import forecast, measure
from vitseg.runs.run import kept_events
from vitseg.sweep.findings import Findings
from vitseg.sweep.grid import make_grid
from vitseg.sweep.local import Sweep, check_depths, facts_of
from vitseg.training.job import Job
from vitseg.ui import markup, sweep_charts, theme
from vitseg.ui.table import Table, number_or_na
from vitseg.ui.trials import Trials, TrialsScreen


def ablate(
    recipe: Recipe,
    axes: Mapping[str, Sequence[Any]],
    seeds: int | Sequence[int] = 3,
    folder: str | Path | None = None,
    *,
    where: Literal["here", "ray"] = "here",
    address: str | None = None,
    gpus: float = 0,
) -> Ablation:
    """Train every combination of the axes' values with every seed, and ask what unfreezing bought.

    `ablate(recipe, {"stages.1.unfrozen_blocks": [0, 2, 4]}, seeds=3)` shows the plan; Start, or
    `start()`, trains it in the background. First stages that trials share are trained once. Beside
    the trials run controls, which spend the same epochs wholly in stage 1. The same call in a later
    kernel finds the folder and goes on. Raises VitsegError for an axis, a value or a folder that
    cannot be.

    `where="ray"` trains trials side by side on a Ray cluster; `address` and `gpus` are those of
    `vitseg.sweep.cluster.Spread`, and docs/cluster.md says how.
    """
    if where not in ("here", "ray"):
        raise ConfigError("where", where, "here, ray")
    if where == "here" and (address is not None or gpus):
        raise ConfigError("address, gpus", (address, gpus), "nothing, unless where='ray'")
    job = Job(recipe)
    grid = make_grid(recipe, axes, seeds, facts_of(job))
    check_depths((trial.recipe for trial in grid.trials), job)
    if where == "here":
        sweep = Sweep(grid, folder)
    else:
        from vitseg.sweep.cluster import Spread  # needs an extra

        sweep = Spread(grid, folder, address, gpus)
    return Ablation(SweepSession(job, sweep).attached())


class SweepSession(Trials):
    """An ablation without its widgets. `curves` holds (epoch, valid IoU) of every trial that has
    been started.
    """

    def __init__(self, job: Job, sweep: Sweep):
        super().__init__(sweep)
        self.job, self.sweep, self.grid = job, sweep, sweep.grid
        self.curves = {name: list(found.curve) for name, found in sweep.results().items()}
        self._inherits, self._reached = dict(self.grid.shared), dict.fromkeys(self.grid.shared, 0.0)
        self._beside = 1
        self._stages = {}  # epochs, and what one of them takes
        for trial in self.grid.trials:
            self._stages[trial.name] = [(stage.epochs, 1.0) for stage in trial.recipe.stages]

    def _note(self, event: Event) -> None:
        match event:
            case TrialStarted(trial):
                self.trial, self.curves[trial] = trial, []
                run = self.sweep.run_of(trial)
                if run.events_file.exists() and not self.elsewhere:  # elsewhere all will be told
                    for earlier in kept_events(run):
                        self._note(earlier)
            case RunStarted():
                self._inherits[self.trial] = event.parent["stage"] if event.parent else 0
            case BatchEnded():
                self._reached[self.trial] = event.epoch - 1 + event.batch / event.batches
            case EpochEnded():
                self.curves[self.trial].append((event.epoch, event.validation["iou"]))
            case TrialTold():
                self._reached[event.trial] = event.epoch
                self.curves[event.trial].append((event.epoch, event.iou))
            case Polled():
                self._beside = max(1, event.running)

    def _work(self, trial: str, since: float = 0.0) -> float:
        """What a trial's own stages take after an epoch, in seconds by forecast; before there is
        one, in epochs.
        """
        work = end = 0.0
        for number, (epochs, cost) in enumerate(self._stages[trial]):
            end += epochs
            if number >= self._inherits[trial]:
                work += cost * min(epochs, max(0.0, end - since))
        return work

    def measure(self) -> None:
        if self.cost is not None:
            return
        cost = measure(self.job)
        for trial in self.grid.trials:
            try:
                job = self.job.replace(trial.recipe)
            except ConfigError:  # it cannot train here, such as one with a deeper encoder
                job = self.job
            planned = zip(job.recipe.stages, forecast(job, cost), strict=True)
            self._stages[trial.name] = [(s.epochs, f.seconds / s.epochs) for s, f in planned]
        self.cost = cost

    def progress(self) -> tuple[float, float | None]:
        """By what the trials that have ended took, or else by forecast."""
        total, left = sum(map(self._work, self._stages)), None
        ahead = sum(self._work(t.name, self._reached[t.name]) for t in self.sweep.todo())
        took = worked = 0.0
        for name, found in self.sweep.results().items():
            took += found.seconds
            worked += self._work(name)
        if worked:
            left = ahead * took / worked / self._beside  # trials side by side
        elif self.cost:
            left = ahead
        return 1 - ahead / total if total else 1.0, left

    def score_of(self, trial: str) -> str:
        return number_or_na(self.sweep.results()[trial].iou)

    def tally(self) -> tuple[int, int, Mapping[str, str]]:
        total = len(self.grid.trials)
        return total - self.sweep.left(), total, self.sweep.failures


class Ablation(TrialsScreen):
    """A sweep on the screen; see `ablate`. `start`, `pause`, `resume`, `stop` and `wait` do what
    the buttons do.
    """

    session: SweepSession

    def __init__(self, session: SweepSession):
        self.grid, self.sweep = session.grid, session.sweep
        super().__init__(session)

    def planned(self) -> Table:
        """What is going to be trained."""
        return sweep_charts.plan_table(self.grid)

    @property
    def table(self) -> Table:
        """A row a setting, a column a seed."""
        now = self.session.trial if self.session.alive else None
        return sweep_charts.result_table(self.grid, self.sweep.results(), self.sweep.failures, now)

    @property
    def sentence(self) -> str:
        """What unfreezing bought, with its interval."""
        return Findings(self.grid, self.sweep.results()).sentence()

    def show(self) -> go.Figure:
        """Curves, heat map and effects as a static figure."""
        return sweep_charts.figure(self.grid, self.sweep.results(), self.session.curves)

    def frame(self) -> pd.DataFrame:
        """A row a trial."""
        return sweep_charts.frame(self.grid, self.sweep.results(), self.sweep.failures)

    def csv(self) -> Path:
        """Write `frame` into the sweep's folder."""
        path = self.sweep.path / "trials.csv"
        self.frame().to_csv(path, index=False)
        return path

    def report(self) -> Path:
        """Write `report.html` into the sweep's folder: it opens without a network."""
        recipe = self.grid.recipe.model_dump_json(indent=2)
        body = [
            f"{markup.lines(self.notes())}{markup.html(self.table)}",
            self.show().to_html(full_html=False, include_plotlyjs=True, config=theme.CONFIG),
            f"<h2>Plan</h2>{markup.html(self.planned())}",
            f"<h2>Recipe</h2><pre>{escape(recipe)}</pre>",
        ]
        path = self.sweep.path / "report.html"
        path.write_text(markup.page(self.sweep.path.name, "\n".join(body)), encoding="utf-8")
        return path

    def notes(self) -> list[markup.Line]:
        """What was found, what was left out, where it all is."""
        left_out = [("quiet", "", note) for note in self.grid.notes]
        return [("said", "", self.sentence), *left_out, *super().notes()]
