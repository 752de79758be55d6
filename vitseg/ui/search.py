"""A search in one cell: what may be proposed, a table that fills, and what the trials say about the
settings.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pandas as pd
import plotly.graph_objects as go

from vitseg.errors import RunError
from vitseg.recipe import Recipe
from vitseg.sweep.grid import short_path, value_words
from vitseg.sweep.local import check_depths
from vitseg.sweep.search import Search, Space, quiet
from vitseg.training.job import Job
from vitseg.ui import theme
from vitseg.ui.table import Table, number_or_na
from vitseg.ui.trials import Trials, TrialsScreen

with suppress(ModuleNotFoundError):  # an extra; `Search` says how to install it
    import optuna
    from optuna.trial import FrozenTrial

ENOUGH = 10
"""Trials that have ended, for their settings to be ranked."""

SHOWN = 12
"""Rows of the table."""

SCORE = "valid IoU"


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
    search = Search(recipe, space, trials, folder, sampler=sampler, pruner=pruner, storage=storage)
    session = Trials(search).attached()
    if session.source is search:
        check_depths(search.extremes, Job(recipe))
    session.source.trials = trials
    return SearchPage(session)


class SearchPage(TrialsScreen):
    """A search on the screen; see `search`. `start`, `pause`, `resume`, `stop` and `wait` do what
    the buttons do.
    """

    def __init__(self, session: Trials):
        self.search: Search = session.source
        super().__init__(session)

    @property
    def best(self) -> Recipe:
        """The recipe of the best trial. Of many the best looks better than it is: `ablate` it, on
        new seeds.
        """
        return self.search.best

    def planned(self) -> Table:
        """What may be proposed, how many trials, by whom."""
        rows, search = [], self.search
        for path, allowed in search.space.items():
            words = ", ".join(map(value_words, search.choices[path]))
            if not words:
                scale = ", evenly on a log scale" if allowed.log else ""
                words = f"{value_words(allowed.low)} to {value_words(allowed.high)}{scale}"
            rows.append((short_path(path), words))
        rows += (
            ("trials", str(search.trials)),
            ("sampler", search.sampler),
            ("pruner", search.pruner),
        )
        return Table(("setting", "values"), rows)

    @property
    def table(self) -> Table:
        """The best trials and those under way, a row each."""
        search, rows = self.search, []
        trials = sorted(search.results(), key=_rank)
        for trial in trials[:SHOWN]:
            values = {path: value_words(value) for path, value in trial.params.items()}
            values |= dict.fromkeys(search.idle_in(trial), "no effect")
            cells = [values.get(path, "") for path in search.space]
            rows.append((search.name_of(trial), *cells, str(trial.last_step or 0), _score(trial)))
        caption = (
            f"The best {len(rows)} of {len(trials)}. Of many the best looks better than it is: repeat it "
            "on new seeds"
        )
        heads = ("trial", *map(short_path, search.space), "epochs", "IoU")
        return Table(heads, rows, caption)

    def frame(self) -> pd.DataFrame:
        """A row a trial: what was proposed, IoU, epochs, F1, seconds, why it failed, state."""
        rows = []
        for trial in self.search.results():
            row = {"trial": self.search.name_of(trial), "epochs": trial.last_step or 0}
            row["state"] = trial.state.name.lower()
            if _ended(trial):
                row["iou"] = trial.value
            rows.append(trial.params | trial.user_attrs | row)
        scores = ["iou", "epochs", "f1", "seconds", "error", "state"]
        return pd.DataFrame(rows, columns=["trial", *self.search.space, *scores])

    def show(self) -> go.Figure:
        """IoU of every trial in the order in which they were proposed, the best so far, and where
        the pruned ones were left.

        Not Optuna's, which has no trace as long as no trial has ended and leaves out the pruned
        ones: this one is redrawn in place while trials end.
        """
        trials = self.search.results()  # a pruned one has the IoU of its last epoch
        values = pd.Series({t.number: t.value for t in trials}, dtype=float)
        states = pd.Series({t.number: t.state.name for t in trials}, dtype=object)
        done, pruned = values[states == "COMPLETE"], values[states == "PRUNED"]
        figure = go.Figure()
        for name, points, mode in (
            ("trial", done, "markers"),
            ("best so far", done.cummax(), "lines"),
            ("pruned, where it was left", pruned, "markers"),
        ):
            figure.add_scatter(name=name, x=points.index, y=points, mode=mode, line_shape="hv")
        figure.update_layout(xaxis_title="trial", yaxis_title=SCORE)
        return _ours(figure)

    def importance(self) -> go.Figure:
        """How much each setting decides whether a trial is among the better ones (PED-ANOVA,
        Watanabe et al. 2023).

        Raises RunError unless some trials have ended: of a few nothing can be said.
        """
        ended = sum(map(_ended, self.search.results()))
        if ended < ENOUGH:
            problem = f"What decides cannot be said of {ended} trials."
            raise RunError(problem, f"Let {ENOUGH} end; pruned ones do not count.")
        figure = optuna.visualization.plot_param_importances(self.search.study)
        figure.data[0].y = list(map(short_path, figure.data[0].y))
        return _ours(figure)

    def parallel(self) -> go.Figure:
        """A line a trial that has ended from its IoU through the values of all settings, darker the
        better; through "None" where a setting has no effect.
        """
        study = self._with_short_names()
        names = {name for trial in study.trials if _ended(trial) for name in trial.params}
        figure = optuna.visualization.plot_parallel_coordinate(study, target_name=SCORE)
        figure.update_xaxes(ticktext=[SCORE, *sorted(names)])  # Optuna's end after 20 letters
        return _ours(figure)

    def slices(self) -> go.Figure:
        """IoU against each setting by itself, of the trials in which it has an effect; later trials
        darker.
        """
        study = self._with_short_names()
        return _ours(optuna.visualization.plot_slice(study, target_name=SCORE))

    def _with_short_names(self) -> optuna.Study:
        """All trials as a study of their own, in which a trial has the settings that have an effect
        in it.
        """
        with quiet():
            study = optuna.create_study(direction="maximize")
        for trial in self.search.study.get_trials():
            params, distributions = {}, {}
            for path in trial.params.keys() - self.search.idle_in(trial):
                params[short_path(path)] = trial.params[path]
                distributions[short_path(path)] = trial.distributions[path]
            trial.params, trial.distributions = params, distributions
            study.add_trial(trial)
        return study


def _ended(trial: FrozenTrial) -> bool:
    return trial.state.name == "COMPLETE"


def _rank(trial: FrozenTrial) -> tuple[bool, float]:
    """Those under way, the best that have ended, all others."""
    return trial.state.name != "RUNNING", -trial.value if _ended(trial) else 1.0


def _score(trial: FrozenTrial) -> str:
    """Its IoU, or what became of it and how far it had come."""
    if _ended(trial):
        return number_or_na(trial.value)
    words = trial.state.name.lower()
    if trial.intermediate_values:
        words += f", {number_or_na(trial.intermediate_values[trial.last_step])} there"
    return words


def _ours(figure: go.Figure) -> go.Figure:
    return figure.update_layout(template=theme.TEMPLATE, height=340, width=None)
