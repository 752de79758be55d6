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
from vitseg.runs.work import prepare
from vitseg.sweep.local import check_depths
from vitseg.sweep.search import Search, Space
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
    or a folder that cannot be. See `vitseg.sweep.search.Search`.
    """
    session = SearchSession(
        Search(recipe, space, trials, folder, sampler=sampler, pruner=pruner, storage=storage)
    )
    if (
        (live := current())
        and isinstance(live.owner, SearchSession)
        and live.owner.search.path == session.search.path
    ):
        session = live.owner
        session.search.trials = trials
    else:
        check_depths(session.search.extremes(), recipe.model, prepare(recipe))
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
                stages = self.search.run_named(self.trial).recipe.stages
                self._share = min(0.99, event.epoch / sum(stage.epochs for stage in stages))

    def progress(self) -> tuple[float, float | None]:
        """Share of the trials that is over, and seconds left, by the mean of those that have ended,
        if all stay here.
        """
        results = self.search.results()
        over = sum(t.state.is_finished() for t in results) + self._share
        took = [t.user_attrs["seconds"] for t in results if "seconds" in t.user_attrs]
        left = fmean(took) * (self.search.trials - over) if took and self.trials.alive else None
        return min(1.0, over / self.search.trials), left

    def sentence(self) -> tuple[str, str]:
        """What is happening, or "bad" and what is wrong."""
        results = self.search.results()
        failed = [
            f"{self.search.name_of(t)} failed: {error}"
            for t in results
            if (error := self.search.error_of(t))
        ]
        over = sum(t.state.is_finished() for t in results)
        words = f"{over} of {self.search.trials} trials are over."
        if self.trials.alive:
            return " ".join(
                filter(
                    None,
                    [self.trials.doing(self.trial), words, *failed[:3], self.trials.incomplete],
                )
            ), ""
        if wrong := self.trials.stopped_by():
            return wrong, "bad"
        if over < self.search.trials:
            return " ".join(
                [words, *failed[:3], f"Start trains {'the rest' if results else 'them'}."]
            ), ""
        return " ".join(
            [f"All {over} trials are over.", *failed[:3], f"Folder: {self.search.path}"]
        ), "bad" if failed else ""


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
                trial = next(
                    t for t in self.search.results() if self.search.name_of(t) == event.trial
                )
                say(f"{event.trial}: {event.error or f'IoU {search_charts.score_words(trial)}'}")
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
        return search_charts.history(self.search.results())

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
        return (
            f"{search_charts.plan_table(self.search)}\n(A search: live in JupyterLab; here, "
            f"search.finish().)"
        )

    def _repr_mimebundle_(self, **more: Any) -> Any:
        bundle = self.box._repr_mimebundle_(**more)
        return bundle | {"text/plain": str(self)} if isinstance(bundle, dict) else bundle

    def _draw_all(self) -> None:
        with self._steering.lock:
            place = f"<p class=quiet>{escape(str(self.search.path))}</p>"
            self._plan.value = panels.html(
                search_charts.plan_table(self.search)._repr_html_() + place
            )
            self._table.value = panels.html(self.table._repr_html_())
            redraw(self._figure, self.show())
            self._draw()

    def _draw(self) -> None:
        with self._steering.lock:
            self._draw_buttons(self.session.progress(), self.session.sentence())
