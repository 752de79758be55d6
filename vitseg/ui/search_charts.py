"""A search as figures and as a table: pure functions of its trials. What decides is Optuna's
count.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from math import ceil, floor, log10
from typing import Any

import optuna
import pandas as pd
import plotly.graph_objects as go
from optuna.trial import FrozenTrial, TrialState
from plotly.subplots import make_subplots

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
    rows += [
        ("trials", str(search.trials)),
        ("proposed by", search.sampler),
        ("pruned by", search.pruner),
    ]
    return Table(("setting", "values"), tuple(rows))


def _allowed(search: Search, path: str) -> str:
    if path in search.choices:
        return ", ".join(map(str, search.choices[path]))
    allowed = search.space[path]
    return (
        f"{_value(allowed.low)} to "
        f"{_value(allowed.high)}{', evenly on a log scale' if allowed.log else ''}"
    )


def result_table(search: Search, most: int = 12) -> Table:
    """The best trials and those under way, a row each."""
    trials = search.results()
    ranked = sorted(
        trials, key=lambda t: (t.state != TrialState.RUNNING, -(t.value or 0) if _ended(t) else 1)
    )
    rows = [_row(search, trial) for trial in ranked[:most]]
    counts = {
        w: sum(t.state == s for t in trials) for s, w in _WORDS.items() if s != TrialState.RUNNING
    }
    also = ", ".join(
        [
            f"{sum(map(_ended, trials))} of {search.trials} ended",
            *(f"{n} {w}" for w, n in counts.items() if n),
        ]
    )
    heads = ("trial", *map(short_path, search.space), "epochs", "IoU")
    caution = "the best first. Of many the best looks better than it is: repeat it on new seeds"
    return Table(heads, tuple(rows), f"{also}; {caution}")


def _row(search: Search, trial: FrozenTrial) -> tuple[str, ...]:
    idle = search.idle_in(trial)
    values = [
        "no effect" if path in idle else _value(trial.params.get(path)) for path in search.space
    ]
    return (
        search.name_of(trial),
        *values,
        str(max(trial.intermediate_values, default=0)),
        score_words(trial),
    )


def _ended(trial: FrozenTrial) -> bool:
    return trial.state == TrialState.COMPLETE


def _last(trial: FrozenTrial) -> float:
    return trial.intermediate_values[max(trial.intermediate_values)]


def _value(value: Any) -> str:
    return f"{value:.2e}" if isinstance(value, float) else str(value)


def score_words(trial: FrozenTrial) -> str:
    """Its IoU, or what became of it and how far it had come."""
    if _ended(trial):
        return number_or_na(trial.value)
    last = f", {number_or_na(_last(trial))} there" if trial.intermediate_values else ""
    return f"{_WORDS[trial.state]}{last}"


def frame(search: Search) -> pd.DataFrame:
    """A row a trial: what was proposed, IoU, F1, seconds, epochs, state, and why it failed."""
    rows = [
        {"trial": search.name_of(t)}
        | {path: t.params.get(path) for path in search.space}
        | {"iou": t.value if _ended(t) else None, "epochs": max(t.intermediate_values, default=0)}
        | {key: t.user_attrs.get(key) for key in ("f1", "seconds")}
        | {"error": search.error_of(t)}
        | {"state": t.state.name.lower()}
        for t in search.results()
    ]
    return pd.DataFrame(rows)


def history(trials: Sequence[FrozenTrial]) -> go.Figure:
    """IoU of every trial in the order in which they were proposed, the best so far, and where the
    pruned ones were left.
    """
    done, pruned = (
        [t for t in trials if _ended(t)],
        [t for t in trials if t.state == TrialState.PRUNED],
    )
    best = list(accumulate((t.value for t in done), max))
    left = [_last(t) for t in pruned]
    cross = {
        "color": theme.PLAN,
        "symbol": "x-thin",
        "size": 8,
        "line": {"width": 1.5, "color": theme.PLAN},
    }
    figure = go.Figure(
        [
            go.Scatter(
                name="trial",
                x=[t.number for t in done],
                y=[t.value for t in done],
                mode="markers",
                marker={"color": theme.TRAIN, "size": 8},
            ),
            go.Scatter(
                name="best so far",
                x=[t.number for t in done],
                y=best,
                mode="lines",
                line={"color": theme.VALID, "shape": "hv", "width": 2},
            ),
            go.Scatter(
                name="pruned, where it was left",
                x=[t.number for t in pruned],
                y=left,
                mode="markers",
                marker=cross,
            ),
        ]
    )
    figure.update_xaxes(title_text="trial", dtick=max(1, len(trials) // 8))
    figure.update_yaxes(title_text="valid IoU")
    return _ours(figure, "").update_layout(
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom"}, uirevision="stay"
    )


def importance(search: Search) -> go.Figure:
    """How much each setting decides whether a trial is among the better ones (PED-ANOVA, Watanabe
    et al. 2023).

    Raises RunError unless some trials have ended: of a few nothing can be said.
    """
    if (ended := sum(map(_ended, search.results()))) < ENOUGH:
        raise RunError(
            f"What decides cannot be said of {ended} trials.",
            f"Let {ENOUGH} end; pruned ones do not count.",
        )
    shares = optuna.importance.get_param_importances(
        search.study, evaluator=optuna.importance.PedAnovaImportanceEvaluator(), normalize=True
    )
    names, values = [short_path(path) for path in shares], list(shares.values())
    bars = go.Bar(
        x=values, y=names, orientation="h", marker={"color": theme.TRAIN}, texttemplate="%{x:.2f}"
    )
    figure = go.Figure(bars)
    figure.update_yaxes(automargin=True, autorange="reversed", ticks="")
    figure.update_xaxes(title_text="share", range=[0, 1])
    return _ours(figure, "What decides, of these settings")


def parallel(search: Search) -> go.Figure:
    """A line a trial that has ended through the values of all settings to its IoU, yellow the
    better.
    """
    trials = list(filter(_ended, search.results()))
    ious = [t.value for t in trials]
    axes = [_axis(search, path, trials) for path in search.space] + [
        {"label": "valid IoU", "values": ious}
    ]
    bar = {"title": {"text": "valid IoU"}, "thickness": 12}
    lines = go.Parcoords(
        dimensions=axes,
        line={"color": ious, "colorscale": "Cividis", "showscale": True, "colorbar": bar},
    )
    text = {"color": theme.TEXT, "shadow": "none"}  # else a white one, also on a dark page
    lines.update(
        labelfont=text, tickfont=text, rangefont={"color": "rgba(0,0,0,0)", "shadow": "none"}
    )
    return _ours(go.Figure(lines), "").update_layout(margin={"l": 96, "r": 24, "t": 64, "b": 32})


def _axis(search: Search, path: str, trials: Sequence[FrozenTrial]) -> dict[str, Any]:
    """A setting as an axis: its choices by name, a log scale by its powers."""
    values, label = [t.params[path] for t in trials], short_path(path)
    if path in search.choices:
        known = list(search.choices[path])
        return {
            "label": label,
            "values": [known.index(v) for v in values],
            "tickvals": [*range(len(known))],
            "ticktext": [str(v) for v in known],
            "range": [-0.2, len(known) - 0.8],
        }
    if not search.space[path].log:
        return {"label": label, "values": values}
    powers = range(floor(log10(search.space[path].low)), ceil(log10(search.space[path].high)) + 1)
    return {
        "label": label,
        "values": [log10(v) for v in values],
        "tickvals": [*powers],
        "ticktext": [f"{10.0**p:g}" for p in powers],
        "range": [powers[0], powers[-1]],
    }


def slices(search: Search) -> go.Figure:
    """IoU against each setting by itself, of the trials in which it has an effect; later trials
    yellow.
    """
    trials, paths = list(filter(_ended, search.results())), list(search.space)
    figure = make_subplots(rows=1, cols=len(paths), shared_yaxes=True, horizontal_spacing=0.03)
    idle = {t.number: search.idle_in(t) for t in trials}
    figure.update_layout(
        coloraxis={"colorscale": "Cividis", "colorbar": {"title": "trial", "thickness": 12}}
    )
    for column, path in enumerate(paths, start=1):
        shown = [t for t in trials if path not in idle[t.number]]
        x = [str(t.params[path]) if path in search.choices else t.params[path] for t in shown]
        look = {"size": 8, "color": [t.number for t in shown], "coloraxis": "coloraxis"}
        figure.add_trace(
            go.Scatter(x=x, y=[t.value for t in shown], mode="markers", marker=look),
            row=1,
            col=column,
        )
        names = list(map(str, search.choices.get(path, ())))
        scale = (
            {"type": "category", "categoryorder": "array", "categoryarray": names} if names else {}
        )
        if path not in search.choices and search.space[path].log:
            scale = {"type": "log", "exponentformat": "power", "dtick": 1}
        figure.update_xaxes(title_text=short_path(path), **scale, row=1, col=column)
    figure.update_yaxes(title_text="valid IoU", col=1)
    return _ours(figure, "").update_layout(showlegend=False, margin={"t": 24})


def _ours(figure: go.Figure, title: str) -> go.Figure:
    return figure.update_layout(template=theme.TEMPLATE, height=340, title_text=title)
