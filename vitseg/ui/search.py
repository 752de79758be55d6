"""A search in one cell: what may be proposed, a table that fills, and what the trials say about the
settings.
"""

from __future__ import annotations

from pathlib import Path
from statistics import fmean

import ipywidgets as w
import pandas as pd
import plotly.graph_objects as go

from vitseg.events import EpochEnded, Event, TrialEnded, TrialStarted
from vitseg.recipe import Recipe
from vitseg.sweep.grid import total_epochs
from vitseg.sweep.local import check_depths
from vitseg.sweep.search import Search, Space
from vitseg.training.job import Job
from vitseg.ui import panels, search_charts
from vitseg.ui.live import Said, Trials
from vitseg.ui.screen import Screen, live_figure, redraw
from vitseg.ui.table import Table
from vitseg.ui.widgets import Fit


def search(
    recipe: Recipe,
    space: Space,
    trials: int = 30,
    folder: str | Path | None = None,
    *,
    sampler: str = "tpe",
    pruner: str = "median",
    storage: str | None = None,
) -> SearchPage:
    """Look for good settings where a grid would be too large: Optuna proposes, the median of the
    others prunes.

    `search(recipe, {"stages.1.unfrozen_blocks": [0, 2, 4], "stages.1.lr": FloatDistribution(1e-5,
    1e-3, log=True)})` shows the plan; Start, or `start()`, trains in the background. A list is
    values, a range is one of Optuna's distributions; a tuple of two numbers, which could mean
    either, is refused for a continuous setting. The same call in a later kernel goes on, or in
    other kernels at the same time, each with trials of its own. `sampler` is "tpe" or "random",
    `pruner` "median" or "none", `storage` a database's URL. Raises VitsegError for a path, a value
    or a folder that cannot be, and without Optuna. See `vitseg.sweep.search.Search`.
    """
    how = {"sampler": sampler, "pruner": pruner, "storage": storage}
    session = SearchSession(Search(recipe, space, trials, folder, **how))
    live = session.attached()
    if live is session:
        check_depths(session.search.extremes, Job(recipe))
    live.search.trials = trials
    return SearchPage(live)


class SearchSession(Trials):
    """A search without its widgets: the trial that is being trained here, how far all are, and what
    to say of them.
    """

    def __init__(self, search: Search):
        super().__init__(search)
        self.search, self._share = search, 0.0

    def _note(self, event: Event) -> None:
        match event:
            case TrialStarted() | TrialEnded():
                self.trial, self._share = event.trial, 0.0
            case EpochEnded():
                epochs = total_epochs(self.search.run_of(self.trial).recipe)
                self._share = min(0.99, event.epoch / epochs)

    def progress(self) -> tuple[float, float | None]:
        """By the mean of the trials that have ended, as if all that are left were trained here."""
        over, left, trials = self._share + self._over(), None, self.search.results()
        took = [t.user_attrs["seconds"] for t in trials if "seconds" in t.user_attrs]
        if took and self.alive:
            left = fmean(took) * (self.search.trials - over)
        return min(1.0, over / self.search.trials), left

    def _over(self) -> int:
        return sum(trial.state.is_finished() for trial in self.search.results())

    def score_of(self, trial: str) -> str:
        named = {self.search.name_of(found): found for found in self.search.results()}
        return search_charts.score_words(named[trial])

    def tally(self) -> list[str]:
        return [f"{self._over()} of {self.search.trials} trials are over.", *self._failed()]

    def _failed(self) -> list[str]:
        """The first three."""
        failed = [trial for trial in self.search.results() if self.search.error_of(trial)]
        name, error = self.search.name_of, self.search.error_of
        return [f"{name(trial)} failed: {error(trial)}" for trial in failed[:3]]

    def conclusion(self) -> Said:
        over, failed = self._over(), self._failed()
        if over < self.search.trials:
            rest = "the rest" if self.search.results() else "them"
            return " ".join([*self.tally(), f"Start trains {rest}."]), ""
        words = [f"All {over} trials are over.", *failed, f"Folder: {self.path}"]
        return " ".join(words), "bad" if failed else ""


class SearchPage(Screen):
    """A search on the screen; see `search`. `start`, `pause`, `resume`, `stop` and `wait` do what
    the buttons do.
    """

    session: SearchSession

    def __init__(self, session: SearchSession):
        super().__init__(session)
        self.search = session.search
        self.plan, self.results = w.HTML(), w.HTML()
        self.figure = live_figure(self.show())
        style = w.HTML(panels.STYLE)
        self.box = w.VBox([style, self.plan, self.steering, self.figure, Fit(), self.results])
        self.draw()
        if session.alive:
            self._paint_while_alive()

    @property
    def table(self) -> Table:
        """The best trials, a row each."""
        return search_charts.result_table(self.search)

    @property
    def best(self) -> Recipe:
        """The recipe of the best trial. Of many the best looks better than it is: `ablate` it, on
        new seeds.
        """
        return self.search.best

    def show(self) -> go.Figure:
        """Every trial in its order, and the best so far."""
        return search_charts.history(self.search)

    def importance(self) -> go.Figure:
        """How much each setting decides."""
        return search_charts.importance(self.search)

    def parallel(self) -> go.Figure:
        """A line a trial through the values of all settings."""
        return search_charts.parallel(self.search)

    def slices(self) -> go.Figure:
        """IoU against each setting by itself."""
        return search_charts.slices(self.search)

    def frame(self) -> pd.DataFrame:
        """A row a trial."""
        return search_charts.frame(self.search)

    def __str__(self) -> str:
        plan = search_charts.plan_table(self.search)
        return f"{plan}\n(A search: live in JupyterLab; here, search.finish().)"

    def draw(self) -> None:
        with self.lock:
            plan = search_charts.plan_table(self.search)._repr_html_()
            place = panels.lines([("quiet", "", str(self.search.path))])
            self.plan.value = plan + place
            self.results.value = panels.html(self.table._repr_html_())
            redraw(self.figure, self.show())
            self.draw_status()
