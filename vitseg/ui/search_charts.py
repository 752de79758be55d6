"""A search as figures and as tables: pure functions of its trials.

Optuna, which is an extra, is imported where it draws: `vitseg.search` exists without it.
"""

from __future__ import annotations

from collections import Counter
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import pandas as pd
import plotly.graph_objects as go

from vitseg.errors import RunError
from vitseg.sweep.grid import short_path
from vitseg.sweep.search import Search, quiet
from vitseg.ui import theme
from vitseg.ui.table import Table, number_or_na

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial

ENOUGH = 10
"""Trials that have ended, for their settings to be ranked."""

SCORE = "valid IoU"
_WORDS = {"PRUNED": "pruned", "FAIL": "failed", "RUNNING": "..."}


def plan_table(search: Search) -> Table:
    """What may be proposed, how many trials, by whom."""
    rows = []
    for path, allowed in search.space.items():
        if path in search.choices:
            words = ", ".join(map(str, search.choices[path]))
        else:
            scale = ", evenly on a log scale" if allowed.log else ""
            words = f"{_value(allowed.low)} to {_value(allowed.high)}{scale}"
        rows.append((short_path(path), words))
    rows.append(("trials", str(search.trials)))
    rows.append(("proposed by", search.sampler))
    rows.append(("pruned by", search.pruner))
    return Table(("setting", "values"), tuple(rows))


def result_table(search: Search, most: int = 12) -> Table:
    """The best trials and those under way, a row each."""
    trials = search.results()
    rows = []
    for trial in sorted(trials, key=_rank)[:most]:
        values = {path: _value(value) for path, value in trial.params.items()}
        values |= dict.fromkeys(search.idle_in(trial), "no effect")
        cells = [values.get(path, "") for path in search.space]
        rows.append((search.name_of(trial), *cells, str(_epochs(trial)), score_words(trial)))
    states = Counter(trial.state.name for trial in trials)
    counts = f"{states['COMPLETE']} of {search.trials} ended"
    for state in sorted(states.keys() & {"PRUNED", "FAIL"}, reverse=True):
        counts += f", {states[state]} {_WORDS[state]}"
    caution = "the best first. Of many the best looks better than it is: repeat it on new seeds"
    heads = ("trial", *map(short_path, search.space), "epochs", "IoU")
    return Table(heads, tuple(rows), f"{counts}; {caution}")


def _rank(trial: FrozenTrial) -> tuple[bool, float]:
    """Those under way, the best that have ended, all others."""
    ended = trial.state.name == "COMPLETE"
    return trial.state.name != "RUNNING", -trial.value if ended else 1.0


def _epochs(trial: FrozenTrial) -> int:
    return max(trial.intermediate_values, default=0)


def _value(value: Any) -> str:
    return f"{value:.2e}" if isinstance(value, float) else str(value)


def score_words(trial: FrozenTrial) -> str:
    """Its IoU, or what became of it and how far it had come."""
    if trial.state.name == "COMPLETE":
        return number_or_na(trial.value)
    words = _WORDS[trial.state.name]
    if trial.intermediate_values:
        words += f", {number_or_na(trial.intermediate_values[_epochs(trial)])} there"
    return words


def frame(search: Search) -> pd.DataFrame:
    """A row a trial: what was proposed, IoU, F1, seconds, epochs, state, and why it failed."""
    rows = []
    for trial in search.results():
        row: dict[str, Any] = {"trial": search.name_of(trial)}
        for path in search.space:
            row[path] = trial.params.get(path)
        row["iou"] = trial.value if trial.state.name == "COMPLETE" else None
        row["epochs"] = _epochs(trial)
        row["f1"], row["seconds"] = trial.user_attrs.get("f1"), trial.user_attrs.get("seconds")
        row["error"], row["state"] = search.error_of(trial), trial.state.name.lower()
        rows.append(row)
    return pd.DataFrame(rows)


def history(search: Search) -> go.Figure:
    """IoU of every trial in the order in which they were proposed, the best so far, and where the
    pruned ones were left.

    Not Optuna's, which has no trace as long as no trial has ended and leaves out the pruned ones:
    this one is redrawn in place while trials end.
    """
    trials = search.results()
    done, pruned = {}, {}
    for trial in trials:
        if trial.state.name == "COMPLETE":
            done[trial.number] = trial.value
        elif trial.state.name == "PRUNED":
            pruned[trial.number] = trial.intermediate_values[_epochs(trial)]
    x, best, left = list(done), list(accumulate(done.values(), max)), list(pruned.values())
    dot = {"color": theme.TRAIN, "size": 8}
    line = {"color": theme.VALID, "shape": "hv", "width": 2}
    cross = {"symbol": "x-thin", "size": 8, "line": {"width": 1.5, "color": theme.PLAN}}
    figure = go.Figure()
    figure.add_scatter(name="trial", x=x, y=list(done.values()), mode="markers", marker=dot)
    figure.add_scatter(name="best so far", x=x, y=best, mode="lines", line=line)
    where = "pruned, where it was left"
    figure.add_scatter(name=where, x=list(pruned), y=left, mode="markers", marker=cross)
    figure.update_xaxes(title_text="trial", dtick=max(1, len(trials) // 8))
    figure.update_yaxes(title_text=SCORE)
    legend = {"orientation": "h", "y": 1.02, "yanchor": "bottom"}
    return _ours(figure).update_layout(legend=legend, uirevision="stay")


def importance(search: Search) -> go.Figure:
    """How much each setting decides whether a trial is among the better ones (PED-ANOVA, Watanabe
    et al. 2023).

    Raises RunError unless some trials have ended: of a few nothing can be said.
    """
    import optuna

    ended = [t for t in search.results() if t.state.name == "COMPLETE"]
    if len(ended) < ENOUGH:
        problem = f"What decides cannot be said of {len(ended)} trials."
        raise RunError(problem, f"Let {ENOUGH} end; pruned ones do not count.")
    figure = optuna.visualization.plot_param_importances(search.study)
    figure.data[0].y = list(map(short_path, figure.data[0].y))
    figure.update_xaxes(title_text="share", range=[0, 1.1])
    figure.update_yaxes(title_text="", automargin=True, ticks="")
    return _ours(figure).update_layout(title_text="What decides, of these settings")


def parallel(search: Search) -> go.Figure:
    """A line a trial that has ended from its IoU through the values of all settings, yellow the
    better; through "None" where a setting has no effect.
    """
    import optuna

    study = _with_short_names(search)
    figure = optuna.visualization.plot_parallel_coordinate(study, target_name=SCORE)
    names = set()
    for trial in study.get_trials(states=[optuna.trial.TrialState.COMPLETE]):
        names.update(trial.params)
    figure.update_xaxes(ticktext=[SCORE, *sorted(names)])  # Optuna's end after 20 letters
    figure.update_annotations(font_color=theme.TEXT)
    figure.update_traces(marker_colorscale="Cividis", selector={"mode": "markers"})
    for line in figure.select_traces({"mode": "lines"}):  # y[0] is the IoU between worst and best
        line.update(line_color=theme.heat(line.y[0])[0], opacity=0.8)
    return _ours(figure).update_layout(plot_bgcolor="rgba(0,0,0,0)")


def slices(search: Search) -> go.Figure:
    """IoU against each setting by itself, of the trials in which it has an effect; later trials
    yellow.
    """
    import optuna

    study = _with_short_names(search)
    figure = optuna.visualization.plot_slice(study, target_name=SCORE)
    figure.update_traces(marker={"size": 8, "coloraxis": "coloraxis"})
    figure.update_xaxes(dtick=1, exponentformat="power", selector={"type": "log"})
    for axis in figure.select_xaxes({"type": "category"}):
        axis.update(tickvals=axis.categoryarray)
        axis.ticktext = [name.strip("'") for name in axis.categoryarray]
    bar = {"title": "trial", "thickness": 12}
    return _ours(figure).update_layout(coloraxis={"colorscale": "Cividis", "colorbar": bar})


def _with_short_names(search: Search) -> optuna.Study:
    """All trials as a study of their own, in which a trial has the settings that have an effect in
    it.
    """
    import optuna

    with quiet():
        study = optuna.create_study(direction="maximize")
    for trial in search.study.get_trials():
        params, distributions, idle = {}, {}, search.idle_in(trial)
        for path, value in trial.params.items():
            if path not in idle:
                params[short_path(path)] = value
                distributions[short_path(path)] = trial.distributions[path]
        trial.params, trial.distributions = params, distributions
        study.add_trial(trial)
    return study


def _ours(figure: go.Figure) -> go.Figure:
    return figure.update_layout(template=theme.TEMPLATE, height=340, width=None, title_text="")
