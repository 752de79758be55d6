"""A search as figures and as a table. Optuna counts, and draws all but the history; the look is ours."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import optuna
import pandas as pd
import plotly.graph_objects as go
from optuna.trial import FrozenTrial, TrialState

from vitseg.errors import RunError
from vitseg.sweep.grid import short_path
from vitseg.sweep.search import Search
from vitseg.ui import theme
from vitseg.ui.table import Table, number_or_na

ENOUGH = 10
_WORDS = {TrialState.PRUNED: "pruned", TrialState.RUNNING: "...", TrialState.FAIL: "failed"}


def plan_table(search: Search) -> Table:
    """What may be proposed, how many trials, by whom."""
    rows = [(short_path(path), _allowed(search, path)) for path in search.space]
    rows += [("trials", str(search.trials)), ("proposed by", search.sampler), ("pruned by", search.pruner)]
    return Table(("setting", "values"), tuple(rows))


def _allowed(search: Search, path: str) -> str:
    if path in search.choices:
        return ", ".join(map(str, search.choices[path]))
    allowed = search.space[path]
    return f"{_value(allowed.low)} to {_value(allowed.high)}{', evenly on a log scale' if allowed.log else ''}"


def result_table(search: Search, most: int = 12) -> Table:
    """The best trials and those under way, a row each."""
    trials = search.results()
    ranked = sorted(trials, key=lambda t: (t.state != TrialState.RUNNING, -(t.value or 0) if _ended(t) else 1))
    rows = [_row(search, trial) for trial in ranked[:most]]
    counts = {w: sum(t.state == s for t in trials) for s, w in _WORDS.items() if s != TrialState.RUNNING}
    also = ", ".join([f"{sum(map(_ended, trials))} of {search.trials} ended", *(f"{n} {w}" for w, n in counts.items() if n)])
    heads = ("trial", *map(short_path, search.space), "epochs", "IoU")
    caution = "the best first. Of many the best looks better than it is: repeat it on new seeds"
    return Table(heads, tuple(rows), f"{also}; {caution}")


def _row(search: Search, trial: FrozenTrial) -> tuple[str, ...]:
    values = [_value(trial.params.get(path)) for path in search.space]
    return (search.name_of(trial), *values, str(max(trial.intermediate_values, default=0)), score_words(trial))


def _ended(trial: FrozenTrial) -> bool:
    return trial.state == TrialState.COMPLETE


def _value(value: Any) -> str:
    return f"{value:.2e}" if isinstance(value, float) else str(value)


def score_words(trial: FrozenTrial) -> str:
    """Its IoU, or what became of it and how far it had come."""
    if _ended(trial):
        return number_or_na(trial.value)
    last = f", {number_or_na(list(trial.intermediate_values.values())[-1])} there" if trial.intermediate_values else ""
    return f"{_WORDS[trial.state]}{last}"


def frame(search: Search) -> pd.DataFrame:
    """A row a trial: what was proposed, IoU, F1, seconds, epochs, state, and why it failed."""
    rows = [
        {"trial": search.name_of(t)}
        | {path: t.params.get(path) for path in search.space}
        | {"iou": t.value if _ended(t) else None, "epochs": max(t.intermediate_values, default=0)}
        | {key: t.user_attrs.get(key) for key in ("f1", "seconds", "error")}
        | {"state": t.state.name.lower()}
        for t in search.results()
    ]
    return pd.DataFrame(rows)


def history(trials: Sequence[FrozenTrial]) -> go.Figure:
    """IoU of every trial in the order in which they were proposed, the best so far, and where the pruned ones were left."""
    done, pruned = [t for t in trials if _ended(t)], [t for t in trials if t.state == TrialState.PRUNED]
    best = list(accumulate((t.value for t in done), max))
    left = [list(t.intermediate_values.values())[-1] for t in pruned]
    cross = {"color": theme.PLAN, "symbol": "x-thin", "size": 8, "line": {"width": 1.5, "color": theme.PLAN}}
    figure = go.Figure([
        go.Scatter(name="trial", x=[t.number for t in done], y=[t.value for t in done], mode="markers",
                   marker={"color": theme.TRAIN, "size": 8}),
        go.Scatter(name="best so far", x=[t.number for t in done], y=best, mode="lines",
                   line={"color": theme.VALID, "shape": "hv", "width": 2}),
        go.Scatter(name="pruned, where it was left", x=[t.number for t in pruned], y=left, mode="markers", marker=cross),
    ])  # fmt: skip
    figure.update_xaxes(title_text="trial")
    figure.update_yaxes(title_text="valid IoU")
    return _ours(figure, "").update_layout(legend={"orientation": "h", "y": 1.02, "yanchor": "bottom"}, uirevision="stay")


def importance(study: optuna.Study) -> go.Figure:
    """How much each setting decides whether a trial is among the better ones (PED-ANOVA, Watanabe et al. 2023).

    Raises RunError unless some trials have ended: of a few nothing can be said.
    """
    if (ended := sum(map(_ended, study.get_trials(deepcopy=False)))) < ENOUGH:
        raise RunError(f"What decides cannot be said of {ended} trials.", f"Let {ENOUGH} end; pruned ones do not count.")
    evaluator = optuna.importance.PedAnovaImportanceEvaluator()
    figure = optuna.visualization.plot_param_importances(study, evaluator=evaluator)
    figure.update_traces(marker_color=theme.TRAIN)
    figure.update_yaxes(automargin=True, title_text="")
    figure.update_xaxes(title_text="share of importance")
    return _ours(figure, "What decides, of these settings")


def parallel(study: optuna.Study) -> go.Figure:
    """A line a trial through the values of all settings, yellow the better."""
    return _ours(optuna.visualization.plot_parallel_coordinate(study), "Trials through their settings")


def slices(study: optuna.Study) -> go.Figure:
    """IoU against each setting by itself, later trials yellow."""
    figure = optuna.visualization.plot_slice(study)
    figure.update_traces(marker={"colorscale": "Cividis", "line": {"width": 0}, "size": 8})
    figure.update_yaxes(title_text="valid IoU", col=1)
    return _ours(figure, "IoU against each setting")


def _ours(figure: go.Figure, title: str) -> go.Figure:
    return figure.update_layout(template=theme.TEMPLATE, height=340, title_text=title)
