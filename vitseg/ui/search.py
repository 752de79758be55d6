"""A search in one cell: what may be proposed, a table that fills, and what the trials say about the
settings.
"""

from __future__ import annotations

from html import escape
from pathlib import Path
from statistics import fmean
from typing import Any

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
from vitseg.ui.console import say
from vitseg.ui.live import current
from vitseg.ui.steering import live_figure, redraw
from vitseg.ui.table import Table
from vitseg.ui.trials import Trials, TrialsScreen
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
    live = current()
    mine = live is not None and isinstance(live.owner, SearchSession)
    if mine and live.owner.search.path == session.search.path:
        session = live.owner
        session.search.trials = trials
    else:
        check_depths(session.search.extremes, Job(recipe))
    return SearchPage(session)


class SearchSession:
    """A search without its widgets: the trial that is being trained here, how far all are, and what
    to say of them.
    """

    def __init__(self, search: Search):
        self.search, self.trial, self._share = search, "", 0.0
        self.trials = Trials(search, self, self._count)

    def _count(self, event: Event) -> None:
        match event:
            case TrialStarted() | TrialEnded():
                self.trial, self._share = event.trial, 0.0
            case EpochEnded():
                epochs = total_epochs(self.search.run_named(self.trial).recipe)
                self._share = min(0.99, event.epoch / epochs)

    def progress(self) -> tuple[float, float | None]:
        """Share of the trials that is over, and seconds left, by the mean of those that have ended,
        if all stay here.
        """
        results = self.search.results()
        over, took = self._share, []
        for trial in results:
            over += trial.state.is_finished()
            if "seconds" in trial.user_attrs:
                took.append(trial.user_attrs["seconds"])
        left = None
        if took and self.trials.alive:
            left = fmean(took) * (self.search.trials - over)
        return min(1.0, over / self.search.trials), left

    def sentence(self) -> tuple[str, str]:
        """What is happening, or "bad" and what is wrong."""
        over, failed = 0, []
        results = self.search.results()
        for trial in results:
            over += trial.state.is_finished()
            if error := self.search.error_of(trial):
                failed.append(f"{self.search.name_of(trial)} failed: {error}")
        words = [f"{over} of {self.search.trials} trials are over.", *failed[:3]]
        if self.trials.alive:
            words = [self.trials.doing(self.trial), *words, self.trials.incomplete]
            return " ".join(words).strip(), ""
        if wrong := self.trials.stopped_by():
            return wrong, "bad"
        if over < self.search.trials:
            return " ".join([*words, f"Start trains {'the rest' if results else 'them'}."]), ""
        words[0] = f"All {over} trials are over."
        kind = "bad" if failed else ""
        return " ".join([*words, f"Folder: {self.search.path}"]), kind


class SearchPage(TrialsScreen):
    """A search on the screen; see `search`. `start`, `pause`, `resume`, `stop` and `wait` do what
    the buttons do.
    """

    def __init__(self, session: SearchSession):
        super().__init__(session.trials)
        self.session, self.search = session, session.search
        self._plan, self._table = w.HTML(), w.HTML()
        self._figure = live_figure(self.show())
        style = w.HTML(panels.STYLE)
        self.box = w.VBox([style, self._plan, self._steering.box, self._figure, Fit(), self._table])
        self._draw_all()
        if session.trials.alive:
            self._paint_while_alive()

    def finish(self) -> Path:
        """Start, print a line for each trial, and give the search's folder at the end. Raises what
        stopped it.
        """
        for event in self._follow():
            if isinstance(event, TrialEnded):
                named = {self.search.name_of(trial): trial for trial in self.search.results()}
                score = f"IoU {search_charts.score_words(named[event.trial])}"
                say(f"{event.trial}: {event.error or score}")
        return self.search.path

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

    def _repr_mimebundle_(self, **more: Any) -> Any:
        bundle = self.box._repr_mimebundle_(**more)
        return bundle | {"text/plain": str(self)} if isinstance(bundle, dict) else bundle

    def _draw_all(self) -> None:
        with self._steering.lock:
            plan = search_charts.plan_table(self.search)._repr_html_()
            place = f"<p class=quiet>{escape(str(self.search.path))}</p>"
            self._plan.value = panels.html(plan + place)
            self._table.value = panels.html(self.table._repr_html_())
            redraw(self._figure, self.show())
            self._draw()

    def _draw(self) -> None:
        with self._steering.lock:
            self._draw_buttons(self.session.progress(), self.session.sentence())
