"""A quick ablation in one cell: the plan before it runs, a table that fills, and the sentence at
the end.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from html import escape
from pathlib import Path
from typing import Any, Literal

import ipywidgets as w
import pandas as pd
import plotly.graph_objects as go

from vitseg.errors import ConfigError
from vitseg.events import BatchEnded, EpochEnded, Event, RunStarted, TrialStarted, TrialTold
from vitseg.plan import batches_per_epoch
from vitseg.recipe import Recipe
from vitseg.runs.forecast import forecast, measure
from vitseg.runs.run import kept_events
from vitseg.sweep.findings import sentence
from vitseg.sweep.grid import make_grid, total_epochs
from vitseg.sweep.local import Sweep, check_depths, facts_of
from vitseg.training.job import Job
from vitseg.ui import panels, sweep_charts, theme
from vitseg.ui.console import say
from vitseg.ui.live import LONGEST, Said, Source, Trials
from vitseg.ui.markup import page
from vitseg.ui.screen import Screen, live_figure, redraw
from vitseg.ui.table import Table, duration, number_or_na
from vitseg.ui.widgets import Fit


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
    session = SweepSession(recipe, axes, seeds, folder, _spread(where, address, gpus))
    return Ablation(session.attached())


def _spread(where: str, address: str | None, gpus: float) -> Callable[[Sweep], Source] | None:
    if where not in ("here", "ray"):
        raise ConfigError("where", where, "here, ray")
    if where == "here":
        if address is not None or gpus:
            raise ConfigError("address, gpus", (address, gpus), "nothing, unless where='ray'")
        return None
    from vitseg.sweep.cluster import Spread  # needs an extra

    return partial(Spread, address=address, gpus=gpus)


class SweepSession(Trials):
    """An ablation without its widgets. `curves` holds (epoch, valid IoU) of every trial begun."""

    def __init__(
        self,
        recipe: Recipe,
        axes: Mapping[str, Sequence[Any]],
        seeds: int | Sequence[int],
        folder: str | Path | None,
        spread: Callable[[Sweep], Source] | None = None,
    ):
        self.job = Job(recipe)
        self.grid = make_grid(recipe, axes, seeds, facts_of(self.job))
        self._recipes = {trial.name: trial.recipe for trial in self.grid.trials}
        check_depths(self._recipes.values(), self.job)
        self.sweep = Sweep(self.grid, folder)
        super().__init__(spread(self.sweep) if spread else self.sweep)
        self.curves = {name: list(found.curve) for name, found in self.sweep.results().items()}
        self._inherits = dict(self.grid.shared)
        self._shares: dict[str, float] = {}
        self._ahead: dict[str, list[float]] = {}

    def _note(self, event: Event) -> None:
        match event:
            case TrialStarted():
                self.pace.begin()
                self._turn_to(event.trial)
            case RunStarted():
                self._inherits[self.trial] = event.parent["stage"] if event.parent else 0
            case BatchEnded() if event.stage > self._inherits[self.trial]:
                self._work(1 / self._own_steps(self.trial))
            case EpochEnded():
                self.curves[self.trial].append((event.epoch, event.validation["iou"]))
            case TrialTold():
                self.trial = event.trial
                self.curves[event.trial].append((event.epoch, event.iou))
                self._work(1 / total_epochs(self._recipes[event.trial]), math.inf)

    def _work(self, share: float, most: float = LONGEST) -> None:
        """A share of the trial is done."""
        self._shares[self.trial] = self._shares.get(self.trial, 0.0) + share
        if self.state == "running":
            self.pace.count(True, self._weight_of(self.trial) * share, most)

    def _turn_to(self, trial: str) -> None:
        """Of a trial that goes on, what it has already is taken from its folder; of one that is
        elsewhere, all will be told.
        """
        self.trial, self.curves[trial] = trial, []
        run, steps = self.sweep.run_of(trial), 0
        if forked := run.forked():
            self._inherits[trial] = forked["stage"]
        if run.events_file.exists() and not self.elsewhere:
            for event in kept_events(run.path):
                if isinstance(event, EpochEnded):
                    self.curves[trial].append((event.epoch, event.validation["iou"]))
                elif isinstance(event, BatchEnded):
                    steps += event.stage > self._inherits[trial]
        self._shares[trial] = steps / self._own_steps(trial)

    def _own_steps(self, trial: str) -> int:
        """Those of the stages that it does not inherit; 1 where it inherits all."""
        recipe = self._recipes[trial]
        epochs = sum(stage.epochs for stage in recipe.stages[self._inherits[trial] :])
        return max(1, epochs * batches_per_epoch(recipe, len(self.job.data.splits["train"])))

    def _weight_of(self, trial: str) -> float:
        """Seconds that a trial's own stages will take by forecast; before that, its steps."""
        if self.cost is None:
            return float(self._own_steps(trial))
        if trial not in self._ahead:
            try:
                job = self.job.replace(self._recipes[trial])
            except ConfigError:  # it cannot train here, such as one with a deeper encoder
                job = self.job
            self._ahead[trial] = [stage.seconds for stage in forecast(job, self.cost)]
        return sum(self._ahead[trial][self._inherits[trial] :])

    def measure(self) -> None:
        """Time a few batches, once."""
        if self.cost is None:
            self.cost = measure(self.job)

    def predicted_seconds(self) -> float:
        """What the trials that have not ended will take here. The first call times a few
        batches.
        """
        self.measure()
        return sum(self._weight_of(t.name) for t in self.sweep.todo())

    def progress(self) -> tuple[float, float | None]:
        total = sum(map(self._weight_of, self._recipes))
        ahead = 0.0
        for trial in self.sweep.todo():
            done = min(1.0, self._shares.get(trial.name, 0.0))
            ahead += self._weight_of(trial.name) * (1 - done)
        left = self.pace.left(ahead) if self.alive else None
        return 1 - ahead / total if total else 1.0, left

    def score_of(self, trial: str) -> str:
        return number_or_na(self.sweep.results()[trial].iou)

    def tally(self) -> list[str]:
        count = len(self.grid.trials)
        words = [f"{count - self.sweep.left()} of {count} trials have ended."]
        return words + [f"{name} failed: {text}" for name, text in self.sweep.failures.items()]

    def conclusion(self) -> Said:
        words, count, left = " ".join(self.tally()), len(self.grid.trials), self.sweep.left()
        if self.sweep.failures:
            return f"{words} Start tries again.", "bad"
        if not left:
            return f"All {count} trials have ended. Folder: {self.path}", ""
        return f"{words} Start trains {'the rest' if left < count else 'them'}.", ""


class Ablation(Screen):
    """A sweep on the screen; see `ablate`. `start`, `pause`, `resume`, `stop` and `wait` do what
    the buttons do.
    """

    session: SweepSession

    def __init__(self, session: SweepSession):
        super().__init__(session)
        self.grid, self.sweep = session.grid, session.sweep
        self.plan, self.results, self.said = w.HTML(), w.HTML(), w.HTML()
        self.figure = live_figure(self.show())
        style = w.HTML(panels.STYLE)
        self.box = w.VBox(
            [style, self.plan, self.steering, self.results, self.figure, Fit(), self.said]
        )
        self.draw()
        if session.alive:
            self._paint_while_alive()

    def _open(self) -> None:
        if self.session.live is None:
            for name in self.sweep.results():
                say(f"{name}: IoU {self.session.score_of(name)}, from before")
        self.start()

    # ---- what was found

    @property
    def table(self) -> Table:
        """A row a setting, a column a seed."""
        now = self.session.trial if self.session.alive else None
        return sweep_charts.result_table(self.grid, self.sweep.results(), self.sweep.failures, now)

    @property
    def sentence(self) -> str:
        """What unfreezing bought, with its interval."""
        return sentence(self.grid, self.sweep.results())

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
        notes = "".join(f"<p>{escape(note)}</p>" for note in self.grid.notes)
        body = [
            f"<p>{escape(self.sentence)}</p>",
            f"{self.table._repr_html_()}{notes}",
            self.show().to_html(full_html=False, include_plotlyjs=True, config=theme.CONFIG),
            f"<h2>Plan</h2>{sweep_charts.plan_table(self.grid)._repr_html_()}",
            f"<h2>Recipe</h2><pre>{escape(self.grid.recipe.model_dump_json(indent=2))}</pre>",
        ]
        path = self.sweep.path / "report.html"
        path.write_text(page(self.sweep.path.name, "\n".join(body)), encoding="utf-8")
        return path

    # ---- the screen

    def __str__(self) -> str:
        return (
            f"{sweep_charts.plan_table(self.grid)}\n(An ablation: live in JupyterLab; here, "
            f"ablation.finish().)"
        )

    def _repr_mimebundle_(self, **more: Any) -> Any:
        if not self.session.alive:
            self._time_batches()
        return super()._repr_mimebundle_(**more)

    def draw(self) -> None:
        with self.lock:
            notes = [("quiet", "", note) for note in (*self.grid.notes, self._ahead())]
            plan = sweep_charts.plan_table(self.grid)._repr_html_()
            self.plan.value = plan + panels.lines(notes)
            self.results.value = panels.html(self.table._repr_html_())
            self.said.value = panels.html(f"<p><b>{escape(self.sentence)}</b></p>")
            redraw(self.figure, self.show())
            self.draw_status()

    def _ahead(self) -> str:
        """What it will take, unless the bar knows better, and where it is."""
        session, words = self.session, ""
        if self.sweep.left():
            if session.cost is None:
                words = "A few batches are being timed. "
            elif not session.alive:
                words = f"About {duration(session.predicted_seconds())} to go, in "
        return f"{words}{self.sweep.path}"
